"""Linear heads: many at once, each with its own loss, solved to convergence by L-BFGS."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.longtail.subset import count_labels
from lt_cb.losses import Loss

HISTORY = 10  # pairs of steps and gradient differences that L-BFGS keeps
MIN_VARIANCE = 1e-9  # relative to the largest; less is rounding noise of float32 features
SUFFICIENT = 1e-4  # Armijo condition: the share of the predicted decrease that a step must reach
BLOCK_ROWS = 4096  # images in a block, which stays in the processor's cache between two products
MAX_COLUMNS = 4096  # logits of an image, over all heads that are solved together; bounds the memory
MAX_ROUNDS = 1000
MAX_SINGLE = 2**21  # features, all images together, that one thread solves in seconds


@contextmanager
def one_thread_if_small(features: Tensor) -> Iterator[None]:
    """Use one thread for few features: more would wait for each other, and change the rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if features.numel() <= MAX_SINGLE else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Basis:
    """Principal axes of standardised training features, without axes of no variance, whose weights would be zero.

    A rotation does not change the L2 penalty. Along these axes the curvature of the loss is nearly diagonal, so that
    heads converge in tens of steps.
    """

    mean: Tensor  #: of the features, shape (D,)
    scale: Tensor  #: standard deviation of the features, 1 for a constant one, shape (D,)
    axes: Tensor  #: orthonormal columns, shape (D, R)
    variances: Tensor  #: of the standardised features along the axes, shape (R,)

    @classmethod
    def fit(cls, features: Tensor) -> "Basis":
        """Return the basis of training features, floating of shape (N, D).

        Raise InputError if a feature is not finite, or all are constant.
        """
        _check_finite(features)
        width = features.shape[1]
        total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        for block in torch.split(features, BLOCK_ROWS):
            total = total + block.double().sum(0)
        mean = total / len(features)
        for block in torch.split(features, BLOCK_ROWS):
            centred = (block.double() - mean).float()
            products = products + (centred.T @ centred).double()
        covariance = products / len(features)
        if not covariance.isfinite().all():
            raise InputError("features are too large to be squared in float32: choose another backbone.")
        scale = covariance.diagonal().sqrt()
        varies = scale > 1e-6 * mean.abs().clamp(min=1e-6)
        if not varies.any():
            raise InputError("the backbone yields the same features for all images: check its weights, or its inputs.")
        scale = torch.where(varies, scale, 1.0)
        variances, axes = _eigen(covariance / scale.outer(scale))
        kept = variances > MIN_VARIANCE * variances[-1]
        return cls(mean.float(), scale.float(), axes[:, kept].float(), variances[kept].float())

    def project(self, features: Tensor, targets: Tensor, num_classes: int) -> "FeatureSet":
        """Standardise and rotate features, floating of shape (N, D). See `FeatureSet` for ``targets``."""
        projected = torch.empty(len(features), self.axes.shape[1])
        for rows, block in zip(torch.split(projected, BLOCK_ROWS), torch.split(features, BLOCK_ROWS), strict=True):
            torch.mm((block.float() - self.mean) / self.scale, self.axes, out=rows)
        return FeatureSet(projected, targets, num_classes, self.variances)

    def unproject(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight, (C, D), and bias, (C,), of the same head for features as the backbone yields them."""
        weight = (weight.double() @ self.axes.double().T) / self.scale.double()
        return weight.float(), (bias.double() - weight @ self.mean.double()).float()


def _check_finite(features: Tensor) -> None:
    """Raise InputError if features, floating of shape (N, D), are NaN or infinite."""
    for name, found in (("NaN", torch.isnan), ("infinite", torch.isinf)):
        images = torch.cat([found(block).any(1) for block in torch.split(features, BLOCK_ROWS)])
        if images.any():
            raise InputError(
                f"the features of {int(images.sum())} of {len(features)} images are {name}: check the backbone's "
                "weights, set --trainer.precision 32-true, or choose another backbone."
            )


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues, ascending, and eigenvectors of a covariance, shape (D, D)."""
    try:
        return torch.linalg.eigh(matrix)  # type: ignore[no-any-return]
    except RuntimeError:  # did not converge, as for few images of almost constant features; SVD is slower
        vectors, values, _ = torch.linalg.svd(matrix)
        return values.flip(0), vectors.flip(1)


@dataclass
class FeatureSet:
    """Features of N images in a `Basis`, with their targets."""

    features: Tensor  #: float32, shape (N, R)
    targets: Tensor  #: class indices, int64 of shape (N,), or multi-hot int8 of shape (N, C), -1 where unknown
    num_classes: int  #: C
    variances: Tensor  #: of the training features by column, shape (R,); they scale the first step of the solver

    @property
    def class_counts(self) -> list[int]:
        """Images of each class, shape (C,)."""
        return count_labels(self.targets.numpy(), self.num_classes)

    @property
    def num_unlabelled(self) -> int:
        """Images without labels."""
        return int((self.targets != 1).all(1).sum()) if self.targets.ndim == 2 else 0

    def select(self, rows: Tensor) -> "FeatureSet":
        """Return the images where ``rows``, bool of shape (N,), is true."""
        return replace(self, features=self.features[rows], targets=self.targets[rows])


class Heads(NamedTuple):
    """Solved linear heads, H of them."""

    weight: Tensor  #: shape (H, C, R)
    bias: Tensor  #: shape (H, C)
    objective: Tensor  #: minimised values, float64 of shape (H,)
    rounds: int  #: evaluations of the objective, each over all heads

    def logits(self, features: Tensor) -> Tensor:
        """Return logits of shape (H, N, C) for features of shape (N, R)."""
        flat = features @ self.weight.flatten(0, 1).T + self.bias.flatten()
        return flat.view(len(features), *self.bias.shape).transpose(0, 1)


def solve_path(
    data: FeatureSet, losses: Sequence[Loss], l2_strengths: Sequence[float], tolerance: float = 1e-5
) -> dict[float, Heads]:
    """Return H heads, one for each loss, by L2 strength; see `solve_heads`. Larger strengths are warm starts."""
    path: dict[float, list[Heads]] = {strength: [] for strength in sorted(set(l2_strengths), reverse=True)}
    group_size = max(MAX_COLUMNS // data.num_classes, 1)
    for first in range(0, len(losses), group_size):
        heads: Heads | None = None
        for strength, groups in path.items():
            heads = solve_heads(data, losses[first : first + group_size], strength, heads, tolerance)
            groups.append(heads)
    return {strength: _joined(groups) for strength, groups in path.items()}


def _joined(groups: list[Heads]) -> Heads:
    weight, bias, objective = (torch.cat(parts) for parts in list(zip(*groups, strict=True))[:3])
    return Heads(weight, bias, objective, max(heads.rounds for heads in groups))


def solve_heads(
    data: FeatureSet, losses: Sequence[Loss], l2_strength: float, start: Heads | None = None, tolerance: float = 1e-5
) -> Heads:
    r"""Minimise the objectives of H linear heads, each with its own loss.

    .. math:: \min_{W, b} L(X W^T + b, y) + \tfrac{\lambda}{2} \|W\|^2

    L is the mean of the weighted losses. The bias is not penalised. All heads take the steps of L-BFGS together: each
    round multiplies the features once by the weights of all heads that have not converged yet. A head has converged
    once its Newton decrement, as L-BFGS estimates it, is below ``tolerance`` times the objective.

    Args:
        data: training features.
        losses: H losses of C classes on plain logits, with reduction ``mean``; others raise InputError.
        l2_strength: lambda, at least 0.
        start: heads to start from, for example the solution at a larger lambda; None starts from zero weights.
        tolerance: estimated relative gap to the optimum, above 0. The true gap can be larger: up to 60 times, or 0.06 %
            at the default, in our measurements.
    """
    for loss in losses:
        if loss.normalized_classifier or loss.reduction != "mean":
            raise InputError(
                f"{type(loss).__name__} with reduction '{loss.reduction}' cannot be solved for a linear head: choose a "
                "loss of plain logits, not cosines, with reduction 'mean'."
            )
    width = data.features.shape[1]
    point = torch.zeros(len(losses), data.num_classes, width + 1)  # weights and, in the last column, biases
    if start is None:
        point[:, :, -1] = torch.tensor([loss.prior_bias or 0.0 for loss in losses])[:, None]
    else:
        point[:, :, :-1], point[:, :, -1] = start.weight, start.bias
    decay = torch.full((width + 1,), float(l2_strength))
    decay[-1] = 0.0
    inverse_curvature = 1.0 / (torch.cat([data.variances, torch.ones(1)]) / data.num_classes + decay + 1e-6)
    objective, rounds = _minimise(data, list(losses), decay, inverse_curvature, point, tolerance)
    return Heads(point[:, :, :-1].contiguous(), point[:, :, -1].contiguous(), objective, rounds)


@torch.no_grad()
def _minimise(
    data: FeatureSet, losses: list[Loss], decay: Tensor, scale: Tensor, result: Tensor, tolerance: float
) -> tuple[Tensor, int]:
    """Minimise from ``result``, in place; return objectives, float64 of shape (H,), and the number of rounds."""
    active = torch.arange(len(losses))
    objectives = torch.zeros(len(losses), dtype=torch.float64)
    point = result.clone()
    value, gradient = _evaluate(data, losses, decay, point)
    history: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, gradient differences, 1 / their product or 0 if unusable
    factor = torch.ones(len(losses))  # scales the inverse curvature of each head
    direction, length = -scale * gradient, torch.ones(len(losses))
    rounds = 1
    while losses and rounds < MAX_ROUNDS:
        rounds += 1
        slope = _dot(gradient, direction)
        trial = point + length[:, None, None] * direction
        new_value, new_gradient = _evaluate(data, losses, decay, trial)
        noise = 1e-7 * value.abs()  # float32 sums hide a smaller decrease near the optimum
        accepted = new_value <= value + SUFFICIENT * (length * slope).double() + noise
        keep = accepted[:, None, None]
        step, change = trial - point, new_gradient - gradient
        product, square = _dot(step, change), _dot(change, scale * change)
        usable = accepted & (product > 1e-10 * _dot(step, step))
        history = history[-HISTORY + 1 :]
        history.append((step, change, torch.where(usable, 1.0 / product, 0.0)))
        factor = torch.where(usable, product / square.clamp(min=1e-30), factor)
        rise = (new_value - value).float()
        shorter = -0.5 * slope * length**2 / (rise - length * slope)  # the minimum of the parabola through both points
        shorter = torch.where(shorter.isfinite(), shorter.clamp(0.1 * length, 0.5 * length), 0.1 * length)
        point, gradient = torch.where(keep, trial, point), torch.where(keep, new_gradient, gradient)
        value = torch.where(accepted, new_value, value)
        new_direction = _direction(gradient, history, factor[:, None, None] * scale)
        decrement = -0.5 * _dot(gradient, new_direction)
        direction = torch.where(keep, new_direction, direction)
        length = torch.where(accepted, 1.0, shorter)  # such a head tries again, while the others proceed
        done = (accepted & (decrement <= tolerance * value)) | (length < 1e-6)
        if done.any():
            result[active[done]], objectives[active[done]] = point[done], value[done]
            left = ~done
            active, point, gradient, value = active[left], point[left], gradient[left], value[left]
            direction, length, factor = direction[left], length[left], factor[left]
            history = [(step[left], change[left], inverse[left]) for step, change, inverse in history]
            losses = [loss for loss, kept in zip(losses, left.tolist(), strict=True) if kept]
    result[active], objectives[active] = point, value
    return objectives, rounds


def _evaluate(data: FeatureSet, losses: Sequence[Loss], decay: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """Return objectives, float64 of shape (H,), and gradients, shape (H, C, R + 1)."""
    weight, bias = point[:, :, :-1].flatten(0, 1), point[:, :, -1].flatten()
    gradient, gradient_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    objective = (0.5 * decay * point**2).sum((1, 2), dtype=torch.float64)
    for rows, labels in zip(torch.split(data.features, BLOCK_ROWS), torch.split(data.targets, BLOCK_ROWS), strict=True):
        share = len(rows) / len(data.features)
        flat = torch.addmm(bias, rows, weight.T)  # (B, H C)
        logits = flat.view(len(rows), *point.shape[:2]).transpose(0, 1).contiguous().requires_grad_()  # (H, B, C)
        with torch.enable_grad():
            values = torch.stack([loss(z, labels) for loss, z in zip(losses, logits.unbind(), strict=True)]) * share
            (slope,) = torch.autograd.grad(values.sum(), logits)
        objective += values.detach()
        slope = slope.transpose(0, 1).reshape(flat.shape)
        gradient.addmm_(slope.T, rows)
        gradient_bias += slope.sum(0)
    full = torch.cat([gradient.view(*point.shape[:2], -1), gradient_bias.view(*point.shape[:2], 1)], 2)
    return objective, full.addcmul_(decay, point)


def _direction(gradient: Tensor, history: Sequence[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """Return the descent directions of all heads by the two loops of L-BFGS (Nocedal 1980)."""
    q, factors = gradient.clone(), []
    for step, change, inverse in reversed(history):
        alpha = inverse * _dot(step, q)
        q.sub_(alpha[:, None, None] * change)
        factors.append(alpha)
    q.mul_(scale)
    for (step, change, inverse), alpha in zip(history, reversed(factors), strict=True):
        q.add_((alpha - inverse * _dot(change, q))[:, None, None] * step)
    return q.neg_()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))
