"""Steps of the module on a simulated GPU, see test_devices.py."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchmetrics import Metric

from lt_cb.losses import (
    DistributionBalancedLoss,
    EffectiveNumber,
    FocalLoss,
    LADELoss,
    LDAMLoss,
    Loss,
    SoftmaxLoss,
)
from lt_cb.models import ClassifierRetraining
from lt_cb.module import LongTailedClassifier

COUNTS = [134, 86, 56, 36, 23, 15, 9, 6, 4, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: SoftmaxLoss(COUNTS), {}),
        (lambda: FocalLoss(COUNTS, weighting=EffectiveNumber(0.99)), {}),
        (lambda: LDAMLoss(COUNTS), {}),
        (lambda: LADELoss(COUNTS), {"second_stage": ClassifierRetraining()}),
        (lambda: FocalLoss(COUNTS, weighting=EffectiveNumber(0.99), weight_of="label"), {"multi_label": True}),
        (lambda: DistributionBalancedLoss(COUNTS, 200), {"multi_label": True}),
    ],
    ids=["softmax", "cb_focal", "ldam", "lade_crt", "several_labels", "distribution_balanced"],
)
def test_steps_stay_on_the_device_without_waiting(make: Callable[[], Loss], options: dict, dtype: torch.dtype) -> None:
    model = LongTailedClassifier(make(), "resnet20", in_channels=1, **options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():  # like a strategy, but fake parameters cannot be swapped
            for name, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is not None:
                    moved = value.data.to("cuda")
                    own = isinstance(value, torch.nn.Parameter)
                    setattr(module, name, torch.nn.Parameter(moved, value.requires_grad) if own else moved)
            for name, value in module.metric_state.items() if isinstance(module, Metric) else ():
                setattr(module, name, value if isinstance(value, list) else value.to("cuda"))
        images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8, device="cuda")
        targets = torch.zeros(4, dtype=torch.int64, device="cuda")
        if model.multi_label:
            targets = torch.zeros(4, len(COUNTS), dtype=torch.int8, device="cuda")
            model.thresholds = [0.5] * len(COUNTS)
        batch = images, targets
        if dtype != torch.float32:  # like autocast
            model.backbone.register_forward_hook(lambda module, inputs, logits: logits.to(dtype))
        assert model.training_step(batch, 0).device.type == "cuda"
        model.eval()
        for step in (model.validation_step, model.test_step):
            assert {value.device.type for value in step(batch, 0).values()} == {"cuda"}
        assert {value.device.type for value in model.predict_step(batch, 0)} == {"cuda"}
        for state in model.evaluator.metric_state.values():
            assert {value.device.type for value in (state if isinstance(state, list) else [state])} == {"cuda"}
