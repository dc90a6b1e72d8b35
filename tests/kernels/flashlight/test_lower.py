"""What replaces an attention: numbers of each lowering against float64, in the layouts that graphs have, and what is refused."""

import pytest
import torch
from sites import BHLD, BLHD, CAUSAL, B, H, K, Q, S, Site, both, dilated, op, prefix, real, window
from torch._dynamo.backends.debugging import aot_eager

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import lower, regions
from kpt_lab.kernels.flashlight.expression import Constant, Load

FLOAT = torch.float32


def lowered(site, compiler=None, **options):
    """The site's graph after lowering, as a callable, and what the lowering says."""
    inputs = [x.clone().requires_grad_() if options.get("training") and x.is_floating_point() else x for x in site.inputs]
    done = lower.replace(site.gm, site.attention, options=lower.Options(**options))
    site.gm.graph.eliminate_dead_code()
    site.gm.graph.lint()
    site.gm.recompile()
    with torch.set_grad_enabled(bool(options.get("training"))):
        return regions.finish(site.gm, inputs, compiler), inputs, done


def right(site, tolerance=2e-6, **options):
    """Run a lowered site and compare; gives the lowering."""
    call, inputs, done = lowered(site, **options)
    (out,) = call(*inputs)
    wanted = site.oracle()
    assert out.shape == site.attention.output.meta["val"].shape
    assert out.dtype == site.attention.output.meta["val"].dtype
    torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    return done


def qkv(*shape, keys=None, heads=None, width=None):
    batch, h, length, d = shape
    heads, keys = heads or h, keys or length
    return torch.randn(shape), torch.randn(batch, heads, keys, d), torch.randn(batch, heads, keys, width or d)


def documents(batch, length):
    return torch.randint(0, 3, (batch, length)).sort(-1).values


def same(tensor):
    return op("eq", Load(tensor, (B, Q)), Load(tensor, (B, K)))


def capped(tensor=None):
    return op("mul", op("tanh", op("div", S, 2.0, dtype=FLOAT), dtype=FLOAT), 2.0, dtype=FLOAT)


# ---- library kernels


@pytest.mark.parametrize(
    ("mask", "keys", "reason"),
    [
        (None, 53, "every query attends every key"), (CAUSAL, 37, "q ≥ k"), (CAUSAL, 53, "q ≥ k"), (op("le", K, Q), 37, "q ≥ k"),
        (op("lt", K, op("add", Q, 1)), 37, "q ≥ k"), (op("logical_not", op("gt", K, Q)), 37, "q ≥ k"),
        (op("le", K, op("add", Q, 60)), 53, "every query attends every key"),
    ],
)  # fmt: skip
def test_plain_and_causal_go_to_the_library_however_they_are_written(mask, keys, reason):
    done = right(Site(*qkv(2, 4, 37, 16, keys=keys, heads=2), parts=lambda: [{"mask": mask}]))
    assert done.kernel == "sdpa"
    assert reason in done.reason
    assert "not measured" in done.reason
    assert done.measured == {}


def test_decoding_one_query_behind_all_keys_is_plain():
    done = right(Site(*qkv(2, 4, 1, 16, keys=40), parts=lambda: [{"mask": op("le", K, op("add", Q, 39))}]))
    assert done.kernel == "sdpa"


def test_layouts_are_permuted_in_and_out():
    query, key, value = (x.transpose(1, 2).contiguous() for x in qkv(2, 4, 37, 16, heads=2, width=24))
    right(Site(query, key, value, dims=BLHD, out_dims=BLHD, parts=lambda: [{"mask": CAUSAL}]))
    right(Site(query, key, value, dims=BLHD, out_dims=BHLD))


def test_dropout_is_kept_where_the_library_has_it_and_refused_elsewhere():
    site = Site(*qkv(1, 2, 20, 16), dropout=0.5)
    call, inputs, _ = lowered(site)
    assert not torch.equal(call(*inputs)[0], call(*inputs)[0])
    with pytest.raises(Unsupported, match=r"dropped out \(p = 0.5\) and the mask is .*no fused kernel has both"):
        lowered(Site(*qkv(1, 2, 20, 16), dropout=0.5, parts=lambda: [{"mask": window(3)}]))


def test_double_precision_goes_where_it_can():
    site = Site(*(x.double() for x in qkv(1, 2, 20, 16)), parts=lambda: [{"mask": CAUSAL}])
    assert right(site, 1e-12).kernel == "sdpa"
    site = Site(*(x.double() for x in qkv(1, 2, 20, 16)), parts=lambda: [{"mask": window(4)}])
    assert right(site, 1e-12).kernel == "blocked"


# ---- FlexAttention's compiled CPU template: a few, since each compiles for seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_grouped_heads_a_window_captured_documents_and_a_softcap_through_the_template():
    parts = lambda d: [{"mask": both(window(40), same(d)), "score": capped()}]  # noqa: E731
    assert right(Site(*qkv(2, 4, 137, 16, heads=2), documents(2, 137), parts=parts)).kernel == "flex"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_empty_rows_are_as_eager_has_them_through_the_template():
    real_keys = torch.ones(2, 137, dtype=torch.bool)
    real_keys[1, :30] = False
    site = Site(*qkv(2, 2, 137, 16), real_keys, parts=lambda r: [{"mask": both(CAUSAL, Load(r, (B, K))), "fill": "finite"}])
    assert right(site).kernel == "flex"


# ---- the operator that CPUs train with


PATTERNS = {
    "window": ((), lambda: [{"mask": window(9)}]),
    "prefix": ((), lambda: [{"mask": prefix(11)}]),
    "dilated": ((), lambda: [{"mask": dilated(3)}]),
    "softcap": ((), lambda: [{"mask": CAUSAL, "score": capped()}]),
    "alibi": ((torch.rand(4),), lambda s: [{"mask": CAUSAL, "score": op("add", S, op("mul", Load(s, (H,)), real(op("sub", K, Q)), dtype=FLOAT), dtype=FLOAT)}]),
    "table": ((torch.randn(4, 300),), lambda t: [{"score": op("add", S, Load(t, (H, op("add", op("sub", Q, K), 150))), dtype=FLOAT)}]),
    "temperature": ((torch.tensor(0.3),), lambda t: [{"mask": window(9), "scale": Load(t, ())}]),
    "document": ((documents(2, 137),), lambda d: [{"mask": both(CAUSAL, same(d))}]),
    "difference": ((torch.rand(4),), lambda c: [{"mask": CAUSAL}, {"mask": window(9), "coefficient": op("neg", Load(c, (H,)), dtype=FLOAT)}]),
    "mean": ((torch.arange(137) > torch.tensor([[-1], [20]]),), lambda r: [{"mask": both(CAUSAL, Load(r, (B, K))), "fill": "finite"}]),
}  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_gradients_reach_inputs_and_captured_tensors(name):
    extra, parts = PATTERNS[name]
    site = Site(*qkv(2, 4, 137, 16, heads=2), *extra, parts=parts)
    call, inputs, done = lowered(site, training=True)
    assert "blocked" in done.kernel
    (out,) = call(*inputs)
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted = site.oracle(*exact)
    upstream = torch.randn(out.shape)
    found = torch.autograd.grad(out, [x for x in inputs if x.requires_grad], upstream)
    gradients = torch.autograd.grad(wanted, [x for x in exact if x.requires_grad], upstream.double())
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, gradients, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-6


def test_flex_s_own_operator_gives_a_captured_table_its_gradient(monkeypatch):
    monkeypatch.setattr(lower._Site, "lacking", lambda self, part: "")  # as on a CUDA device; run as mathematics here
    extra, parts = PATTERNS["table"]
    site = Site(*qkv(2, 4, 137, 16, heads=2), *extra, parts=parts)
    call, inputs, done = lowered(site, aot_eager, training=True)
    assert done.kernel == "flex"
    (out,) = call(*inputs)
    upstream = torch.randn(out.shape)
    found = torch.autograd.grad(out, inputs, upstream)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(site.oracle(*exact), exact, upstream.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_numbers_that_only_a_mask_reads_need_no_gradient(monkeypatch):
    """A causal mask kept as a float buffer, in training: Flex refuses a mask whose tensors ask for gradients."""
    monkeypatch.setattr(lower._Site, "lacking", lambda self, part: "")
    monkeypatch.setattr(lower._Site, "has_sums", True)
    kept = torch.ones(37, 37).tril()
    site = Site(*qkv(2, 4, 37, 16), kept, parts=lambda r: [{"mask": op("ne", Load(r, (Q, K)), 0)}])
    call, inputs, done = lowered(site, aot_eager, training=True)
    assert done.kernel == "flex"
    (out,) = call(*inputs)
    torch.testing.assert_close(out.double(), site.oracle(), rtol=2e-6, atol=2e-6)
    *found, none = torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    assert none is None
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for ours, theirs in zip(found, torch.autograd.grad(site.oracle(*exact).sum(), exact[:3]), strict=True):
        assert float((ours - theirs).norm()) <= 1e-5 * float(theirs.norm()) + 1e-6


def test_rows_without_keys_are_nan_where_the_fill_was_infinite_and_zero_on_request():
    hidden = torch.zeros(1, 20, dtype=torch.bool)
    parts = lambda r: [{"mask": Load(r, (B, K))}]  # noqa: E731
    call, inputs, _ = lowered(Site(*qkv(1, 2, 20, 16), hidden, parts=parts), training=True)
    assert call(*inputs)[0].isnan().all()
    call, inputs, _ = lowered(Site(*qkv(1, 2, 20, 16), hidden, parts=parts), training=True, empty_rows="zero")
    (out,) = call(*inputs)
    assert not out.any()
    assert not any(g.isnan().any() for g in torch.autograd.grad(out.sum(), inputs[:3]))


# ---- in the graph


def test_attentions_with_one_mask_share_its_blocks_and_a_refusal_leaves_the_graph_alone():
    site = Site(*qkv(1, 2, 300, 16), parts=lambda: [{"mask": window(40)}, {"mask": window(40), "coefficient": Constant(0.5)}])
    lower.replace(site.gm, site.attention, options=lower.Options(training=False))
    assert len([n for n in site.gm.graph.nodes if n.op == "call_module"]) == 1
    other = Site(*qkv(1, 2, 20, 16), parts=lambda: [{"mask": window(3)}])
    before = str(other.gm.graph)
    with pytest.raises(Unsupported, match="kernel is 'flash', which has no mask or score function"):
        lower.replace(other.gm, other.attention, options=lower.Options(kernel="flash"))
    assert str(other.gm.graph) == before


def test_an_uncompiled_flex_call_never_stays_in_a_graph_that_runs_eagerly():
    site = Site(*qkv(2, 4, 137, 16, heads=2), parts=lambda: [{"mask": window(40)}])
    call, _, _ = lowered(site)
    assert not [n for n in call.call.graph.nodes if n.target is torch.ops.higher_order.flex_attention]


@pytest.mark.parametrize("mask", [window(5), CAUSAL, prefix(3), None])
def test_flex_always_looks_for_rows_whose_first_block_of_keys_is_masked(mask):
    site = Site(*qkv(1, 2, 19, 16), parts=lambda: [{"mask": mask}])
    lower.replace(site.gm, site.attention, options=lower.Options(kernel="flex"))
    (node,) = (n for n in site.gm.graph.nodes if n.target is torch.ops.higher_order.flex_attention)
    (options,) = (x for x in node.args if isinstance(x, dict))
    assert options["ROWS_GUARANTEED_SAFE"] is False


def test_options_are_checked():
    with pytest.raises(ValueError, match="empty_rows is 'mean'; accepted are 'eager' and 'zero'"):
        lower.Options(empty_rows="mean")
    with pytest.raises(ValueError, match="kernel is 'fast'; accepted are auto, flex, cudnn"):
        lower.Options(kernel="fast")
    with pytest.raises(Unsupported, match="kernel 'cudnn' was asked for: cudnn is a CUDA kernel"):
        lowered(Site(*qkv(1, 2, 20, 16)), kernel="cudnn")
