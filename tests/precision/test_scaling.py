"""Dynamic scales against their definition in Python's own floats, and the error of scaled casts in dB."""

from __future__ import annotations

import math
import re
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from kpt_lab.precision import formats, scaling
from kpt_lab.precision.formats import Format, e4m3fn, e5m2, int8
from kpt_lab.precision.scaling import EPS, Scaling, cast_sqnr, quantise, scale_of, sqnr

every_format = pytest.mark.parametrize("fmt", formats.formats, ids=lambda fmt: fmt.name)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def defined_scale(values: list[float], fmt: Format, powers_of_two: bool = False) -> float:
    """The module's definition for one slice, in Python: float32 at the end."""
    scale = max([EPS, *(abs(value) for value in values if math.isfinite(value))]) / fmt.max
    if powers_of_two:
        mantissa, exponent = math.frexp(scale)  # mantissa in [0.5, 1)
        scale = math.ldexp(1.0, exponent - (mantissa == 0.5))
    return float(np.float32(scale))


@every_device
@pytest.mark.parametrize("powers_of_two", [False, True])
@every_format
def test_scales_are_those_of_the_definition(fmt: Format, powers_of_two: bool, device: str) -> None:
    x = torch.randn(7, 33) * 2.0 ** torch.arange(-60, 80, 20)[:, None]
    x[1] = 0
    x[2, 5] = 448.0  # a power of two above the largest of e4m3fn: its scale is 1 exactly
    rows = scale_of(x.to(device), fmt, "rowwise", powers_of_two=powers_of_two).cpu()
    assert rows.shape == (7, 1)
    assert rows.flatten().tolist() == [defined_scale(row, fmt, powers_of_two) for row in x.tolist()]
    whole = scale_of(x.to(device), fmt, powers_of_two=powers_of_two).cpu()
    assert whole.shape == ()
    assert whole.item() == defined_scale(x.flatten().tolist(), fmt, powers_of_two)
    columns = scale_of(x.to(device), fmt, "rowwise", dim=0, powers_of_two=powers_of_two).cpu()
    assert columns.shape == (1, 33)
    assert columns.flatten().tolist() == [defined_scale(column, fmt, powers_of_two) for column in x.t().tolist()]


@every_device
@every_format
def test_quantised_values_are_those_of_the_definition(fmt: Format, device: str) -> None:
    x = torch.randn(5, 40) * torch.tensor([1.0, 1e-6, 1e6, 30.0, 0.0])[:, None]
    for mode in ("tensorwise", "rowwise"):
        for powers_of_two in (False, True):
            found = quantise(x.to(device), fmt, mode, powers_of_two=powers_of_two)
            inverse = (1 / found.scale.cpu().double()).float()
            values = fmt.round(x * inverse)
            assert found.data.dtype == fmt.dtype
            assert torch.equal(found.data.cpu().float(), values)
            assert torch.equal(found.dequantise().cpu(), values * found.scale.cpu())
            assert torch.equal(found.dequantise(torch.bfloat16).cpu(), (values * found.scale.cpu()).bfloat16())


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50), st.booleans())
def test_a_dynamic_scale_never_clips(xs: list[float], powers_of_two: bool) -> None:
    x = torch.tensor(xs)
    for fmt in formats.formats:
        found = quantise(x, fmt, powers_of_two=powers_of_two)
        assert found.counts.as_dict()["overflowed"] == 0
        largest = found.data.float().abs().max()
        if x.abs().max() >= EPS:
            assert largest == fmt.max if not powers_of_two else largest >= fmt.round(torch.tensor(fmt.max / 2))
        error = (found.dequantise(torch.float64) - x.double()).abs()
        relative = 0.0 if fmt.is_integer else fmt.unit_roundoff
        step = fmt.smallest_subnormal * found.scale.double() / 2
        slack = 1 + 2**-20  # of scale, inverse and product, each rounded to float32
        assert (error <= slack * torch.maximum(relative * x.double().abs(), step) + 2**-21 * x.double().abs()).all()


@every_format
def test_rows_do_not_see_each_other(fmt: Format) -> None:
    x = torch.randn(4, 6, 32) * 10.0 ** torch.arange(4)[:, None, None]
    whole = quantise(x, fmt, "rowwise")
    for i in range(4):
        for j in range(6):
            alone = quantise(x[i, j], fmt)
            assert torch.equal(whole.data[i, j].float(), alone.data.float())
            assert whole.scale[i, j].item() == alone.scale.item()
    turned = quantise(x.transpose(1, 2), fmt, "rowwise", dim=1)
    assert torch.equal(turned.data.transpose(1, 2).float(), whole.data.float())


@pytest.mark.parametrize("mode", ["tensorwise", "rowwise"])
@every_format
def test_zeros_and_tiny_rows_stay_finite(fmt: Format, mode: Scaling) -> None:
    x = torch.zeros(3, 16)
    x[1] = 1e-40  # subnormal in float32, far below eps
    found = quantise(x, fmt, mode)
    assert found.dequantise().abs().max() <= 1e-12
    assert torch.equal(found.dequantise()[0], torch.zeros(16))
    assert found.counts.as_dict() == {"elements": 48, "overflowed": 0, "flushed": 16, "nonfinite": 0}


def test_values_that_are_not_finite_choose_no_scale() -> None:
    x = torch.randn(4, 64)
    clean = quantise(x, e4m3fn)
    place = int(x.abs().argmin())
    for planted in (math.inf, -math.inf, math.nan):
        spoiled = x.clone()
        spoiled.view(-1)[place] = planted
        found = quantise(spoiled, e4m3fn)
        assert found.scale == clean.scale
        rest = torch.arange(x.numel()) != place
        assert torch.equal(found.data.float().view(-1)[rest], clean.data.float().view(-1)[rest])
        assert found.counts.as_dict()["nonfinite"] == 1
        assert found.counts.as_dict()["overflowed"] == 0
        assert quantise(spoiled, e4m3fn, overflow="nan").dequantise().isnan().sum() == 1
    assert scale_of(torch.full((3,), math.nan), e4m3fn) == scale_of(torch.zeros(3), e4m3fn)


def test_a_scale_that_is_passed_in_is_used_and_its_harm_counted() -> None:
    x = torch.tensor([[1.0, 1000.0, 1e-5, 0.0]])
    found = quantise(x, e4m3fn, scale=torch.tensor(1.0))
    assert found.dequantise().tolist() == [[1.0, 448.0, 0.0, 0.0]]
    assert found.counts.as_dict() == {"elements": 4, "overflowed": 1, "flushed": 1, "nonfinite": 0}
    stale = quantise(torch.tensor([1e30, 1.0]), e4m3fn, scale=torch.tensor(1e-20))
    assert stale.counts.as_dict() == {"elements": 2, "overflowed": 2, "flushed": 0, "nonfinite": 0}  # 1e50: not in float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(8, 16).to(dtype)
    found = quantise(x, e4m3fn, "rowwise")
    assert found.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype != torch.float64:  # computed in float32
        assert torch.equal(found.data.float(), quantise(x.float(), e4m3fn, "rowwise").data.float())
    huge = quantise(torch.tensor([1e300, -3e299], dtype=torch.float64), int8).dequantise(torch.float64)
    assert huge.tolist() == pytest.approx([1e300, -3e299], rel=0.5 / 127 / 0.3)


@every_device
def test_scales_are_what_a_scaled_matmul_multiplies_by(device: str) -> None:
    a, b = quantise(torch.randn(32, 64, device=device), e4m3fn), quantise(torch.randn(48, 64, device=device), e4m3fn)
    product = torch._scaled_mm(a.data, b.data.t(), a.scale, b.scale, out_dtype=torch.bfloat16)
    exact = a.dequantise(torch.float64) @ b.dequantise(torch.float64).t()
    torch.testing.assert_close(product.double(), exact, rtol=2**-7, atol=1e-2)


@every_device
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it
def test_compiled_equals_eager(device: str) -> None:
    x = (torch.randn(16, 64) * 10.0 ** torch.arange(-8, 8)[:, None]).to(device)
    x[3] = 0
    run = lambda x: [quantise(x, fmt, "rowwise", powers_of_two=p2) for fmt, p2 in ((e4m3fn, False), (e5m2, True))]  # noqa: E731
    for ours, theirs in zip(run(x), torch.compile(run, fullgraph=True)(x), strict=True):
        assert torch.equal(ours.data.view(torch.uint8), theirs.data.view(torch.uint8))
        assert torch.equal(ours.scale, theirs.scale)
        assert ours.counts.as_dict() == theirs.counts.as_dict()


# SQNR


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=50), st.floats(1e-3, 1e3))
def test_sqnr_is_its_definition(xs: list[float], noise: float) -> None:
    x = torch.tensor(xs, dtype=torch.float64)
    signal = math.fsum(value * value for value in xs)
    error = math.fsum((value - (value + noise)) ** 2 for value in xs)
    if signal > 1e-6:
        assert sqnr(x, x + noise) == pytest.approx(10 * math.log10(signal / error), abs=1e-6)
    assert sqnr(x, x) == math.inf


def test_sqnr_at_the_ends() -> None:
    zero, tiny = torch.zeros(3), torch.tensor([1e-300, 2e-300], dtype=torch.float64)
    assert sqnr(zero, zero + 1) == -math.inf
    assert sqnr(tiny, tiny * 1.1) == pytest.approx(20.0)
    assert sqnr(tiny, zero[:2]) == sqnr(tiny * 1e-20, zero[:2]) == 0.0
    assert sqnr(tiny, tiny + 1e300) == -math.inf
    assert math.isnan(sqnr(zero, zero + math.nan))
    assert math.isnan(sqnr(torch.tensor([math.inf]), torch.ones(1)))
    assert sqnr(torch.empty(0), torch.empty(0)) == math.inf


@pytest.mark.parametrize("fmt", formats.formats[:-1], ids=lambda fmt: fmt.name)
def test_normal_values_have_at_least_the_sqnr_of_the_unit_roundoff(fmt: Format) -> None:
    x = torch.exp2(6 * torch.rand(1000)) * (torch.randint(0, 2, (1000,)) * 2 - 1)  # 6 binades: all normal after scaling
    floor = -20 * math.log10(fmt.unit_roundoff)
    for mode in ("tensorwise", "rowwise"):
        for powers_of_two in (False, True):
            assert cast_sqnr(x, fmt, mode, powers_of_two=powers_of_two) >= floor


def test_one_loud_token_costs_the_others_nothing_under_rowwise_scaling() -> None:
    x = torch.randn(64, 256)
    x[7] *= 1e5
    quiet = torch.arange(64) != 7

    def kept(mode: Scaling) -> float:
        return sqnr(x[quiet], quantise(x, e4m3fn, mode).dequantise(torch.float64)[quiet])

    assert kept("rowwise") >= 27
    assert kept("tensorwise") < 10
    # the whole tensor's figure hides it: the loud token is nearly all of the signal
    assert cast_sqnr(x, e4m3fn, "tensorwise") >= 27
    assert (
        quantise(x, e4m3fn, "tensorwise").counts.as_dict()["flushed"]
        > quantise(x, e4m3fn, "rowwise").counts.as_dict()["flushed"]
    )


# Wrong input


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: scale_of(torch.ones(2, dtype=torch.int32), e4m3fn), TypeError, "x holds int32; accepted are float64, float32"),
        (lambda: quantise([1.0], e4m3fn), TypeError, "x is a list; accepted is a torch tensor"),
        (
            lambda: quantise(ones(2), e4m3fn, "colwise"),
            ValueError,
            "scaling is 'colwise'; accepted are 'tensorwise' and 'rowwise'",
        ),
        (
            lambda: quantise(ones(0, 3), e4m3fn),
            ValueError,
            "x has the shape (0, 3); accepted are tensors with at least one element",
        ),
        (
            lambda: scale_of(ones(2), e4m3fn, "rowwise", dim=1),
            ValueError,
            "dim is 1 for a tensor of 1 dimensions; accepted are",
        ),
        (lambda: scale_of(ones(2)[0], e4m3fn, "rowwise"), ValueError, "dim is -1 for a tensor of 0 dimensions; accepted are"),
        (lambda: scale_of(ones(2), e4m3fn, eps=0.0), ValueError, "eps is 0.0; accepted are finite numbers from 1e-30 up"),
        (lambda: scale_of(ones(2), e4m3fn, eps=math.nan), ValueError, "eps is nan; accepted are finite numbers from 1e-30 up"),
        (
            lambda: quantise(ones(2), e4m3fn, scale=2.0),
            ValueError,
            "scale is a float; accepted is a float32 tensor that broadcasts",
        ),
        (
            lambda: quantise(ones(2), e4m3fn, scale=ones(3)),
            ValueError,
            "scale is float32 of the shape (3,); accepted is a float32",
        ),
        (
            lambda: quantise(ones(2), e4m3fn, scale=ones(1).double()),
            ValueError,
            "scale is float64 of the shape (1,); accepted is",
        ),
        (lambda: quantise(ones(2), int8, overflow="nan"), ValueError, "overflow is 'nan'; accepted for int8 are 'saturate'"),
        (
            lambda: sqnr(ones(2), ones(3)),
            ValueError,
            "approximation has the shape (3,), reference (2,); accepted are equal shapes",
        ),
        (
            lambda: scaling.dequantise(ones(2), ones(1), e5m2),
            TypeError,
            "codes are float32; accepted for e5m2 are tensors of uint8",
        ),
    ],
)
def test_wrong_input_is_one_sentence(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)) as raised:
        call()
    assert "\n" not in str(raised.value)
