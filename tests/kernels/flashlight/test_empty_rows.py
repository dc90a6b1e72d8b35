"""Rows without keys, filled in place: the operator in both of its forms against float64, and where a lowering emits it."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sites import Site
from torch._dynamo.backends.debugging import aot_eager

from kpt_lab import kernels
from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import differential, empty_rows, lower, match, regions
from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead
from kpt_lab.kernels.flashlight.expression import Coordinate, Load
from kpt_lab.kernels.flashlight.rewrite import apply
from kpt_lab.testing import interpreted

FILL = torch.ops.kpt_lab.fill_empty_rows.default
ORDERS = {"bhld": (0, 1, 2, 3), "blhd": (0, 2, 1, 3), "bhdl": (0, 1, 3, 2), "dlhb": (3, 2, 1, 0)}
ULP = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 1e-6}  # the interpreter truncates to bfloat16
FORMS = [
    pytest.param(empty_rows._fill_plainly, "cpu", id="plain"),
    pytest.param(empty_rows.fill_on_gpu, "cpu", id="interpreted", marks=interpreted()),
    pytest.param(empty_rows.fill_on_gpu, "cuda", id="compiled", marks=pytest.mark.gpu),
]


def laid_out(shape, order, dtype=torch.float32, device="cpu"):
    """Random numbers of the shape, in memory in another order of dimensions and with a gap behind each."""
    sizes = [shape[d] + (d == order[-1]) for d in order]
    whole = torch.randn(sizes, device=device).to(dtype).permute([order.index(d) for d in range(len(shape))])
    return whole.narrow(order[-1], 0, shape[order[-1]])


def case(
    batch, heads, groups, rows, keys, width, dtype=torch.float32, order="bhld", value_order="bhld", device="cpu", share=0.3
):
    """(out, lse, value) for the operator; `share` of the rows are empty."""
    lse = laid_out((batch, heads * groups, rows), (0, 2, 1) if order == "blhd" else (0, 1, 2), device=device)
    lse.masked_fill_(torch.rand(lse.shape, device=device) < share, -torch.inf)
    return (
        laid_out((batch, heads * groups, rows, width), ORDERS[order], dtype, device), lse,
        laid_out((batch, heads, keys, width), ORDERS[value_order], dtype, device),
    )  # fmt: skip


def right(fill, out, lse, value, groups, infinite):
    before, base, around = out.clone(), out._base, out._base.clone()
    fill(out, lse, value, groups, infinite)
    empty = lse == -torch.inf
    mean = value.double().mean(-2, keepdim=True).repeat_interleave(groups, 1).expand(out.shape)
    assert torch.equal(out[~empty], before[~empty])
    if infinite:
        assert out[empty].isnan().all()
    else:
        tolerance = ULP[out.dtype]
        torch.testing.assert_close(out[empty].double(), mean[empty], rtol=tolerance, atol=tolerance)
    out.copy_(before)
    assert torch.equal(base, around)  # nothing beside the view was written


SIZES = st.tuples(
    st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2, 37, 130]), st.sampled_from([1, 3, 65, 200]),
    st.sampled_from([1, 5, 16, 24, 80]),
)  # fmt: skip


@pytest.mark.parametrize(("fill", "device"), FORMS)
@given(
    sizes=SIZES, dtype=st.sampled_from(list(ULP)), order=st.sampled_from(["bhld", "blhd"]),
    value_order=st.sampled_from(list(ORDERS)), infinite=st.booleans(), share=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
def test_empty_rows_get_the_mean_or_nan_and_nothing_else_is_written(
    fill, device, sizes, dtype, order, value_order, infinite, share
):
    batch, heads, groups, rows, keys, width = sizes
    made = case(batch, heads, groups, rows, keys, width, dtype, order, value_order, device, share)
    right(fill, *made, groups, infinite)


@pytest.mark.parametrize(("fill", "device"), FORMS)
def test_more_rows_than_one_program_takes_and_values_that_are_one_for_all_batches(fill, device):
    out, lse, value = case(2, 1, 2, 2 * empty_rows.SCANNED + 3, 700, 8, torch.bfloat16, "blhd", device=device, share=0.0)
    lse[1, 1, -1] = -torch.inf
    right(fill, out, lse, value[:1].expand(2, -1, -1, -1), 2, False)


@pytest.mark.parametrize(("fill", "device"), FORMS)
@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (2, 2, 0, 8), (1, 2, 5, 0)])
def test_nothing_to_fill_is_no_error(fill, device, shape):
    out, lse = torch.empty(shape, device=device), torch.full(shape[:-1], -torch.inf, device=device)
    fill(out, lse, torch.ones(shape[0], 1, 4, shape[3], device=device), 2, False)


def test_without_any_key_every_row_is_the_sum_over_nothing():
    out = torch.ones(1, 2, 5, 8)
    FILL(out, torch.full((1, 2, 5), -torch.inf), torch.ones(1, 2, 0, 8), 1, True)
    assert not out.any()


def test_torch_takes_the_operator_for_what_it_says():
    made = case(1, 2, 2, 9, 7, 5)
    torch.library.opcheck(empty_rows.fill_empty_rows, (*made, 2, False))
    with torch.inference_mode():
        out, lse, value = (x.clone() for x in made)
        FILL(out, lse, value, 2, False)
    FILL(made[0], lse, value, 2, False)
    torch.testing.assert_close(out, made[0])


@torch.library.custom_op("kpt_lab_test::sums", mutates_args=())
def _sums(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for Flex in a compiled function: a fresh output (b, l, h, d) in memory, and row sums of which some are -inf."""
    lse = x.sum(-1)
    return x.transpose(1, 2).contiguous().transpose(1, 2), torch.where(lse > 0, lse, -torch.inf)


@_sums.register_fake
def _(x):
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2), x.new_empty(x.shape[:-1])


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_writes_into_the_output_itself_also_where_its_padding_is_cut_off(width):
    from torch._inductor.utils import run_and_get_code

    def attend(x, value):
        out, lse = torch.ops.kpt_lab_test.sums(x)
        out = out[..., :width]
        FILL(out, lse, value, 2, False)
        return out.transpose(1, 2).flatten(2) * 2.0

    x, value = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 11, width)
    torch._dynamo.reset()
    found, (code, *_) = run_and_get_code(torch.compile(attend, fullgraph=True), x, value)
    torch.testing.assert_close(found, attend(x, value))
    assert code.count("torch.ops.kpt_lab.fill_empty_rows.default(") == 1
    assert code.count("empty_strided_cpu((") == 1, code  # the product alone: no copy of the output


COMPILE = """
import re, subprocess, tempfile, pathlib, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kpt_lab.kernels.flashlight.empty_rows import SCANNED, TILE, _fill

tools = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin"
names = _fill.arg_names
for width, infinite, single in ((128, False, False), (128, True, False), (1, False, True), (512, False, False)):
    constants = dict(INFINITE=infinite, ROWS=SCANNED, TALL=min(SCANNED, TILE // width), WIDTH=width, WIDE=tl.float32)
    constants |= dict(out_c=1, value_c=1, lse_r=1) | ({"keys": 1} if single else {})  # Triton takes an argument of 1 as a constant
    types = {"out_ptr": "*bf16", "value_ptr": "*bf16", "lse_ptr": "*fp32", "out_b": "i64"}
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = ("out_ptr", "value_ptr", "lse_ptr", "width", "out_r", "out_h", "out_b", "value_r", "value_h", "value_b")
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    values = {(names.index(n),): value for n, value in constants.items()}
    source = ASTSource(_fill, signature, values, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run([tools / "cuobjdump", "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    assert re.search(r"STACK:0 ", text), text
    assert width < 16 or ".v4.b32" in made.asm["ptx"], width
"""


@pytest.mark.skipif(kernels.triton is None, reason="needs triton")
def test_the_kernel_compiles_for_an_h100_with_wide_accesses_and_without_spills():
    """The interpreter takes what the compiler refuses: a pointer that gets another shape in a branch."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


# ---- in a lowering


def padding(fill, keys=60, length=137, width=16):
    """An attention under a mask whose last sequence has no key at all."""
    query, key, value = torch.randn(2, 4, length, width), torch.randn(2, 2, keys, width), torch.randn(2, 2, keys, width)
    real = torch.arange(keys) < torch.tensor([[keys - 7], [0]])
    return Site(query, key, value, real, parts=lambda r: [{"mask": Load(r, (Coordinate("b"), Coordinate("k"))), "fill": fill}])


def fills(gm):
    return [node for node in gm.graph.nodes if node.target is FILL]


@pytest.fixture
def sums(monkeypatch):
    """CPU lowerings as CUDA's are: Flex with row sums, run as mathematics."""
    monkeypatch.setattr(lower._Site, "has_sums", True)
    monkeypatch.setattr(lower._Site, "lacking", lambda self, part: "")
    monkeypatch.setattr(regions, "compile_in", lambda module, fakes, fake_mode: module)


@pytest.mark.parametrize(("training", "zero", "width"), [(False, False, 16), (False, False, 8), (True, False, 16), (False, True, 16)])  # fmt: skip
def test_a_cuda_lowering_has_the_operator_unless_it_trains_or_leaves_zeros(monkeypatch, tmp_path, training, zero, width):
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A GPU")
    site = padding("finite", width=width)
    with site.fake_mode:
        for meta in (node.meta for node in site.gm.graph.nodes if node.meta):
            meta["val"] = torch.empty_like(meta["val"], device="cuda")
    options = lower.Options(training=training, empty_rows="zero" if zero else "eager")
    assert lower.replace(site.gm, site.attention, options=options).kernel == "flex"
    remove_dead(site.gm)
    assert len(fills(site.gm)) == (not training and not zero)
    assert any(n.target is torch.ops.aten.where.self for n in site.gm.graph.nodes) == training
    for node in fills(site.gm):
        assert (node.args[0].target is torch.ops.aten.slice.Tensor) == (width < 16)
        assert node.args[2] is site.nodes["value"]  # not the padded one


@pytest.mark.parametrize("compiler", [None, aot_eager])
@pytest.mark.parametrize("fill", ["finite", "infinite"])
def test_the_lowered_graph_is_right_as_it_is_and_through_autograd_s_tracer(sums, fill, compiler):
    site = padding(fill)
    lower.replace(site.gm, site.attention, options=lower.Options(training=False))
    remove_dead(site.gm)
    with torch.no_grad():
        (out,) = regions.finish(site.gm, site.inputs, compiler)(*site.inputs)
    assert len(fills(site.gm)) == 1
    torch.testing.assert_close(out.double(), site.oracle(), rtol=1e-5, atol=1e-5, equal_nan=True)
    assert out[1].isnan().all() == (fill == "infinite")


def masked(query, key, value, real, fill, causal=False):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    seen = real[:, None, None]
    if causal:
        seen = seen & torch.ones(scores.shape[-2:], dtype=torch.bool, device=real.device).tril()
    return torch.softmax(scores.masked_fill(~seen, fill), -1) @ value


@pytest.mark.parametrize("fill", [-torch.inf, -1e9])
def test_the_differential_check_sees_the_fill(sums, fill):
    inputs = [torch.randn(2, 2, 20, 16) for _ in range(3)] + [torch.arange(20) < torch.tensor([[13], [0]])]
    told = []

    def backend(graph_module, given):
        graph = functional_form(graph_module, given)
        (draft,), _ = match.find(graph)
        for empty in ("eager", "zero"):  # "zero" leaves the fill out

            def lowered(gm, attention, empty=empty):
                return lower.replace(gm, attention, options=lower.Options(training=False, empty_rows=empty))

            try:
                told.append(differential.check(graph, draft.build(), lowered, training=False, lenient=False))
            except differential.Differs as error:
                told.append(f"differs: {error}")
        return graph_module

    torch._dynamo.reset()
    torch.compile(lambda *x: masked(*x, fill, causal=True), backend=backend)(*inputs)
    assert told[0].startswith("random at")
    assert told[1].startswith("differs: ")


# ---- rows that a bias empties


def biased(query, key, value, bias):
    return torch.softmax(query @ key.mT / 4 + bias, -1) @ value


def biased_and_guarded(query, key, value, bias):
    return torch.softmax(query @ key.mT / 4 + bias, -1).nan_to_num(0.0) @ value


def biased_causal(query, key, value, bias):
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    return torch.softmax((query @ key.mT / 4 + bias).masked_fill(~seen, -torch.inf), -1) @ value


def sloped(query, key, value, slopes):
    places = torch.arange(key.shape[-2]) - torch.arange(query.shape[-2])[:, None]
    return torch.softmax(query @ key.mT / 4 + slopes[:, None, None] * places, -1) @ value


def with_infinities(*shape):
    bias = torch.randn(shape)
    bias[..., 3:5] = -torch.inf
    bias.view(-1, shape[-1])[::5] = -torch.inf
    return bias


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(19, 19), (2, 19, 19), (3, 1, 1, 19), (3, 2, 19, 19)])
@pytest.mark.parametrize("attend", [biased, biased_and_guarded, biased_causal])
def test_a_bias_of_minus_infinity_is_as_eager_has_it(attend, shape, training):
    inputs = (*torch.randn(3, 3, 2, 19, 16).requires_grad_(training), with_infinities(*shape))
    fused = apply(attend, inputs)
    wanted = attend(*(x.double() for x in inputs))
    assert bool(wanted.isnan().any()) == (attend is not biased_and_guarded)
    torch.testing.assert_close(fused(*inputs).double(), wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shifted", [False, True])
def test_exponentials_that_are_all_zero_give_nan_unless_the_largest_is_subtracted(shifted):
    def attend(query, key, value, real):
        scores = (query @ key.mT / 4).masked_fill(~real[:, None, None], -1e9)
        weights = torch.exp(scores - scores.amax(-1, keepdim=True) if shifted else scores)
        return weights / weights.sum(-1, keepdim=True) @ value

    inputs = (*torch.randn(3, 2, 2, 19, 16), torch.arange(19) < torch.tensor([[7], [0]]))
    wanted = attend(*(x.double() if x.is_floating_point() else x for x in inputs))
    assert bool(wanted[1].isnan().all()) == (not shifted)
    torch.testing.assert_close(apply(attend, inputs)(*inputs).double(), wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_low_numbers_before_unshifted_exponentials_are_refused_where_they_are_no_mask():
    def attend(query, key, value, real):
        scores = query @ key.mT / 4 + (1.0 - real[:, None, None].to(query.dtype)) * -1e8
        weights = torch.exp(scores.masked_fill(~torch.ones(19, 19, dtype=torch.bool).tril(), -1e8))
        return (weights / weights.sum(-1, keepdim=True)).nan_to_num(0.0) @ value

    inputs = (*torch.randn(3, 2, 2, 19, 16), torch.arange(19) < torch.tensor([[7], [0]]))
    with pytest.raises(Unsupported, match="from which no maximum is subtracted"):
        apply(attend, inputs)


def test_zeros_are_given_where_they_are_asked_for():
    inputs = (*torch.randn(3, 1, 2, 19, 16), with_infinities(19, 19))
    out = apply(biased, inputs, empty_rows="zero")(*inputs)
    assert (out[:, :, ::5] == 0).all()
    assert out.isfinite().all()


def test_only_what_may_empty_a_row_is_looked_for():
    given = torch.randn(3, 3, 2, 19, 16)
    kinds = {biased: torch.randn(19, 19), sloped: torch.rand(2)}
    filled = {}
    for attend, last in kinds.items():
        graphs = []

        def backend(graph_module, inputs, graphs=graphs):
            graph = functional_form(graph_module, inputs)
            (draft,), _ = match.find(graph)
            lower.replace(graph, draft.build(), options=lower.Options(training=False))
            graphs.append(graph)
            return graph_module

        torch._dynamo.reset()
        torch.compile(attend, backend=backend)(*given, last)
        filled[attend] = any(node.target is torch.ops.aten.where.self for node in graphs[0].graph.nodes)
    assert filled == {biased: True, sloped: False}


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attend", [biased, biased_and_guarded])
def test_a_bias_of_minus_infinity_on_a_gpu(attend, training):
    made = torch.randn(3, 2, 2, 200, 64, device="cuda", dtype=torch.bfloat16).requires_grad_(training)
    inputs = (*made, with_infinities(200, 200).to(made))
    fused = apply(attend, inputs)
    wanted = attend(*(x.double() for x in inputs))
    torch.testing.assert_close(fused(*inputs).double(), wanted, rtol=5e-2, atol=5e-2, equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("inner", ["eager", "inductor"])
@pytest.mark.parametrize("fill", [-torch.inf, -65504.0])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 64), (torch.float16, 8), (torch.float32, 24)])
def test_a_padding_mask_with_empty_rows_is_as_eager_has_it(inner, fill, dtype, width):
    made = lambda: torch.randn(3, 333, 4, width, device="cuda", dtype=dtype).transpose(1, 2)  # noqa: E731
    real = torch.arange(333, device="cuda") < torch.tensor([[333], [100], [0]], device="cuda")
    inputs = [made(), made(), made(), real]

    def attend(query, key, value, real):
        return masked(query, key, value, real, fill)

    with torch.no_grad():
        fused = apply(attend, tuple(inputs))
        fused = fused.compile_with() if inner == "inductor" else fused
        out = fused(*inputs)
        wanted = attend(*(x.double() if x.is_floating_point() else x for x in inputs))
    assert [e.lowering.kernel for r in fused.backend.reports for e in r.entries] == ["flex"]
    assert bool(out[2].isnan().all()) == (fill == -torch.inf)
    torch.testing.assert_close(out.double(), wanted, rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.gpu
def test_filling_takes_no_memory_of_its_own():
    out, lse, value = case(2, 8, 1, 4096, 4096, 64, torch.bfloat16, "blhd", device="cuda")
    FILL(out, lse, value, 1, False)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    FILL(out, lse, value, 1, False)
    assert torch.cuda.max_memory_allocated() == before
