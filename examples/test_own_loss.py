import torch
from own_loss import ShiftedSoftmax
from torch.autograd import gradcheck

COUNTS = [100, 10, 1]


def test_value_is_the_formula():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 0])
    n = torch.tensor(COUNTS)
    p = n * logits.exp() / (n * logits.exp()).sum(1, keepdim=True)
    expected = -p[range(5), targets].log().mean()
    value = ShiftedSoftmax(COUNTS)(logits, targets)
    torch.testing.assert_close(value, expected)


def test_gradient_is_right_and_finite():
    loss, targets = ShiftedSoftmax(COUNTS), torch.tensor([0, 2])
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda z: loss(z, targets), logits)
    large = torch.tensor([[1e4, 0, -1e4]], requires_grad=True)
    loss(large, torch.tensor([2])).backward()
    assert large.grad.isfinite().all()
