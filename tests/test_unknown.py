"""Unknown images: distances against NumPy, calibration on held-out images, checkpoints, and an unknown class."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lt_cb.errors import InputError
from lt_cb.heads.answers import fit_familiarity
from lt_cb.heads.folds import held_out_logits, repeated_folds
from lt_cb.heads.recipes import SOFTMAX, Candidate
from lt_cb.heads.solve import Basis, solve_path
from lt_cb.losses import SoftmaxLoss
from lt_cb.losses.prior import balanced_posterior
from lt_cb.metrics import auroc
from lt_cb.runs import checkpoint as checkpoints
from lt_cb.unknown import Familiarity, quantiles_of

COUNTS = [300, 60, 12]


def drawn(counts: list[int], seed: int, labels: list[int]) -> tuple[Tensor, Tensor]:
    """Return Gaussian features around corners of a simplex, which are not centred, and class indices."""
    rng, corners = np.random.default_rng(seed), 4 * np.eye(8)
    targets = np.repeat(np.arange(len(counts)), counts)
    features = 2 + corners[np.array(labels)[targets]] + rng.normal(size=(len(targets), 8))
    return torch.from_numpy(features).float(), torch.from_numpy(targets)


@pytest.fixture(scope="module")
def fitted() -> tuple[Familiarity, Tensor, Tensor, Tensor]:
    """Return the familiarity, features and targets of training images, and the weights and biases of the head."""
    features, targets = drawn(COUNTS, 0, [0, 1, 2])
    basis = Basis.fit(features)
    train, candidate = basis.project(features, targets, 3), Candidate(SOFTMAX, 0.1)
    folds = repeated_folds(targets, 3, 5, 0)
    held_out = held_out_logits(train, folds, candidate, [0.1])
    highest = balanced_posterior(SoftmaxLoss(COUNTS), held_out.logits).max(1).values
    heads = solve_path(train, [SoftmaxLoss(COUNTS)], [0.1])[0.1]
    head = torch.cat([part.view(3, -1) for part in basis.unproject(heads.weight[0], heads.bias[0])], 1)
    return fit_familiarity(features, targets, highest, folds), features, targets, head


def shares(fitted: tuple[Familiarity, Tensor, Tensor, Tensor], features: Tensor) -> Tensor:
    """Return the share of held-out images that look more familiar."""
    logits = features @ fitted[3][:, :-1].T + fitted[3][:, -1]
    return fitted[0].unknown(features, balanced_posterior(SoftmaxLoss(COUNTS), logits))


def test_distance_is_mahalanobis_on_the_unit_sphere(fitted: tuple[Familiarity, Tensor, Tensor, Tensor]) -> None:
    familiarity, features, targets, _ = fitted
    units = features.double().numpy()
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    inverse = np.linalg.pinv(np.cov(units.T, bias=True), rcond=1e-9)
    for label in range(3):
        offset = units - units[targets == label].mean(0)
        expected = np.einsum("nd,de,ne->n", offset, inverse, offset)
        found = torch.cdist(familiarity.project(features), familiarity.means[label : label + 1])[:, 0] ** 2
        assert found.numpy() == pytest.approx(expected, rel=1e-2, abs=1e-2)


def test_the_promised_share_of_known_images_is_flagged(fitted: tuple[Familiarity, Tensor, Tensor, Tensor]) -> None:
    features, targets = drawn([2000] * 3, 1, [0, 1, 2])
    values = shares(fitted, features)
    assert 0 <= values.min() <= values.max() <= 1
    for flagged in (0.1, 0.3):
        assert float((values >= 1 - flagged).float().mean()) == pytest.approx(flagged, abs=0.06)
    assert len(targets) == len(values)


def test_a_class_without_training_images_looks_less_familiar(
    fitted: tuple[Familiarity, Tensor, Tensor, Tensor],
) -> None:
    known, _ = drawn([200] * 3, 1, [0, 1, 2])
    unknown, _ = drawn([200], 2, [5])
    values = shares(fitted, torch.cat([known, unknown]))
    is_unknown = (torch.arange(800) >= 600).long()
    assert float(auroc(values[:, None], is_unknown[:, None])) > 0.9


def test_quantiles_weigh_classes_equally() -> None:
    values, targets = torch.cat([torch.zeros(900), torch.ones(100)]), torch.cat([torch.zeros(900), torch.ones(100)])
    assert float(quantiles_of(values, targets.long()).mean()) == pytest.approx(0.5, abs=1e-3)


def test_a_checkpoint_keeps_the_familiarity(fitted: tuple[Familiarity, Tensor, Tensor, Tensor]) -> None:
    state = fitted[0].state()
    loaded = checkpoints.familiarity({checkpoints.FAMILIARITY: state})
    assert loaded is not None
    assert all(torch.equal(value, state[name]) for name, value in loaded.state().items())
    assert checkpoints.familiarity({}) is None
    for damage in ({"means": state["means"][:, 1:]}, {"ranks": state["ranks"] * torch.nan}, {"centre": 3}):
        with pytest.raises(InputError, match="measure of unknown images is damaged"):
            checkpoints.familiarity({checkpoints.FAMILIARITY: {**state, **damage}})
    with pytest.raises(InputError, match="damaged"):
        checkpoints.familiarity({checkpoints.FAMILIARITY: [1.0]})
