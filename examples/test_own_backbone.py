import pytest
import torch
from own_backbone import small_cnn

from lt_cb.models import last_linear


@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_of_each_class_and_a_gradient_in_each_layer(in_channels):
    network = small_cnn(num_classes=5, in_channels=in_channels)
    logits = network(torch.randn(4, in_channels, 32, 32))
    assert logits.shape == (4, 5)
    logits.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_losses_and_second_stages_find_the_classifier():
    assert last_linear(small_cnn(5), num_classes=5) is not None
