import pytest
import torch

from lt_cb.schedule import WarmupLinear, WarmupMultiStep


def rates(total: int, base: float = 0.1, schedule: type = WarmupMultiStep, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = schedule(optimizer, total_steps=total, **options)
    seen = []
    for _ in range(total):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_multi_step_follows_the_200_epochs_of_the_paper() -> None:
    steps = 97  # CIFAR-10 at imbalance factor 100
    for step, rate in enumerate(rates(200 * steps)):
        epoch = step / steps
        expected = 0.1 * epoch / 5 if epoch < 5 else 0.1 if epoch < 160 else 0.001 if epoch < 180 else 0.00001
        assert rate == pytest.approx(expected), epoch


def test_multi_step_scales_with_the_training_length() -> None:
    assert rates(200)[::20] == pytest.approx(rates(2000)[::200])
    balanced = rates(200, factors=[0.1, 0.01])
    assert (balanced[159], balanced[160], balanced[180]) == pytest.approx((0.1, 0.01, 0.001))
    assert rates(10, warmup=0.0, milestones=[], factors=[]) == [0.1] * 10


def test_a_resumed_schedule_may_be_longer() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = WarmupMultiStep(optimizer, total_steps=200)
    for _ in range(170):
        optimizer.step()
        scheduler.step()
    for total_steps, rate in ((200, 0.001), (2000, 0.1)):
        again = WarmupMultiStep(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), total_steps=total_steps)
        again.load_state_dict(scheduler.state_dict())
        assert again.get_lr() == [pytest.approx(rate)]


@pytest.mark.parametrize(
    "options",
    [
        {"warmup": -0.1},
        {"warmup": 1.0},
        {"milestones": [0.9, 0.8]},
        {"milestones": [0.5]},
        {"milestones": [0.5, 1.5]},
        {"factors": [0.1, -1]},
        {"warmup": 0.9},
    ],
)
def test_wrong_settings_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="milestones"):
        rates(10, **options)


def test_linear_decay_ends_at_zero() -> None:
    steps = rates(200, schedule=WarmupLinear, warmup=0.1)
    expected = torch.cat([torch.linspace(0, 0.1, 21)[:-1], torch.linspace(0.1, 0, 181)[:-1]])
    assert steps == pytest.approx(expected.tolist())
    assert rates(4, schedule=WarmupLinear, warmup=0.0) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    for warmup in (-0.1, 1.0):
        with pytest.raises(ValueError, match="warmup"):
            rates(10, schedule=WarmupLinear, warmup=warmup)
