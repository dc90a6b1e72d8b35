"""Attention a piece at a time is the whole attention: output and gradients, for heads that share keys and for each variant."""

import functools

import pytest
import torch

from kpt_lab.kernels import attention, headwise
from kpt_lab.kernels.attention_variants import SPECIFICATIONS, VARIANTS


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("groups", [1, 3])
def test_pieces_put_together_are_the_whole(variant, groups):
    sizes = {"batch": 2, "heads": 6, "groups": groups, "length": 37, "width": 8, "variant": variant}
    problem = attention.forward.make(device="cpu", dtype="float64", seed=0, **sizes)
    whole = SPECIFICATIONS[variant](*problem.inputs[0])
    calls = []

    def counted(*given):
        calls.append(given[0].shape[2])
        return SPECIFICATIONS[variant](*given)

    found = headwise.forward(counted, variant)(*problem.inputs[0])
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert calls == [1] * 12  # of one head each, so that 32k tokens fit


@pytest.mark.parametrize("variant", ["causal", "alibi", "document"])
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_of_shared_keys_are_summed_over_their_heads(variant, groups):
    sizes = {"batch": 2, "heads": 6, "groups": groups, "length": 29, "width": 8, "variant": variant}
    inputs = attention.forward.make(device="cpu", dtype="float64", seed=0, **sizes).inputs[0]
    upstream = torch.randn(2, 29, 6, 8, dtype=torch.float64)
    found = headwise.forward_and_backward(SPECIFICATIONS[variant], upstream, variant)(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out = SPECIFICATIONS[variant](*leaves, *inputs[3:])
    for given, wanted in zip(found, (out.detach(), *torch.autograd.grad(out, leaves, upstream)), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_what_a_specification_holds_is_cut_like_an_input():
    sizes = {"batch": 2, "heads": 4, "groups": 2, "length": 21, "width": 8, "variant": "alibi"}
    problem = attention.forward.make(device="cpu", dtype="float64", seed=0, kept=True, **sizes)
    assert isinstance(problem.fn, functools.partial)
    found = headwise.forward(problem.fn, "alibi")(*problem.inputs[0])
    torch.testing.assert_close(found, problem.fn(*problem.inputs[0]), rtol=1e-12, atol=1e-12)
