"""Layouts in which cuDNN's backward is handed an output of another kernel."""

import itertools

import pytest
import torch

from kpt_lab.kernels import blockwise


@pytest.mark.parametrize(("order", "width"), list(itertools.product(itertools.permutations(range(3)), [4, 7])))
@pytest.mark.parametrize("part", [(slice(None), slice(None)), (slice(1, 3), slice(None)), (slice(None), slice(2, 5))])
def test_an_output_is_laid_out_as_queries_are(order, width, part):
    inverse = [order.index(i) for i in range(3)]
    sizes = (2, 3, 5)
    whole = torch.randn(*(sizes[i] for i in order), 4).permute(*inverse, 3)
    query = whole[:, part[0], part[1]]
    out = torch.randn(*query.shape[:3], width).transpose(1, 2).contiguous().transpose(1, 2)
    found = blockwise.laid_out_like(out, query)
    assert torch.equal(found, out)
    if width == 4:
        assert found.stride() == torch.empty_like(query).stride()
    assert sorted(query.stride(), reverse=True)[-1] == found.stride(3) == 1
    assert blockwise.laid_out_like(found, query) is found


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_cudnn_do_not_depend_on_whose_output_came_first(causal):
    draw = lambda: torch.randn(1, 4, 1024, 64, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    q, k, v, dout = (draw() for _ in range(4))
    out, lse = blockwise.plain_forward(q, k, v, causal, 0.125)
    wanted = blockwise.plain_backward(dout, q, k, v, out, lse, causal, 0.125)
    for layout in (out, out.transpose(1, 2).contiguous().transpose(1, 2), out):
        for mine, exact in zip(blockwise.cudnn_backward(dout, q, k, v, layout, lse, causal, 0.125), wanted, strict=True):
            assert float((mine.float() - exact.float()).norm()) <= 0.02 * float(exact.float().norm())
