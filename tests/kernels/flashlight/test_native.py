"""FlashAttention-3's own forms: which masks and scores have one, what the graph then computes, and keys moved together."""

import json
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sites import BLHD, CAUSAL, B, H, K, Q, S, Site, both, dilated, op, prefix, window

from kpt_lab.core import Unsupported
from kpt_lab.kernels import attention
from kpt_lab.kernels.flashlight import attend, choose, explain, flashlight, lower, native, regions, tune
from kpt_lab.kernels.flashlight.expression import Load
from kpt_lab.kernels.flashlight.native import EVERY, Form
from kpt_lab.kernels.flashlight.rewrite import UncompiledWarning
from kpt_lab.testing import interpreted

FLOAT = torch.float32
SYMMETRIC = both(op("lt", op("sub", Q, K), 5), op("le", op("sub", K, Q), 3))


def bent(cap=2.0):
    return op("mul", op("tanh", S, dtype=FLOAT), cap, dtype=FLOAT)


def qkv(queries=37, keys=37, heads=4, kv_heads=2, rows=3, width=16):
    return (
        torch.randn(rows, heads, queries, width), torch.randn(rows, kv_heads, keys, width), torch.randn(rows, kv_heads, keys, width),
    )  # fmt: skip


def real(rows=3, keys=37, empty=False):
    kept = torch.rand(rows, keys) < 0.6
    kept[0, :3] = True
    kept[-1] = not empty
    return kept


def asked(site):
    (part,) = site.attention.parts
    query, key = (x.node.meta["val"].shape[x.dims[2][0]] for x in (part.query, part.key))
    return native.form(part, query, key)


@pytest.fixture
def hopper(monkeypatch):
    """As with the kernel: the operator runs as its definition here."""
    monkeypatch.setattr(attend, "refused", lambda kernel, **given: "")
    monkeypatch.setattr(native, "lacking", lambda form: "")


def computed(site, **options):
    done = lower.replace(site.gm, site.attention, options=lower.Options(kernel="fa3", **options))
    site.gm.graph.eliminate_dead_code()
    site.gm.graph.lint()
    site.gm.recompile()
    assert done.kernel == "fa3"
    assert "fa3 was asked for" in done.reason
    with torch.no_grad():
        (out,) = regions.finish(site.gm, site.inputs)(*site.inputs)
    return out


@pytest.mark.parametrize(
    ("said", "form"),
    [
        ({"score": bent(30.0)}, Form(cap=30.0)), ({"score": bent(30.0), "mask": CAUSAL}, Form(causal=True, cap=30.0)),
        ({"mask": window(8)}, Form(left=7, right=0)), ({"mask": SYMMETRIC}, Form(left=4, right=3)),
        ({"mask": op("lt", op("sub", Q, K), 5)}, Form(left=4)), ({"mask": both(window(8), window(3))}, Form(left=2, right=0)),
        ({"mask": window(8), "score": bent()}, Form(cap=2.0, left=7, right=0)), ({"mask": prefix(4)}, None), ({"mask": dilated(2)}, None),
        ({"mask": op("lt", op("sub", Q, K), 0)}, None), ({"score": op("add", S, 1.0, dtype=FLOAT)}, None),
        ({"score": bent(-2.0)}, None), ({"score": op("tanh", S, dtype=FLOAT)}, None),
    ],
)  # fmt: skip
def test_what_has_a_form(said, form):
    assert asked(Site(*qkv(), parts=lambda: [said])) == form


def test_a_window_of_fewer_queries_than_keys_has_none():
    assert asked(Site(*qkv(queries=9), parts=lambda: [{"mask": window(8)}])) is None
    assert asked(Site(*qkv(queries=9), parts=lambda: [{"score": bent()}])) == Form(cap=2.0)


def test_masks_over_keys_alone():
    kept = Site(*qkv(), real(), parts=lambda r: [{"mask": Load(r, (B, K))}])
    assert asked(kept).keep is not None
    counted = Site(*qkv(), torch.tensor([37, 5, 1]), parts=lambda n: [{"mask": op("lt", K, Load(n, (B,)))}])
    form = asked(counted)
    assert form.keep is None
    assert isinstance(form.lengths, Load)
    by_head = Site(*qkv(), torch.ones(4, 37, dtype=torch.bool), parts=lambda r: [{"mask": Load(r, (H, K))}])
    assert asked(by_head) is None
    both_ways = Site(*qkv(), real(), parts=lambda r: [{"mask": both(CAUSAL, Load(r, (B, K)))}])
    assert asked(both_ways) is None


@pytest.mark.parametrize(
    "said", [{"score": bent()}, {"score": bent(), "mask": CAUSAL}, {"mask": window(8)}, {"mask": SYMMETRIC}]
)
@pytest.mark.parametrize("dims", [None, BLHD])
def test_scores_and_windows_are_those_of_the_definition(said, dims, hopper):
    made = qkv() if dims is None else tuple(x.transpose(1, 2).contiguous() for x in qkv())
    site = Site(*made, parts=lambda: [said], **({"dims": dims, "out_dims": dims} if dims else {}))
    torch.testing.assert_close(computed(site).double(), site.oracle(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fill", ["infinite", "finite"])
@pytest.mark.parametrize("queries", [1, 37])
def test_keys_left_out_are_left_out_and_rows_without_any_are_as_eager_has_them(fill, queries, hopper):
    for captured, mask in (
        (real(empty=True), lambda r: Load(r, (B, K))),
        (torch.tensor([37, 5, 0]), lambda n: op("lt", K, Load(n, (B,)))),
        (torch.tensor([90, 36, -4]), lambda n: op("le", K, Load(n, (B,)))),
        (torch.tensor([2, 0, 1]), lambda n: op("lt", op("add", K, op("mul", 20, Load(n, (B,)))), 30)),
    ):
        site = Site(*qkv(queries), captured, parts=lambda r, mask=mask: [{"mask": mask(r), "fill": fill}])
        assert asked(site).over_keys
        torch.testing.assert_close(computed(site).double(), site.oracle(), rtol=1e-5, atol=1e-6, equal_nan=True)


def test_on_request_rows_without_keys_are_zero(hopper):
    site = Site(*qkv(), real(empty=True), parts=lambda r: [{"mask": Load(r, (B, K)), "fill": "finite"}])
    assert not computed(site, empty_rows="zero")[-1].any()


def test_whole_functions(hopper):
    for variant in ("softcap", "padding", "window"):
        made = attention.forward.make(
            device="cpu", dtype="float32", seed=0, batch=2, heads=4, groups=2, length=300, width=16, variant=variant
        )
        fast = flashlight(kernel="fa3").apply(made.fn, made.inputs[0])
        for inputs in made.inputs:
            torch.testing.assert_close(fast(*inputs), made.fn(*inputs), rtol=1e-5, atol=1e-6)


# ---- by what was measured


def test_what_was_measured_to_be_faster_is_taken_by_itself(hopper, monkeypatch):
    known = {}
    monkeypatch.setattr(choose.STORE.__class__, "recall", lambda self, key: known.get(key))
    monkeypatch.setattr(choose.Shape, "key", lambda self, device: (self.kind, self.training))
    looked_up, cuda = choose.flex_options, torch.device("cuda", 0)
    monkeypatch.setattr(choose, "flex_options", lambda shape, device, **given: looked_up(shape, cuda, **given))
    monkeypatch.setattr(lower._Site, "lacking", lambda self, part: "flex")  # not to be compiled here

    def taken(said, **options):
        site = Site(*qkv(150, 150), parts=lambda: [said])
        return lower.replace(site.gm, site.attention, options=lower.Options(**options))

    capped = {"score": bent(), "mask": CAUSAL}
    assert taken(capped).kernel == "blocked"
    known["flex score mask, capped causal", False] = {"seconds": {"{}": 3e-3, '{"fwd_BLOCK_M": 64}': 2e-3, "fa3": 1e-3}}
    found = taken(capped)
    assert (found.kernel, found.measured) == ("fa3", {"fa3": 1e-3, "flex": 2e-3})
    assert found.reason.endswith("measured to be faster than flex")
    assert [shape.kind for shape in found.asked] == ["flex score mask, capped causal"]
    assert taken(capped, training=True).kernel == "blocked"
    assert taken({"score": bent()}).kernel == "blocked"  # another kind
    known["flex score mask, capped causal", False]["seconds"]["fa3"] = 4e-3
    assert taken(capped).kernel == "blocked"


def test_names_by_which_measurements_are_kept():
    names = {
        Form(cap=2.0).name, Form(causal=True, cap=2.0).name, Form(left=3, right=0).name, Form(lengths=K).name, Form(keep=K).name, Form().name,
    }  # fmt: skip
    assert names == {"capped plain", "capped causal", "window", "lengths", "over keys", "plain"}


def test_tuning_times_each_way_once_and_remembers(hopper, monkeypatch, tmp_path):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        choose, "race", lambda steps: {name: 1.0 + i for i, (name, step) in enumerate(steps.items()) if step() is not None}
    )
    shape = choose.Shape(FLOAT, 16, 16, 4, 2, 300, 300, "flex score mask, capped causal")
    seconds = choose.tune_flex(shape, torch.device("cpu"), lambda options: lambda: 1, lambda: 1)
    assert list(seconds) == ["fa3", *(json.dumps(options, sort_keys=True) for options in choose.FLEX)]
    assert choose.STORE.recall(shape.for_flex().key(torch.device("cpu"))) == {"seconds": seconds}


def test_block_sizes_that_no_compiler_takes_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "race", lambda steps: dict.fromkeys(steps, 1.0))

    def make(options):
        if options:
            raise Unsupported("no attention was fused: the fused form could not be compiled")
        return lambda: None

    shape = choose.Shape(FLOAT, 16, 16, 4, 2, 300, 300, "flex mask")
    assert choose.tune_flex(shape, torch.device("cpu"), make) == {"{}": 1.0}


def test_tuning_without_a_gpu_says_so():
    made = attention.forward.make(
        device="cpu", dtype="float32", seed=0, batch=1, heads=2, groups=1, length=9, width=8, variant="causal"
    )
    with pytest.raises(ValueError, match="args hold no tensor on a CUDA device"):
        tune(made.fn, made.inputs[0])


# ---- what is refused


@pytest.mark.parametrize(
    ("said", "options", "why"),
    [
        ({"mask": dilated(2)}, {}, "kernel 'fa3' was asked for: it has no such form, and the mask is"),
        ({"mask": window(8)}, {"training": True}, "it has gradients of plain and causal attention only"),
    ],
)
def test_refusals_leave_the_graph_alone(said, options, why, hopper):
    site = Site(*qkv(), parts=lambda: [said])
    before = str(site.gm.graph)
    with pytest.raises(Unsupported, match=why):
        lower.replace(site.gm, site.attention, options=lower.Options(kernel="fa3", **options))
    assert str(site.gm.graph) == before


def test_without_the_kernel_it_says_so():
    site = Site(*qkv(), parts=lambda: [{"score": bent()}])
    with pytest.raises(Unsupported, match="kernel 'fa3' was asked for: fa3 is a CUDA kernel"):
        lower.replace(site.gm, site.attention, options=lower.Options(kernel="fa3"))


def test_a_build_says_what_it_was_made_without(monkeypatch):
    flags = {"FLASHATTENTION_DISABLE_LOCAL": True, "FLASHATTENTION_DISABLE_SOFTCAP": False}
    monkeypatch.setitem(sys.modules, "fa3_fwd_config", types.SimpleNamespace(CONFIG={"build_flags": flags}))
    assert native.lacking(Form(left=7, right=0)) == "this build of FlashAttention-3 has no windows"
    assert native.lacking(Form(causal=True, cap=3.0)) == ""
    flags["FLASHATTENTION_DISABLE_SOFTCAP"] = True
    assert native.lacking(Form(causal=True, cap=3.0)) == "this build of FlashAttention-3 bends no scores"
    assert native.lacking(Form()) == ""
    monkeypatch.setattr(attend, "has_fa3", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    half = {"dtype": torch.float16, "width": 64, "value_width": 64, "dropout": 0.0, "device": torch.device("cuda", 0)}
    assert attend.refused("fa3", **half) == ""
    flags["FLASHATTENTION_DISABLE_FP16"] = True
    assert attend.refused("fa3", **half) == "this build of FlashAttention-3 has no float16"


# ---- keys moved together


def moved(key, value, keep):
    found_key, found_value, count = native.packed(key, value, keep)
    assert torch.equal(count, keep.sum(-1).to(torch.int32))
    for row in range(key.shape[0]):
        for held, found in ((key, found_key), (value, found_value)):
            assert torch.equal(found[row, :, : count[row]], held[row][:, keep[row]])
            assert found[row].isfinite().all()
    assert found_key.transpose(1, 2).is_contiguous()


@given(
    rows=st.integers(1, 3), heads=st.integers(1, 3), keys=st.integers(1, 50), width=st.integers(1, 9), value_width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_kept_keys_come_first_in_their_order(rows, heads, keys, width, value_width, share):
    key, value = torch.randn(rows, keys, heads, width).transpose(1, 2), torch.randn(rows, heads, keys, value_width)
    moved(key, value, torch.rand(rows, keys) < share)


@interpreted()
@pytest.mark.parametrize(("keys", "width"), [(1, 8), (16, 8), (37, 5)])
def test_the_packing_kernel_in_the_interpreter(keys, width):
    key, value = torch.randn(2, 3, keys, 2 * width)[..., ::2], torch.randn(2, keys, 3, 7).transpose(1, 2)
    for share in (0.0, 0.5, 1.0):
        moved(key, value, torch.rand(2, keys) < share)


def test_the_operator_s_shapes_and_strides_are_known_without_running_it():
    for keep, lengths in ((None, None), (real(), None), (None, torch.tensor([3, 37, 0]))):
        args = (*qkv(), keep, lengths, 0.25, False, 0.0, EVERY, EVERY, "nan")
        torch.library.opcheck(native.fa3_native, args, test_utils=("test_schema", "test_faketensor"))


# ---- for real


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["softcap", "padding"])
@pytest.mark.parametrize(("length", "groups", "width"), [(1024, 1, 128), (777, 4, 64)])
def test_the_kernel_gives_the_definition_s_numbers(variant, length, groups, width):
    if not attend.has_fa3():
        pytest.skip("fa3-fwd is not installed")
    made = attention.forward.make(
        device="cuda", dtype="bfloat16", seed=0, batch=3, heads=8, groups=groups, length=length, width=width, variant=variant
    )
    fast = flashlight(kernel="fa3").apply(made.fn, made.inputs[0])
    for inputs in made.inputs:
        exact = made.fn(*(x.double() if x.is_floating_point() else x for x in inputs))
        error = (fast(*inputs).double() - exact).norm() / exact.norm()
        plain = (made.fn(*inputs).double() - exact).norm() / exact.norm()
        assert error <= 2 * plain + 2**-9


@pytest.mark.gpu
def test_what_was_tuned_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "FLEX", choose.FLEX[:2])
    sizes = {"batch": 2, "heads": 4, "groups": 1, "length": 1024, "width": 64, "variant": "softcap"}
    made = attention.forward.make(device="cuda", dtype="bfloat16", seed=0, **sizes)
    seconds = tune(made.fn, made.inputs[0])
    assert all(took > 0 for took in seconds.values())
    assert ("fa3" in seconds) == attend.has_fa3()
    best = min(seconds, key=seconds.__getitem__)
    (entry,) = explain(flashlight.apply(made.fn, made.inputs[0])).entries
    assert entry.lowering.kernel == ("fa3" if best == "fa3" else "flex")


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_keys_are_moved_on_a_gpu(share):
    key, value = (torch.randn(3, 501, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
    moved(key, value, torch.rand(3, 501, device="cuda") < share)


# ---- raced where nobody knows


def padded(q, k, v, keep):
    return (q @ k.mT / 4).masked_fill(~keep[:, None, None, :], -1e9).softmax(-1) @ v


def capped_attention(q, k, v):
    return (5 * torch.tanh(q @ k.mT / 4 / 5)).softmax(-1) @ v


def given_padded(rows=2, queries=33, keys=33):
    q, k, v = qkv(queries, keys, heads=2, kv_heads=2, rows=rows)
    return q, k, v, torch.arange(keys) < torch.tensor([keys // 2, keys])[:, None]


@pytest.fixture
def racing(hopper, monkeypatch, tmp_path):
    """A device on which `faster` wins every race."""
    monkeypatch.setattr(lower._Site, "races", True)
    monkeypatch.setattr(choose, "FIRST", choose.FLEX[:1])  # a CPU's template has no such block sizes
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    module = sys.modules["kpt_lab.kernels.flashlight.tune"]
    monkeypatch.setattr(module, "_device", lambda args: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    found = types.SimpleNamespace(faster="fa3", races=0)

    def race(steps):
        found.races += 1
        for step in steps.values():
            step()
        return {name: 1.0 if name == found.faster else 2.0 for name in steps}

    monkeypatch.setattr(choose, "_raced_as_they_are", race)
    return found


def taken(fused):
    return [entry.lowering.kernel for entry in explain(fused).entries if entry.lowering]


@pytest.mark.parametrize(("faster", "kernel"), [("fa3", "fa3"), ("{}", "flex")])
def test_the_first_use_races_and_later_ones_remember(racing, faster, kernel):
    racing.faster = faster
    args = given_padded()
    fused = flashlight.apply(padded, args)
    assert taken(fused) == [kernel]
    torch.testing.assert_close(fused(*args), padded(*args))
    (entry,) = explain(fused).entries
    assert ("measured to be faster than flex" in entry.lowering.reason) == (kernel == "fa3")
    assert racing.races == 1
    longer = given_padded(queries=70, keys=70)
    torch.testing.assert_close(fused(*longer), padded(*longer))
    assert taken(flashlight.apply(padded, longer)) == [kernel]
    assert racing.races == 1


def test_with_torch_compile_behind_it_the_winner_is_taken_too(racing):
    from kpt_lab import baselines

    args = given_padded()
    whole = (flashlight >> baselines.compiled).apply(padded, args)
    torch.testing.assert_close(whole(*args), padded(*args))
    assert taken(whole) == ["fa3"]
    assert racing.races == 1


def test_each_kind_is_raced_by_itself(racing, monkeypatch):
    def two(q, k, v, keep):
        return capped_attention(q, k, v) + padded(q, k, v, keep)

    wins = iter(["fa3", "{}"])

    def race(steps):
        racing.races += 1
        winner = next(wins)
        return {name: 1.0 if name == winner else 2.0 for name in steps}

    monkeypatch.setattr(choose, "_raced_as_they_are", race)
    args = given_padded()
    fused = flashlight.apply(two, args)
    assert racing.races == 2
    assert taken(fused) == ["fa3", "flex"]
    torch.testing.assert_close(fused(*args), two(*args))


def test_where_there_is_nothing_to_race_nothing_is_tried_again(racing, monkeypatch):
    monkeypatch.setattr(choose, "_raced_as_they_are", lambda steps: {"fa3": 1.0})
    args = given_padded()
    assert taken(flashlight.apply(padded, args)) == ["flex"]
    monkeypatch.setattr(choose, "_raced_as_they_are", lambda steps: pytest.fail("raced again"))
    fused = flashlight.apply(padded, args)
    assert taken(fused) == ["flex"]
    assert "block sizes" not in explain(fused).entries[0].lowering.reason


def test_a_form_that_gives_other_numbers_is_not_raced(racing, monkeypatch):
    plainly = native._plainly
    monkeypatch.setattr(native, "_plainly", lambda *args: 1.1 * plainly(*args))
    args = given_padded()
    fused = flashlight.apply(padded, args)
    assert (taken(fused), racing.races) == (["flex"], 0)
    torch.testing.assert_close(fused(*args), padded(*args))


def test_block_sizes_are_raced_where_there_is_no_other_kernel(racing, monkeypatch):
    def tree(q, k, v, seen):
        return (q @ k.mT / 4).masked_fill(~seen, -1e9).softmax(-1) @ v

    tiles = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64}
    monkeypatch.setattr(choose, "FIRST", ({}, tiles))
    racing.faster = json.dumps(tiles)
    q, k, v = qkv(200, 200, heads=2, kv_heads=2, rows=1)
    seen = torch.rand(200, 200) < 0.3
    given = []
    compiled = regions.compile_in

    def compile_in(module, fakes, mode):
        given.extend(node.args[6] for node in module.graph.nodes if node.target is regions.FLEX)
        return compiled(module, fakes, mode)

    monkeypatch.setattr(regions, "compile_in", compile_in)
    fused = flashlight.apply(tree, (q, k, v, seen))
    (entry,) = explain(fused).entries
    assert "block sizes are the fastest of 2 measured" in entry.lowering.reason
    assert [options.get("fwd_BLOCK_M") for options in given] == [None, None, 64, 64]  # at first, both rivals, the faster one
    torch.testing.assert_close(fused(q, k, v, seen), tree(q, k, v, seen))
    few = qkv(1, 200, heads=2, kv_heads=2, rows=1)[0], k, v, seen[:1]
    flashlight.apply(tree, few)
    assert given[-1].get("fwd_BLOCK_M") is None  # a single query has a template of its own


def test_many_attentions_are_not_raced(racing, monkeypatch):
    def deep(q, k, v, keep):
        for _ in range(3):
            q = padded(q, k, v, keep)
        return q

    monkeypatch.setattr(sys.modules["kpt_lab.kernels.flashlight.tune"], "MOST", 2)
    assert taken(flashlight.apply(deep, given_padded())) == ["flex"] * 3
    assert racing.races == 0


@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError, Unsupported])
def test_a_race_that_fails_is_told_and_changes_nothing(racing, monkeypatch, kind):
    def race(steps):
        raise kind("too much was asked")

    monkeypatch.setattr(choose, "_raced_as_they_are", race)
    args = given_padded()
    told = f"could not be raced, torch's own choice stays: {kind.__name__}: too much was asked"
    with pytest.warns(UncompiledWarning, match=told):
        fused = flashlight.apply(padded, args)
    assert taken(fused) == ["flex"]
    torch.testing.assert_close(fused(*args), padded(*args))


@pytest.mark.parametrize("kind", [torch.AcceleratorError, TypeError])
def test_a_lost_device_and_faults_of_ours_are_not_kept_quiet(racing, monkeypatch, kind):
    def race(steps):
        raise kind("an illegal memory access")

    monkeypatch.setattr(choose, "_raced_as_they_are", race)
    with pytest.raises(kind, match="an illegal memory access"):
        flashlight.apply(padded, given_padded())


class Layer(torch.nn.Module):
    """A padded attention with a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(16) + 0.1)

    def forward(self, q, k, v, keep=None):
        return padded(q @ self.weight, k, v, keep)


def test_a_module_is_raced_in_its_first_call_without_gradients(racing):
    """Before that its weights ask for gradients, which FlashAttention-3 has not in this form."""
    *args, keep = given_padded()
    layer = Layer().eval()
    fused = flashlight.apply(layer, (*args, keep))
    assert racing.races == 0
    with torch.no_grad():
        torch.testing.assert_close(fused(*args, keep=keep), layer(*args, keep))
        assert racing.races == 1
        assert "fa3" in taken(fused)
        torch.testing.assert_close(fused(*args, keep=keep), layer(*args, keep))
    fused(*args, keep).sum().backward()
    assert layer.weight.grad is not None
    assert racing.races == 1


def test_a_module_in_training_mode_is_left_alone(racing):
    """A call may change its buffers, and a race makes many."""
    layer = Layer().train().requires_grad_(False)
    assert taken(flashlight.apply(layer, given_padded())) == ["flex"]
    assert racing.races == 0
    assert taken(flashlight.apply(layer.eval(), given_padded())) == ["fa3"]


def test_random_numbers_go_on_as_without_a_race(racing):
    args = given_padded()
    torch.manual_seed(3)
    flashlight.apply(padded, args)
    after = torch.rand(3)
    torch.manual_seed(3)
    torch.testing.assert_close(after, torch.rand(3))


@pytest.mark.gpu
@pytest.mark.parametrize("variant", ["softcap", "padding"])
def test_first_use_on_a_gpu_takes_what_is_faster(variant, monkeypatch, tmp_path):
    if not attend.has_fa3():
        pytest.skip("fa3-fwd is not installed")
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    made = attention.forward.make(
        device="cuda", dtype="bfloat16", seed=0, batch=4, heads=8, groups=1, length=2048, width=64, variant=variant
    )
    fused = flashlight.apply(made.fn, made.inputs[0])
    (entry,) = explain(fused).entries
    seconds = entry.lowering.measured
    assert set(seconds) == {"fa3", "flex"}
    assert entry.lowering.kernel == min(seconds, key=seconds.__getitem__)
    exact = made.fn(*(x.double() if x.is_floating_point() else x for x in made.inputs[0]))
    torch.testing.assert_close(fused(*made.inputs[0]).double(), exact, rtol=0.05, atol=0.02)
