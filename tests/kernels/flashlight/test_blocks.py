"""Block masks from bounds: the blocks of torch's create_block_mask, never one too few, and kept while nothing changed."""

import gc
import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sites import CAUSAL, B, H, K, Q, both, dilated, either, evaluate, op, prefix, window
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as flex

from kpt_lab.kernels.flashlight import blocks
from kpt_lab.kernels.flashlight.expression import Load
from kpt_lab.kernels.flashlight.prologue import hoist

BLOCK = blocks.BLOCK


def node(value, name="tensor"):
    found = fx.Graph().placeholder(name)
    found.meta["val"] = value
    return found


def dense(mask, sizes, nodes=()):
    """The mask at every place, by the oracle's own evaluation."""
    places = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(sizes)]
    found = evaluate(mask, dict(zip("bhqk", places, strict=True)), {n: n.meta["val"] for n in nodes}, None)
    return torch.as_tensor(found).expand(sizes)


def exact(mask, sizes, nodes=()):
    """Full and partial blocks as create_block_mask counts them: padded with places that are not attended."""
    found = dense(mask, sizes, nodes)
    rows, columns = (-(-n // BLOCK) for n in sizes[2:])
    padded = torch.zeros(*sizes[:2], rows * BLOCK, columns * BLOCK, dtype=torch.bool)
    padded[:, :, : sizes[2], : sizes[3]] = found
    tiles = padded.view(*sizes[:2], rows, BLOCK, columns, BLOCK).transpose(3, 4)
    full = tiles.all(-1).all(-1)
    return full, tiles.any(-1).any(-1) & ~full


def built(mask, sizes):
    """Full and partial blocks from the builder's tensors, with the builder; the transposed tensors must say the same."""
    expression, nodes = blocks.slotted(mask)
    builder = blocks.Builder(expression, torch.device("cpu"))
    made = builder(*sizes, *(n.meta["val"] for n in nodes))
    names = dict(zip((*blocks.NAMES, *blocks.TRANSPOSED), made, strict=True))
    rows, columns = (-(-n // BLOCK) for n in sizes[2:])

    def spread(prefix, across):
        count, index = names[f"{prefix}_num_blocks"], names[f"{prefix}_indices"].long()
        assert count.dtype == names[f"{prefix}_indices"].dtype == torch.int32
        used = torch.arange(across) < count[..., None]
        assert (index[..., 1:] > index[..., :-1])[used[..., 1:]].all()
        return torch.zeros(index.shape, dtype=torch.int32).scatter_add_(-1, index, used.int()).bool()

    full, partial = spread("full_kv", columns), spread("kv", columns)
    assert torch.equal(spread("full_q", rows).mT, full)
    assert torch.equal(spread("q", rows).mT, partial)
    return full.expand(*sizes[:2], rows, columns), partial.expand(*sizes[:2], rows, columns), builder


DOCUMENTS = node(torch.tensor([[0] * 150 + [3] * 20 + [7] * 330, [1] * 500]), "documents")
REAL = node(torch.arange(500) < torch.tensor([[500], [130]]), "real")
SEEN = node(torch.rand(2, 3, 500, 400, generator=torch.Generator().manual_seed(0)) > 0.5, "seen")
TABLE = node(torch.rand(1000, generator=torch.Generator().manual_seed(0)) > 0.5, "table")
TIMES = node(torch.linspace(0, 1, 500).double(), "times")
SAME = op("eq", Load(DOCUMENTS, (B, Q)), Load(DOCUMENTS, (B, K)))
CASES = {
    "causal": (CAUSAL, (1, 1, 500, 500)),
    "causal, more keys": (op("ge", op("add", Q, 300), K), (1, 1, 200, 500)),
    "strictly causal": (op("gt", Q, K), (1, 1, 500, 500)),
    "window": (window(200), (1, 1, 500, 600)),
    "both sides": (op("le", op("abs", op("sub", Q, K)), 100), (1, 1, 500, 500)),
    "prefix": (prefix(200), (1, 1, 500, 500)),
    "dilated": (dilated(2), (1, 1, 500, 500)),
    "widely dilated": (dilated(300), (1, 1, 500, 500)),
    "document": (both(CAUSAL, SAME), (2, 1, 500, 500)),
    "document, both ways": (SAME, (2, 1, 500, 500)),
    "not document": (op("logical_not", SAME), (2, 1, 500, 500)),
    "padding": (Load(REAL, (B, K)), (2, 1, 500, 500)),
    "padding of both": (both(Load(REAL, (B, K)), Load(REAL, (B, Q))), (2, 1, 500, 500)),
    "chunks": (op("eq", op("floor_divide", Q, 200), op("floor_divide", K, 200)), (1, 1, 500, 500)),
    "by head": (op("lt", op("sub", Q, K), op("mul", op("add", H, 1), 100)), (1, 3, 500, 500)),
    "times": (op("ge", Load(TIMES, (Q,)), Load(TIMES, (K,))), (1, 1, 500, 500)),
    "chosen": (op("where", op("lt", K, 128), Load(REAL, (B, K)), CAUSAL, dtype=torch.bool), (2, 1, 500, 500)),
    "seen": (both(Load(SEEN, (B, H, Q, K)), op("lt", K, 256)), (2, 3, 500, 400)),
    "table": (Load(TABLE, (op("add", op("sub", Q, K), 499),)), (1, 1, 500, 500)),
    "one query": (op("le", K, op("add", Q, 300)), (1, 1, 1, 500)),
}
NODES = (DOCUMENTS, REAL, SEEN, TABLE, TIMES)


@pytest.mark.parametrize("name", CASES)
def test_the_blocks_are_exactly_those_of_the_mask(name):
    mask, sizes = CASES[name]
    full, partial, builder = built(mask, sizes)
    wanted = exact(mask, sizes, NODES)
    assert torch.equal(full, wanted[0])
    assert torch.equal(partial, wanted[1])
    assert bool(builder.evaluated) == (name in ("seen", "table"))


def test_torch_finds_the_same_blocks():
    full, partial, _ = built(both(CAUSAL, SAME), (2, 1, 500, 500))
    documents = DOCUMENTS.meta["val"]
    made = flex.create_block_mask(
        lambda b, h, q, k: (q >= k) & (documents[b, q] == documents[b, k]), 2, 1, 500, 500, device="cpu"
    )
    assert torch.equal(full.sum(-1), made.full_kv_num_blocks)
    assert torch.equal(partial.sum(-1), made.kv_num_blocks)


numbers = st.integers(-3, 300)
atoms = st.one_of(
    st.just(Q), st.just(K), st.just(op("sub", Q, K)), st.just(op("add", Q, K)), st.builds(lambda n: op("remainder", op("sub", K, Q), n), st.integers(1, 200)),
    st.builds(lambda n: op("floor_divide", Q, n), st.integers(1, 200)), st.just(op("abs", op("sub", Q, K))), st.just(op("mul", Q, K)),
    st.just(op("minimum", Q, K)), st.just(op("neg", K)),
)  # fmt: skip
comparisons = st.builds(
    lambda name, a, n: op(name, a, n), st.sampled_from(("ge", "gt", "le", "lt", "eq", "ne")), atoms, numbers
)
pairs = st.builds(lambda name, a, b: op(name, a, b), st.sampled_from(("ge", "lt", "eq")), atoms, atoms)
masks = st.recursive(
    st.one_of(comparisons, pairs),
    lambda inner: st.one_of(
        st.builds(both, inner, inner), st.builds(either, inner, inner), st.builds(lambda a: op("logical_not", a), inner),
        st.builds(lambda a, b, c: op("where", a, b, c, dtype=torch.bool), inner, inner, inner),
    ),
    max_leaves=5,
)  # fmt: skip


@given(masks, st.integers(1, 300), st.integers(1, 300))
def test_no_block_is_left_out_and_none_is_full_that_is_not(mask, queries, keys):
    sizes = (1, 1, queries, keys)
    full, partial, _ = built(mask, sizes)
    wanted_full, wanted_partial = exact(mask, sizes)
    assert (wanted_full | wanted_partial | ~full & ~partial | partial).all()
    assert not (full & ~wanted_full).any()
    assert ((wanted_full | wanted_partial) <= (full | partial)).all()


def test_a_nan_leaves_its_blocks_partial():
    times = TIMES.meta["val"].clone()
    times[300] = torch.nan
    mask = op("ge", Load(node(times), (Q,)), Load(node(times), (K,)))
    full, partial, _ = built(mask, (1, 1, 500, 500))
    assert partial[0, 0, 2].all()
    assert not full[0, 0, 2].any()


# ---- made before the graph, and kept


def graph_of(mask, *captured):
    """A graph whose only work is a block mask, its fake inputs, and its prologue."""
    mode = FakeTensorMode()
    graph, root = fx.Graph(), torch.nn.Module()
    inputs = [graph.placeholder(f"captured_{i}") for i in range(len(captured))]
    for given_node, x in zip(inputs, captured, strict=True):
        given_node.meta["val"] = mode.from_tensor(x)
    expression, nodes = blocks.slotted(mask(*inputs))
    root.add_module("builder", blocks.Builder(expression, torch.device("cpu")))
    made = graph.call_module("builder", (2, 1, 300, 300, *nodes))
    graph.output((graph.call_function(operator.getitem, (made, 0)),))
    gm = fx.GraphModule(root, graph)
    fakes = [n.meta["val"] for n in inputs]
    (prologue,), outputs = hoist(gm, fakes, mode, lambda module, _: module)
    assert [n.op for n in gm.graph.nodes] == ["placeholder"] * (len(captured) + 8) + ["output"]
    assert len(outputs) == 8
    return prologue


def same_document(documents):
    return op("eq", Load(documents, (B, Q)), Load(documents, (B, K)))


def test_a_block_mask_is_kept_while_its_tensors_are_the_same_at_the_same_version():
    documents = torch.arange(600).view(2, 300) // 100
    prologue = graph_of(same_document, documents)
    first = prologue([documents])
    assert prologue([documents])[1] is first[1]
    assert (prologue.made, prologue.found) == (1, 1)
    documents.zero_()
    assert not torch.equal(prologue([documents])[2], first[2])
    prologue([documents.clone()])
    assert prologue.made == 3
    del first
    gc.collect()
    prologue([documents])
    assert (prologue.made, prologue.found) == (3, 2)


def test_tensors_of_inference_mode_are_never_kept():
    prologue = graph_of(same_document, torch.zeros(2, 300, dtype=torch.int64))
    with torch.inference_mode():
        documents = torch.zeros(2, 300, dtype=torch.int64)
        prologue([documents])
        prologue([documents])
    assert (prologue.made, prologue.found) == (2, 0)


def test_a_mask_without_tensors_is_made_once():
    prologue = graph_of(lambda _: CAUSAL, torch.zeros(1))
    prologue([torch.zeros(1)])
    prologue([torch.ones(1)])
    assert (prologue.made, prologue.found) == (1, 1)
