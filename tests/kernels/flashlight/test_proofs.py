"""What is proved about masks: true at every place whenever it is said, and said of the masks that people write."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sites import CAUSAL, B, H, K, Q, both, dilated, evaluate, op, window
from test_blocks import masks
from torch import fx

from kpt_lab.kernels.flashlight import proofs
from kpt_lab.kernels.flashlight.algebra import simplify
from kpt_lab.kernels.flashlight.expression import Constant, Size


def size(value):
    node = fx.Graph().placeholder("size")
    node.meta["val"] = value
    return Size(node)


@pytest.mark.parametrize(
    ("mask", "queries", "keys", "proved"),
    [
        (None, 9, 9, True), (CAUSAL, 9, 9, True), (CAUSAL, 9, 5, True), (window(3), 9, 9, True), (window(0), 9, 9, False),
        (dilated(4), 9, 9, True), (op("gt", Q, K), 9, 9, False), (op("lt", K, Q), 9, 9, False), (op("gt", K, Q), 9, 9, False),
        (op("eq", op("floor_divide", Q, 4), op("floor_divide", K, 4)), 9, 9, True),
        (op("eq", op("floor_divide", Q, 4), op("floor_divide", K, 4)), 9, 5, False),
        (both(op("le", K, op("add", Q, size(4))), op("gt", op("add", K, 3), op("add", Q, 4))), 5, 9, True),
        (op("le", op("abs", op("sub", Q, K)), 0), 9, 9, True), (op("ge", K, op("sub", 8, Q)), 9, 9, True),
        (op("where", op("lt", op("mul", Q, K), H), op("ge", K, 0), op("ge", Q, 0), dtype=torch.bool), 9, 9, True),
    ],
)  # fmt: skip
def test_rows_are_proved_to_have_a_key_and_only_then(mask, queries, keys, proved):
    assert proofs.rows_have_keys(mask, queries, keys) is proved


def test_simplifying_keeps_the_truth():
    assert simplify(both(CAUSAL, op("ge", op("add", Q, 1), 0))) == CAUSAL
    assert simplify(op("logical_not", op("logical_not", CAUSAL))) == CAUSAL
    assert simplify(op("lt", Q, 0)) == Constant(False)
    assert simplify(op("ne", Q, Q)) == Constant(False)


def test_causal_masks_are_known_by_their_offset():
    assert proofs.is_causal(op("logical_not", op("lt", op("add", Q, size(4)), op("add", K, 4))))
    assert not proofs.is_causal(op("ge", op("add", Q, 1), K))
    assert proofs.causal_offset(op("ge", op("add", Q, 7), K)) == {(): 7}
    assert proofs.causal_offset(op("ge", op("add", Q, B), K)) is None


def test_two_nodes_of_one_symbolic_size_are_one_size():
    seen = []

    def backend(graph_module, inputs):
        symbols = [node.meta["example_value"] for node in graph_module.graph.nodes if node.op == "placeholder"]
        seen.append(next(value for value in symbols if isinstance(value, torch.SymInt)))
        return graph_module

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.zeros(9))
    (length,) = seen
    below, behind = op("le", K, op("add", Q, op("sub", size(length), 1))), op("ge", Q, op("sub", K, size(length)))
    assert proofs.attends_everywhere(below, length)
    assert proofs.causal_offset(behind) is not None
    assert proofs.is_causal(op("ge", op("sub", op("add", Q, size(length)), size(length)), K))
    assert proofs.same_size(2 * length, length + length)
    assert not proofs.same_size(length, length // 2)
    assert not proofs.attends_everywhere(op("lt", K, size(length // 2)), length // 2 + 1)


@given(masks, st.integers(1, 9), st.integers(1, 9))
def test_what_is_proved_holds_at_every_place(mask, queries, keys):
    places = {"q": torch.arange(queries)[:, None], "k": torch.arange(keys)[None]}
    held = torch.as_tensor(evaluate(mask, places, {}, None)).expand(queries, keys)
    assert not proofs.rows_have_keys(mask, queries, keys) or held.any(-1).all()
    assert not proofs.attends_everywhere(mask, keys) or held.all()
    assert not proofs.is_causal(mask) or torch.equal(held, torch.ones_like(held).tril())
