"""A rewritten graph computes no tensor over queries and keys: the only ones are those that the caller passed."""

import pytest
import torch
from corpus import Idiom
from idioms import idioms
from test_corpus import UNMATCHED

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import lower, match
from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead

EVERY = 4  # of the corpus one in so many: each is captured anew
FROM_PAIRS = {"PairBias", "TriangleRows"}  # they project a tensor of pairs that the caller passed
MASKED = ("causal_tril", "documents_from_separators", "window", "BucketsOfDistance", "prefix_lm", "dilated", "alibi")
CHOSEN = [x for i, x in enumerate(idioms) if (i % EVERY == 0 or x.name in MASKED) and x.name not in FROM_PAIRS]


def rewritten_graphs(idiom: Idiom):
    """The graphs of an idiom after lowering, each with the extents of its scores, batch and heads left out."""
    fn, args = idiom.make(0, torch.float32)
    found = []

    def backend(graph_module, inputs):
        try:
            graph = functional_form(graph_module, inputs)
        except Unsupported:
            return graph_module
        drafts, _ = match.find(graph)
        extents = []
        for draft in drafts:
            attention = draft.build()
            extents.append((extent(attention.parts[0].query), extent(attention.parts[0].key)))
            lower.replace(graph, attention, options=lower.Options(measure=False))
        remove_dead(graph)
        found.append((graph, extents))
        return graph_module

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(fn, backend=backend)(*args)
    return found


def extent(operand):
    """The product of the extents that are its length."""
    shape = operand.node.meta["val"].shape
    return int(torch.tensor([shape[dim] for dim in operand.dims[2]]).prod())


def made_from(node):
    """The tensor that a node is a view or a cast of."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


@pytest.mark.parametrize("idiom", CHOSEN, ids=lambda idiom: idiom.name)
def test_no_tensor_over_queries_and_keys_is_computed(idiom):
    found = rewritten_graphs(idiom)
    told_apart = [
        (graph, queries, keys)
        for graph, extents in found
        for queries, keys in extents
        if min(queries, keys) >= 5 and not {queries, keys} & {16, 48}
    ]
    if idiom.name in UNMATCHED:
        pytest.skip("left as it is, with its scores")
    assert any(extents for _, extents in found)
    if not told_apart:
        pytest.skip("its lengths can't be told from a width or a number of heads")
    for graph, queries, keys in told_apart:
        for node in graph.graph.nodes:
            held = node.meta.get("val")
            if not isinstance(held, torch.Tensor) or node.op == "placeholder":
                continue
            shape = list(held.shape)
            pairs = queries in shape and keys in (shape[: shape.index(queries)] + shape[shape.index(queries) + 1 :])
            assert not pairs or made_from(node).op in ("placeholder", "get_attr"), f"{node.format_node()} {shape}"
