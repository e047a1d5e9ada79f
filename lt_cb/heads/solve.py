"""Linear heads solved to convergence, many at once, for any loss and weighting."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lt_cb.data.cache import cache_folder, reserve
from lt_cb.errors import InputError, check_at_least
from lt_cb.hardware import available_memory
from lt_cb.losses import Loss

HISTORY = 10  # pairs of steps and gradient differences that L-BFGS keeps
NULL = 1e-9  # variance, as a share of the largest, that float32 features do not have
SUFFICIENT = 1e-4  # Armijo: part of the decrease that the gradient promises
ROWS = 4096  # a block of features that stays in the processor's cache between the two products
COLUMNS = 4096  # logits an image that are evaluated at once, over all heads
MAX_ROUNDS = 1000


def empty(*shape: int) -> Tensor:
    """Return a float32 tensor of a shape, not filled: in memory, or in a file that is gone with it.

    It is in a file of the cache's folder where it would take more than half of the memory that is free: whoever goes
    through it block by block then needs no more memory than for a block.

    Raises:
        InputError: if there is no room for it on the disk either.
    """
    size = 4 * math.prod(shape)
    if size <= available_memory() / 2:
        return torch.empty(shape)
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, size)
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
    except OSError as error:
        raise InputError(
            f"features of {size / 2**30:.1f} GiB fit neither in the memory that is free nor in '{folder}' "
            f"({error.strerror}): make room there, or set LT_CB_CACHE to another folder."
        ) from error


def rows_of(features: Tensor, rows: Tensor) -> Tensor:
    """Return some features, float32 of shape (M, D), in memory or not (`empty`).

    Args:
        features: float32, shape (N, D).
        rows: which of them, int64 of shape (M,), or bool of shape (N,).
    """
    chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
    copied = empty(len(chosen), features.shape[1])
    for part, block in zip(torch.split(copied, ROWS), torch.split(chosen, ROWS), strict=True):
        torch.index_select(features, 0, block, out=part)
    return copied


@dataclass
class Basis:
    """Standardised features along the principal axes of the training images, float32 of shape (N, R).

    A rotation leaves the L2 penalty as it is, and the curvature of the loss is nearly diagonal along these axes, which
    is why heads converge in tens of steps there. Axes without variance are left out: no solution has a part in them.

    Attributes:
        mean: of the features, shape (D,).
        scale: standard deviation of the features, 1 for a constant one, shape (D,).
        axes: orthonormal, shape (D, R), a column an axis.
        variances: of the standardised features along the axes, shape (R,).
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor
    variances: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Basis":
        """Return the basis of training features, floating of shape (N, D).

        Raises:
            InputError: if there are none, or they are not finite.
        """
        if features.ndim != 2 or not features.numel():
            raise InputError(f"features have shape {tuple(features.shape)}, but must be (images, features), not empty.")
        width = features.shape[1]
        total, products = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        for block in torch.split(features, ROWS):
            total = total + block.double().sum(0)
        mean = total / len(features)
        for block in torch.split(features, ROWS):
            centred = (block.double() - mean).float()
            products = products + (centred.T @ centred).double()
        covariance = products / len(features)
        if not covariance.isfinite().all():
            raise InputError("features are not finite: the backbone yields NaN or infinite values, choose another.")
        scale = covariance.diagonal().sqrt()
        scale = torch.where(scale > 1e-6 * mean.abs().clamp(min=1e-6), scale, 1.0)
        variances, axes = torch.linalg.eigh(covariance / scale.outer(scale))
        kept = variances > NULL * variances[-1]
        return cls(mean.float(), scale.float(), axes[:, kept].float(), variances[kept].float())

    def project(self, features: Tensor) -> Tensor:
        """Return features, floating of shape (N, D), standardised and rotated, float32 of shape (N, R)."""
        projected = empty(len(features), self.axes.shape[1])
        for rows, block in zip(torch.split(projected, ROWS), torch.split(features, ROWS), strict=True):
            torch.mm((block.float() - self.mean) / self.scale, self.axes, out=rows)
        return projected

    def unproject(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias, shapes (C, D) and (C,), of the same head for features as the backbone has them."""
        weight = (weight.double() @ self.axes.double().T) / self.scale.double()
        return weight.float(), (bias.double() - weight @ self.mean.double()).float()


class Heads(NamedTuple):
    """H solved heads.

    Attributes:
        weight: shape (H, C, D).
        bias: shape (H, C).
        objective: float64 of shape (H,).
        rounds: evaluations of the objective that all heads took together.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    rounds: int

    def logits(self, features: Tensor) -> Tensor:
        """Return logits of shape (H, N, C) for features of shape (N, D)."""
        flat = features @ self.weight.flatten(0, 1).T + self.bias.flatten()
        return flat.view(len(features), *self.bias.shape).transpose(0, 1)


def solve_heads(
    features: Tensor,
    targets: Tensor,
    losses: Sequence[Loss],
    strengths: Sequence[float],
    variances: Tensor | None = None,
    start: Heads | None = None,
    tolerance: float = 1e-5,
) -> Heads:
    r"""Minimise the objectives of H linear heads, each with a loss and an L2 strength of its own.

    .. math:: \min_{W, b} L(X W^T + b, y) + \tfrac{\lambda}{2} \|W\|^2

    L is the mean of the weighted losses; the bias is not penalised. It is L-BFGS over all heads in step: each round
    multiplies the features once with the weights of all heads, of which those that have converged drop out. A head has
    converged once its Newton decrement, as L-BFGS estimates it, is below ``tolerance`` times the objective.

    Args:
        features: float32, shape (N, D), best as `Basis.project` returns them.
        targets: class indices, int64 of shape (N,), or of several labels int8 of shape (N, C).
        losses: H losses of C classes.
        strengths: H values of lambda, each at least 0 and finite.
        variances: of the columns of the features, shape (D,), which scale the first step; None takes 1.
        start: heads to start from, as those of a stronger lambda; None starts from zero.
        tolerance: of the estimated relative gap to the optimum, above 0. The gap itself has been seen to be up to
            60 times as large: 0.06 % at the default.

    Raises:
        InputError: if a lambda is negative, or a loss does not go with a linear head and a mean over images.
    """
    for strength, loss in zip(strengths, losses, strict=True):
        check_at_least("lambda", strength, 0, "0 does not regularise.")
        check_loss(loss)
    if len(features) != len(targets):
        raise InputError(f"there are {len(features)} features, but {len(targets)} targets: give one a feature.")
    num_classes, width = len(losses[0].class_counts), features.shape[1]
    at_once = max(COLUMNS // num_classes, 1)
    if len(losses) > at_once:
        parts = []
        for i in range(0, len(losses), at_once):
            own = slice(i, i + at_once)
            begin = None if start is None else Heads(start.weight[own], start.bias[own], start.objective[own], 0)
            parts.append(solve_heads(features, targets, losses[own], strengths[own], variances, begin, tolerance))
        weights, biases, objectives = map(torch.cat, list(zip(*(part[:3] for part in parts), strict=True)))
        return Heads(weights, biases, objectives, max(part.rounds for part in parts))
    point = torch.zeros(len(losses), num_classes, width + 1)
    if start is None:
        for h, loss in enumerate(losses):
            point[h, :, -1] = loss.prior_bias or 0.0
    else:
        point[:, :, :-1], point[:, :, -1] = start.weight, start.bias
    decay = torch.tensor([float(strength) for strength in strengths])[:, None].expand(-1, width + 1).clone()
    decay[:, -1] = 0.0
    spread = torch.ones(width + 1)
    if variances is not None:
        spread[:-1] = variances
    scale = 1.0 / (spread / num_classes + decay + 1e-6)  # inverse curvature, (H, D + 1): what L-BFGS starts from
    objective, rounds = _minimise(features, targets, list(losses), decay[:, None], scale[:, None], point, tolerance)
    return Heads(point[:, :, :-1].contiguous(), point[:, :, -1].contiguous(), objective, rounds)


def check_loss(loss: Loss) -> None:
    """Refuse a loss whose mean over all images is no sum over images of linear logits."""
    name = type(loss).__name__
    if loss.normalized_classifier:
        raise InputError(f"{name} needs cosines as logits, but heads are linear: choose a loss of plain logits.")
    if loss.reduction != "mean":
        raise InputError(f"{name} has reduction '{loss.reduction}', but heads are solved for 'mean'.")


def _evaluate(
    features: Tensor, targets: Tensor, losses: Sequence[Loss], decay: Tensor, point: Tensor
) -> tuple[Tensor, Tensor]:
    """Return objectives, float64 of shape (H,), and gradients, shape (H, C, D + 1)."""
    weight, bias = point[:, :, :-1].flatten(0, 1), point[:, :, -1].flatten()
    gradient = torch.zeros_like(weight)
    gradient_bias = torch.zeros_like(bias)
    objective = (0.5 * decay * point**2).sum((1, 2), dtype=torch.float64)
    for rows, labels in zip(torch.split(features, ROWS), torch.split(targets, ROWS), strict=True):
        share = len(rows) / len(features)
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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


@torch.no_grad()
def _minimise(
    features: Tensor,
    targets: Tensor,
    losses: list[Loss],
    decay: Tensor,
    scale: Tensor,
    result: Tensor,
    tolerance: float,
) -> tuple[Tensor, int]:
    """Minimise from ``result``, in place; return objectives, float64 of shape (H,), and rounds.

    A head whose step does not decrease its objective enough tries a shorter one in the next round, in which the others
    go on: a round is one evaluation of all heads, whatever each of them does with it.
    """
    active = torch.arange(len(losses))
    objectives = torch.zeros(len(losses), dtype=torch.float64)
    point = result.clone()
    value, gradient = _evaluate(features, targets, losses, decay, point)
    history: list[tuple[Tensor, Tensor, Tensor]] = []  # steps, gradient differences, 1 / their product or 0: no pair
    factor = torch.ones(len(losses))  # of the inverse curvature
    direction, length = -scale * gradient, torch.ones(len(losses))
    rounds = 1
    while losses and rounds < MAX_ROUNDS:
        rounds += 1
        slope = _dot(gradient, direction)
        trial = point + length[:, None, None] * direction
        new_value, new_gradient = _evaluate(features, targets, losses, decay, trial)
        # rounding of float32 sums: near the optimum a decrease cannot be seen
        noise = 1e-7 * value.abs()
        accepted = new_value <= value + SUFFICIENT * (length * slope).double() + noise
        keep = accepted[:, None, None]
        step, change = trial - point, new_gradient - gradient
        product, square = _dot(step, change), _dot(change, scale * change)
        usable = accepted & (product > 1e-10 * _dot(step, step))
        history = history[-HISTORY + 1 :]
        history.append((step, change, torch.where(usable, 1.0 / product, 0.0)))
        factor = torch.where(usable, product / square.clamp(min=1e-30), factor)
        # minimum of the parabola through both values and the slope, no shorter than a tenth
        fall = (new_value - value).float() - length * slope
        shorter = (-0.5 * slope * length**2 / fall).clamp(0.1 * length, 0.5 * length)
        shorter = torch.where(shorter.isfinite(), shorter, 0.1 * length)
        point, gradient = torch.where(keep, trial, point), torch.where(keep, new_gradient, gradient)
        value = torch.where(accepted, new_value, value)
        ahead = _direction(gradient, history, factor[:, None, None] * scale)
        decrement = -0.5 * _dot(gradient, ahead)
        direction = torch.where(keep, ahead, direction)
        length = torch.where(accepted, 1.0, shorter)
        done = (accepted & (decrement <= tolerance * value)) | (length < 1e-6)
        if done.any():
            result[active[done]], objectives[active[done]] = point[done], value[done]
            left = ~done
            active, point, gradient, value = active[left], point[left], gradient[left], value[left]
            direction, length, factor = direction[left], length[left], factor[left]
            decay, scale = decay[left], scale[left]
            history = [(s[left], y[left], r[left]) for s, y, r in history]
            losses = [loss for loss, on in zip(losses, left.tolist(), strict=True) if on]
    result[active], objectives[active] = point, value
    return objectives, rounds


def _direction(gradient: Tensor, history: Sequence[tuple[Tensor, Tensor, Tensor]], scale: Tensor) -> Tensor:
    """Return L-BFGS's descent direction by the two loops of Nocedal 1980, for all heads at once."""
    q, factors = gradient.clone(), []
    for step, change, inverse in reversed(history):
        alpha = inverse * _dot(step, q)
        q.sub_(alpha[:, None, None] * change)
        factors.append(alpha)
    q.mul_(scale)
    for (step, change, inverse), alpha in zip(history, reversed(factors), strict=True):
        q.add_((alpha - inverse * _dot(change, q))[:, None, None] * step)
    return q.neg_()


def solve_at(
    features: Tensor,
    targets: Tensor,
    loss: Loss,
    strength: float,
    strengths: Sequence[float],
    variances: Tensor | None = None,
    tolerance: float = 1e-5,
) -> Heads:
    """Return one head at one L2 strength, by way of the stronger of some others; the rest is as of `solve_path`."""
    path = [strength, *(value for value in strengths if value > strength)]
    return solve_path(features, targets, [loss], path, variances, tolerance)[strength]


def solve_path(
    features: Tensor,
    targets: Tensor,
    losses: Sequence[Loss],
    strengths: Sequence[float],
    variances: Tensor | None = None,
    tolerance: float = 1e-5,
) -> dict[float, Heads]:
    """Solve every loss at every L2 strength, each from the solution at the next stronger one.

    Args:
        features: as of `solve_heads`, like all that is not said here.
        targets: as of `solve_heads`.
        losses: L losses.
        strengths: distinct values of lambda, in any order.
        variances: of the columns of the features.
        tolerance: relative gap to the optimum.

    Returns:
        L heads for each strength.
    """
    heads: Heads | None = None
    path = {}
    for strength in sorted(set(strengths), reverse=True):
        each = [strength] * len(losses)
        path[strength] = heads = solve_heads(features, targets, losses, each, variances, heads, tolerance)
    return path
