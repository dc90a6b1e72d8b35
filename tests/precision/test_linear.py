"""FP8 linear layers: the kernel against the plain definition, the definition against float64, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from kpt_lab.core import Unsupported
from kpt_lab.kernels import INTERPRETED
from kpt_lab.precision import casts, linear
from kpt_lab.precision.formats import e4m3fn
from kpt_lab.precision.linear import (
    BFLOAT16,
    COUNTS,
    GEMMS,
    ROWWISE,
    ROWWISE_BF16_WEIGHT_GRADIENT,
    TENSORWISE,
    FP8Linear,
    Recipe,
    convert,
)
from kpt_lab.precision.scaling import dequantise, quantise, sqnr

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")),
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU")]
    ),
]
SHAPES = [(3, 16), (17, 48), (130, 80), (1, 272)]
GPU = pytest.mark.skipif(not torch.cuda.is_available() or INTERPRETED, reason="needs a GPU, without the interpreter")


def matrix(rows, cols, seed=0, dtype=torch.bfloat16, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, cols, generator=generator) * torch.logspace(-2, 1, rows)[:, None]
    return x.to(dtype).to(device)


def run(x, rows, columns, format="e4m3fn", counted=True):
    """The kernel as `cast` calls it, where the operator has no CPU form."""
    whole = casts.largest(x)
    sides = "both" if rows and columns else "rows" if rows else "columns"
    return casts.run_cast(
        x,
        casts.largest(x, 1) if rows == "rowwise" else whole,
        casts.largest(x, 0) if columns == "rowwise" else whole,
        sides,
        format,
        counted,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize(("rows", "columns"), list(itertools.product(["", "tensorwise", "rowwise"], repeat=2)))
def test_both_sides_equal_the_definition_bit_for_bit(device, format, rows, columns):
    if not (rows or columns):
        return
    for shape in SHAPES:
        x = matrix(*shape, device=device)
        out = run(x, rows, columns, format)
        kind = casts.FORMATS[format]
        for side, data, scale, dim in (
            (rows, out.rows, out.rows_scale, 1),
            (columns, out.columns, out.columns_scale, 0),
        ):
            if not side:
                assert data.numel() == scale.numel() == 0
                continue
            expected = quantise(x, kind, side, dim=dim)
            codes, wanted = data.view(torch.uint8), expected.data.view(torch.uint8)
            if dim == 0:
                assert not codes[:, shape[0] :].any()
                codes, scale = codes[:, : shape[0]].t(), scale.t() if scale.dim() else scale
            assert torch.equal(codes, wanted)
            assert torch.equal(scale, expected.scale)
        first = quantise(x, kind, rows or columns, dim=1 if rows else 0).counts.as_dict()
        assert out.counts.tolist() == [first["nonfinite"], first["flushed"]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_spoils_its_scale_loudly_and_is_counted(device, value):
    x = matrix(33, 48, device=device)
    x[7, 11] = value
    out = run(x, "tensorwise", "tensorwise")
    assert out.counts[0] == 1
    assert out.rows_scale.isnan()
    out = run(x, "rowwise", "rowwise")
    assert out.rows_scale.isnan().flatten().nonzero().tolist() == [[7]]
    assert out.columns_scale.isnan().flatten().nonzero().tolist() == [[11]]


@pytest.mark.parametrize("device", DEVICES)
def test_flushed_values_are_counted_and_zeros_are_not(device):
    x = matrix(40, 64, device=device)
    x[::2] = 0
    x[1, 1] = 1e5
    wide = quantise(x, e4m3fn).counts.as_dict()["flushed"]
    assert wide > 100
    assert run(x, "tensorwise", "").counts[1] == wide


def layer(recipe, d_in=64, d_out=48, bias=True, emulate=True, seed=0, dtype=torch.bfloat16, device="cpu"):
    torch.manual_seed(seed)
    plain = nn.Linear(d_in, d_out, bias=bias).to(device=device, dtype=dtype)
    return plain, FP8Linear.from_linear(plain, recipe, emulate=emulate)


RECIPES = [TENSORWISE, ROWWISE, ROWWISE_BF16_WEIGHT_GRADIENT, Recipe("bfloat16", "tensorwise", "rowwise", "e4m3fn")]


def by_hand(x, weight, bias, gradient, recipe):
    """y, dx, dw by `quantise` and float64 products."""

    def product(a, b, choice, kind):
        if choice == "bfloat16":
            return a.double() @ b.double().t()
        held = [quantise(t, k, choice, dim=1) for t, k in ((a, kind), (b, e4m3fn))]
        one, two = (dequantise(q.data, q.scale, q.format, torch.float64) for q in held)
        return one @ two.t()

    kind = casts.FORMATS[recipe.gradient]
    y = product(x, weight, recipe.forward, e4m3fn) + bias.double()
    return (
        y,
        product(gradient, weight.t().contiguous(), recipe.input_gradient, kind),
        product(gradient.t().contiguous(), x.t().contiguous(), recipe.weight_gradient, kind),
    )


def gradients(module, x, gradient):
    x = x.detach().clone().requires_grad_()
    y = module(x)
    dx, dw, db = torch.autograd.grad(y, (x, module.weight, module.bias), gradient)
    return y, dx, dw, db


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 96])
def test_the_definition_is_three_products_of_rounded_operands(recipe, tokens):
    plain, module = layer(recipe)
    x, g = matrix(tokens, 64, 1), matrix(tokens, 48, 2)
    y, dx, dw, db = gradients(module, x, g)
    for found, exact in zip((y, dx, dw), by_hand(x, plain.weight.detach(), plain.bias.detach(), g, recipe), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-8 * float(exact.abs().max()))
    torch.testing.assert_close(db, g.sum(0), rtol=2**-6, atol=1e-2)
    assert module.weight is plain.weight


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize(("tokens", "d_in", "d_out"), [(7, 64, 48), (512, 256, 1024), (1000, 512, 272)])
def test_the_fast_path_equals_the_definition(recipe, tokens, d_in, d_out):
    _, slow = layer(recipe, d_in, d_out, device="cuda")
    _, fast = layer(recipe, d_in, d_out, emulate=False, device="cuda")
    x, g = matrix(tokens, d_in, 1, device="cuda"), matrix(tokens, d_out, 2, device="cuda")
    for found, exact in zip(gradients(fast, x, g), gradients(slow, x, g), strict=True):
        assert sqnr(exact, found) > 40


@pytest.mark.gpu
@GPU
@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_compiled_without_a_graph_break_it_gives_the_same(recipe):
    _, fast = layer(recipe, 256, 512, emulate=False, device="cuda")
    x, g = matrix(256, 256, 1, device="cuda"), matrix(256, 512, 2, device="cuda")
    fast.watch()
    plain = gradients(fast, x, g)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True)
    a = x.detach().clone().requires_grad_()
    y = compiled(a)
    y.backward(g)
    for found, exact in zip((y, a.grad, fast.weight.grad, fast.bias.grad), plain, strict=True):
        assert sqnr(exact, found) > 45
    assert fast.seen.grad[:, 0].tolist() == [x.numel(), fast.weight.numel(), g.numel()]


@pytest.mark.gpu
@GPU
def test_cached_weights_give_the_same_bits_on_a_gpu():
    _, fast = layer(TENSORWISE, 256, 512, emulate=False, device="cuda")
    x, g = matrix(256, 256, 1, device="cuda"), matrix(256, 512, 2, device="cuda")
    before = gradients(fast, x, g)
    with linear.weights_cached(fast):
        assert fast.cached is not None
        within = gradients(fast, x, g)
    assert fast.cached is None
    assert all(torch.equal(a, b) for a, b in zip(before, within, strict=True))


@pytest.mark.parametrize("recipe", [*RECIPES, BFLOAT16], ids=str)
def test_counts_arrive_in_the_gradient_of_seen_and_add_up(recipe):
    _, module = layer(recipe)
    module.watch()
    x, g = matrix(24, 64, 1), matrix(24, 48, 2)
    x[3, 3], g[5, 5] = math.inf, math.nan
    with torch.no_grad():
        module.weight[1, 1] = math.nan
    for _ in range(2):
        module(x).backward(g)
    found = dict(zip(linear.TENSORS, module.seen.grad.tolist(), strict=True))
    assert [row[COUNTS.index("elements")] for row in found.values()] == [2 * x.numel(), 2 * 64 * 48, 2 * g.numel()]
    assert [row[COUNTS.index("nonfinite")] for row in found.values()] == [2, 2, 2]
    assert all(row[COUNTS.index("clipped")] == 0 for row in found.values())


def test_a_spike_flushes_a_share_that_is_counted():
    _, module = layer(TENSORWISE)
    module.watch()
    x, g = torch.randn(96, 64).bfloat16(), matrix(96, 48, 2)
    x[0, 0] = 1e6
    module(x).backward(g)
    elements, _, flushed, _ = module.seen.grad[0].tolist()
    assert flushed / elements > 0.5


def test_leading_dimensions_stay_and_autocast_decides_the_dtype():
    _, module = layer(TENSORWISE, dtype=torch.float32)
    x = torch.randn(2, 5, 64)
    assert module(x).shape == (2, 5, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("default:.*should not be instantiated:DeprecationWarning")  # torch 2.13's compiler makes one
def test_compiled_on_a_cpu_the_definition_needs_no_graph_break():
    _, module = layer(TENSORWISE, bias=True)
    module.watch()
    x, g = matrix(24, 64, 1), matrix(24, 48, 2)
    expected = gradients(module, x, g)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    a = x.clone().requires_grad_()
    y = compiled(a)
    y.backward(g)
    for found, exact in zip((y, a.grad, module.weight.grad, module.bias.grad), expected, strict=True):
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("recipe", [Recipe(gradient="e4m3fn"), ROWWISE, TENSORWISE], ids=str)
def test_a_swiglu_block_keeps_its_error_within_the_bars(recipe):
    """Issue's bars against float64: forward 23 dB, gradients 23 dB with e4m3fn and 20 dB with e5m2."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.down = (
                nn.Linear(128, 384, bias=False),
                nn.Linear(128, 384, bias=False),
                nn.Linear(384, 128, bias=False),
            )

        def forward(self, x):
            return self.down(nn.functional.silu(self.gate(x)) * self.up(x))

    torch.manual_seed(3)
    plain = Block()
    quantised = convert(plain, recipe, emulate=True)
    exact = copy.deepcopy(plain).double()
    x, g = torch.randn(256, 128), torch.randn(256, 128)
    results = []
    for model, dtype in ((quantised, torch.float32), (exact, torch.float64)):
        a = x.to(dtype).requires_grad_()
        y = model(a)
        results.append((y, *torch.autograd.grad(y, (a, *model.parameters()), g.to(dtype))))
    levels = [sqnr(b, a) for a, b in zip(*results, strict=True)]
    assert levels[0] >= 23
    assert min(levels[1:]) >= (23 if recipe.gradient == "e4m3fn" else 20)


def test_one_loud_token_leaves_the_others_alone_under_rowwise_scaling():
    torch.manual_seed(0)
    plain, x = nn.Linear(256, 256, bias=False), torch.randn(128, 256)
    x[17] *= 1e5
    exact = x.double() @ plain.weight.double().t()
    others = [k for k in range(128) if k != 17]
    error = {
        recipe: min(sqnr(exact[k], FP8Linear.from_linear(plain, recipe, emulate=True)(x)[k]) for k in others)
        for recipe in (ROWWISE, TENSORWISE)
    }
    assert error[ROWWISE] >= 27
    assert error[TENSORWISE] < 10


# ---- converting and refusing -------------------------------------------------------------------------------------------------


def model():
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 24), nn.Linear(24, 32))


def test_one_recipe_converts_what_fits_and_shares_the_parameters():
    plain = model()
    found = convert(plain, TENSORWISE, emulate=True, inplace=True)
    assert [type(part).__name__ for part in found] == ["FP8Linear", "GELU", "Linear", "Linear"]
    assert "emulated" in repr(found[0])
    untouched = model()
    changed = convert(untouched, TENSORWISE, emulate=True)
    assert type(untouched[0]) is nn.Linear
    assert changed[0].weight is not untouched[0].weight


def test_a_bare_layer_and_named_recipes():
    assert isinstance(convert(nn.Linear(16, 16), ROWWISE, emulate=True), FP8Linear)
    found = convert(model(), {"0": ROWWISE}, emulate=True)
    assert found[0].recipe == ROWWISE
    with pytest.raises(ValueError, match=r"recipes name '9', which is no nn\.Linear of model; it has 0, 2, 3"):
        convert(model(), {"9": ROWWISE}, emulate=True)
    with pytest.raises(Unsupported, match="layer '2': 64 x 24 features are not both divisible by 16"):
        convert(model(), {"2": ROWWISE}, emulate=True)


def test_refusals_say_why():
    with pytest.raises(Unsupported, match="no layer of Linear can run in FP8: 30 x 16 features"):
        convert(nn.Linear(30, 16), TENSORWISE, emulate=True)
    with pytest.raises(Unsupported, match="FP8 products need a CUDA device, and this is cpu; emulate=True"):
        convert(nn.Linear(32, 16), TENSORWISE)
    with pytest.raises(Unsupported, match="its weight is float64; accepted are bfloat16, float16, float32"):
        convert(nn.Linear(32, 16).double(), TENSORWISE, emulate=True)
    with pytest.raises(TypeError, match=r"model is str; an nn\.Module is needed"):
        convert("model", TENSORWISE)
    with pytest.raises(TypeError, match="recipe is str; pass a Recipe"):
        FP8Linear.from_linear(nn.Linear(16, 16), "tensorwise")
    with pytest.raises(TypeError, match=r"linear is Conv1d; an nn\.Linear is needed"):
        FP8Linear.from_linear(nn.Conv1d(16, 16, 1), TENSORWISE)
    with pytest.raises(ValueError, match="forward is 'blockwise'; accepted are 'bfloat16', 'tensorwise', 'rowwise'"):
        Recipe("blockwise")
    with pytest.raises(ValueError, match="gradient is 'int8'; accepted are 'e5m2' and 'e4m3fn'"):
        Recipe(gradient="int8")
    with pytest.raises(Unsupported, match=r"fp8 replaces nn\.Linear layers of a module"):
        linear.fp8.apply(torch.nn.functional.gelu, ())
    with pytest.raises(ValueError, match="keep names 'head'"):
        linear.fp8_emulated.apply(model(), (), keep=("head",))


def test_recipes_have_names():
    assert str(TENSORWISE) == "tensorwise, gradient e5m2"
    assert str(BFLOAT16) == "bfloat16"
    assert str(ROWWISE_BF16_WEIGHT_GRADIENT) == (
        "forward rowwise, input_gradient rowwise, weight_gradient bfloat16, gradient e4m3fn"
    )
    assert len(GEMMS) == 3


def test_as_a_technique_it_is_a_simulation_and_keeps_what_it_is_told():
    import kpt_lab as kpt

    found = linear.fp8_emulated(keep=("0",))
    converted = found.apply(nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32)), (), **found.knobs)
    assert [type(part).__name__ for part in converted] == ["Linear", "FP8Linear"]
    net, x = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)), torch.randn(48, 32)
    work = kpt.workload(net, x, name="net")
    trials = kpt.measure(work, [kpt.baselines.eager, linear.fp8_emulated, linear.fp8], processes=0, budget=0.2, mode="backward")
    eager, emulated, real, *_ = trials
    assert (eager.status, emulated.status, real.status) == ("ok", "ok", "unavailable")
    assert "simulation_time" in emulated.metrics
    assert "time" not in emulated.metrics


def test_a_converted_layer_keeps_the_hooks_of_the_layer_it_came_from():
    model = nn.Sequential(nn.Linear(32, 32))
    calls = []
    handle = model[0].register_forward_hook(lambda m, args, out: calls.append(type(m).__name__))
    model[0].register_full_backward_hook(lambda m, into, out: calls.append("backward"))
    converted = convert(model, TENSORWISE, emulate=True, inplace=True)
    converted(torch.randn(16, 32, requires_grad=True)).sum().backward()
    assert calls == ["FP8Linear", "backward"]
    handle.remove()
    converted(torch.randn(16, 32))
    assert calls == ["FP8Linear", "backward"]
