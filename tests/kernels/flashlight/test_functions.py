"""Expressions as FX functions: the same numbers as the float64 oracle, at scalar indices and over whole blocks."""

import math

import pytest
import torch
from sites import CAUSAL, B, H, K, Q, S, evaluate, op, real
from torch import fx

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import functions
from kpt_lab.kernels.flashlight.expression import Constant, Load, Size


def node(value):
    graph = fx.Graph()
    found = graph.placeholder("tensor")
    found.meta["val"] = value
    return found


TABLE = torch.randn(3, 40)
SLOPES = torch.rand(3)
EXPRESSIONS = {
    "alibi": lambda t: op("add", S, op("mul", Load(t(SLOPES), (H,)), real(op("sub", K, Q)), dtype=torch.float32), dtype=torch.float32),
    "softcap": lambda t: op("mul", op("tanh", op("div", S, 5.0, dtype=torch.float32), dtype=torch.float32), 5.0, dtype=torch.float32),
    "table": lambda t: op("add", S, Load(t(TABLE), (H, op("add", op("sub", Q, K), 20))), dtype=torch.float32),
    "reflected": lambda t: op("sub", 1.0, op("div", 2.0, op("add", op("abs", S, dtype=torch.float32), 1.0, dtype=torch.float32), dtype=torch.float32), dtype=torch.float32),
    "where": lambda t: op("where", CAUSAL, op("mul", S, 2.0, dtype=torch.float32), op("neg", S, dtype=torch.float32), dtype=torch.float32),
    "clamped": lambda t: op("clamp", S, -0.5, 0.5, dtype=torch.float32),
    "parity": lambda t: op("add", S, real(op("remainder", op("sub", Q, K), 3)), dtype=torch.float32),
    "largest": lambda t: op("maximum", S, real(op("floor_divide", Q, 4)), dtype=torch.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_function_gives_the_expression_at_scalars_and_over_blocks(name):
    given = {}

    def captured(tensor):
        return given.setdefault(id(tensor), node(tensor))

    expression = EXPRESSIONS[name](captured)
    tensors = {n: n.meta["val"] for n in given.values()}
    function = functions.score_function(expression)
    buffers = [tensors[n] for n in function.buffers]
    places = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate((2, 3, 7, 9))]
    scores = torch.randn(2, 3, 7, 9)
    wanted = evaluate(expression, dict(zip("bhqk", places, strict=True)), tensors, scores.double())
    block = function.module(scores, *places, *buffers)
    torch.testing.assert_close(block.double().expand(2, 3, 7, 9), wanted.expand(2, 3, 7, 9), rtol=1e-5, atol=1e-6)
    for at in ((0, 0, 0, 0), (1, 2, 6, 8), (0, 1, 5, 2)):
        indices = [torch.tensor(i, dtype=torch.int32) for i in at]
        one = function.module(scores[at], *indices, *buffers)
        assert one.shape == ()
        assert math.isclose(float(one), float(wanted[at]), rel_tol=1e-5, abs_tol=1e-6)


def test_masks_are_truth_values_whatever_they_are_made_of():
    tensor = node(torch.tensor([0, 2, 0], dtype=torch.uint8))
    mask = functions.mask_function(Load(tensor, (K,)))
    found = mask.module(*(torch.zeros(()),) * 3, torch.tensor([0, 1, 2]), tensor.meta["val"])
    assert found.tolist() == [False, True, False]
    assert functions.mask_function(None).module(*[torch.tensor(1)] * 4).item() is True


def test_true_and_one_stay_apart():
    added = op("add", op("add", S, 1, dtype=torch.float32), real(Constant(True)), dtype=torch.float32)
    assert functions.score_function(added).module(torch.tensor(0.0), *[torch.tensor(0)] * 4).item() == 2.0


def test_sizes_are_numbers_among_the_buffers():
    size = node(7)
    function = functions.score_function(op("add", S, real(op("sub", Size(size), Q)), dtype=torch.float32))
    assert function.buffers == (size,)
    assert function.module(torch.tensor(1.0), *[torch.tensor(2)] * 4, 7).item() == 6.0


def test_a_gradient_reaches_a_captured_table():
    tensor = node(TABLE)
    function = functions.score_function(op("mul", S, Load(tensor, (H, K)), dtype=torch.float32))
    table = TABLE.clone().requires_grad_()
    function.module(torch.tensor(2.0), *[torch.tensor(i) for i in (0, 1, 0, 5)], table).backward()
    assert table.grad[1, 5] == 2.0
    assert table.grad.abs().sum() == 2.0


def test_what_a_mask_or_a_kernel_can_not_have_is_named():
    with pytest.raises(Unsupported, match="the mask depends on the scores"):
        functions.mask_function(op("gt", S, 0.0))
    with pytest.raises(Unsupported, match="which has no form in FlexAttention's functions"):
        functions.score_function(op("no_such_operator", S, dtype=torch.float32))
    with pytest.raises(Unsupported, match="a tensor of dtype complex64"):
        functions.check(Load(node(torch.zeros(2, dtype=torch.complex64)), (B,)))
