"""The operator that trains on a CPU, a block of queries at a time, where scores are as large as a float32 can be."""

import torch

from kpt_lab.kernels.flashlight import explain, flashlight


def padded(q, k, v, bias):
    return torch.softmax(q @ k.mT / 4 + bias, -1) @ v


def test_rows_of_the_smallest_number_are_uniform():
    torch.manual_seed(0)
    bias = torch.zeros(9, 11)
    bias[:, 7:] = torch.finfo(torch.float32).min
    bias[4] = torch.finfo(torch.float32).min  # a row without keys: eager gives the mean of all values
    inputs = [torch.randn(2, n, 16).requires_grad_() for n in (9, 11, 11)]
    fused = flashlight.apply(padded, (*inputs, bias))
    assert explain(fused).entries[0].lowering.kernel == "blocked"
    out, exact = fused(*inputs, bias), padded(*inputs, bias)
    torch.testing.assert_close(out, exact)
    torch.testing.assert_close(out[:, 4], inputs[2].mean(1))
    upstream = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, inputs, upstream), torch.autograd.grad(exact, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other)
