"""The 8-bit formats against tables of exact fractions: every code, every tie and what lies beside it, every special value."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from exact_tables import beside, expected, ladder, midpoints, same, table
from hypothesis import given
from torch import Tensor

from kpt_lab.precision import formats
from kpt_lab.precision.formats import Format

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

every_format = pytest.mark.parametrize("fmt", formats.formats, ids=lambda fmt: fmt.name)
every_device = pytest.mark.parametrize("device", DEVICES)
floats_only = pytest.mark.parametrize("fmt", formats.formats[:-1], ids=lambda fmt: fmt.name)


def all_of(dtype: torch.dtype) -> Tensor:
    """Every value of a dtype of 16 bits, NaN and infinities included."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


# Codes


@every_device
@every_format
def test_every_code_has_its_value(fmt: Format, device: str) -> None:
    values = [float(value) for value in table(fmt.name)]
    for dtype in FLOATS:
        decoded = fmt.values(dtype, device)
        assert decoded.dtype == dtype
        assert decoded.device.type == device
        np.testing.assert_array_equal(decoded.double().cpu().numpy(), values)
    negative_zero = fmt.values()[128]
    assert math.isnan(negative_zero) if fmt.fnuz else negative_zero == -128 if fmt.is_integer else negative_zero.signbit()


@every_format
def test_torch_reads_the_same_codes(fmt: Format) -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert same(codes.view(fmt.dtype).float(), fmt.values())
    assert same(fmt.decode(codes.view(fmt.dtype)), fmt.values())


@every_device
@every_format
def test_every_code_comes_back(fmt: Format, device: str) -> None:
    overflow = fmt.overflows[-1]  # lets infinities through where the format has them
    for dtype in FLOATS:
        codes = fmt.encode(fmt.values(dtype, device), overflow=overflow).cpu().tolist()
        nans = [code for code, value in enumerate(table(fmt.name)) if value == "nan"]
        assert [code for code in range(256) if codes[code] != code and code not in nans] == []
        assert {codes[code] for code in nans} == set(nans) & {0x7F, 0x80}
        assert fmt.nan_code in {codes[code] for code in nans} | {None}


@every_format
def test_constants_are_those_of_the_table(fmt: Format) -> None:
    numbers = sorted(value for value in table(fmt.name) if isinstance(value, Fraction))
    positive = [value for value in numbers if value > 0]
    assert (fmt.max, fmt.min, fmt.smallest_subnormal) == (max(numbers), min(numbers), min(positive))
    if fmt.is_integer:
        assert math.isnan(fmt.smallest_normal)
        assert math.isnan(fmt.unit_roundoff)
        return
    info = torch.finfo(fmt.dtype)
    assert (info.max, info.min, info.smallest_normal) == (fmt.max, fmt.min, fmt.smallest_normal)
    after_one = min(value for value in positive if value > 1)
    assert fmt.unit_roundoff == (after_one - 1) / 2


@every_format
def test_fields_spell_the_code(fmt: Format) -> None:
    kinds = set()
    for code, value in enumerate(table(fmt.name)):
        fields = fmt.fields(code)
        kinds.add(fields.kind)
        assert (fields.sign << 7) | (fields.exponent << fmt.mantissa_bits) | fields.mantissa == code == fields.code
        assert fields.value == float(value) or (value == "nan" and fields.kind == "nan")
        if fields.kind in ("normal", "subnormal"):
            hidden = fields.kind == "normal"
            significand = hidden + Fraction(fields.mantissa, 2**fmt.mantissa_bits)
            assert (-1) ** fields.sign * significand * Fraction(2) ** (max(fields.exponent, 1) - fmt.bias) == value
    if fmt.is_integer:
        assert kinds == {"zero", "integer"}
    else:
        assert kinds == {"zero", "subnormal", "normal", "nan"} | (set() if fmt.finite else {"infinity"})


# Rounding


@every_device
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@every_format
def test_ties_and_their_neighbours(fmt: Format, dtype: torch.dtype, device: str) -> None:
    x = beside(midpoints(fmt.name), dtype)
    for overflow in fmt.overflows:
        rounded = fmt.round(x.to(device), overflow=overflow)
        assert same(rounded.cpu(), expected(fmt.name, x, overflow).to(dtype))
        codes = fmt.encode(x.to(device), overflow=overflow)
        assert same(fmt.decode(codes, dtype), rounded)
        assert codes.dtype == torch.uint8


@every_format
def test_numbers_stay_and_their_neighbours_come_back(fmt: Format) -> None:
    numbers = np.array([float(value) for value, _ in ladder(fmt.name)[1:-1]])
    for dtype in (torch.float64, torch.float32):
        exact = torch.from_numpy(numbers).to(dtype)
        for x in (exact, *beside(numbers, dtype)[: 3 * len(numbers)].chunk(3)):
            assert torch.equal(fmt.round(x), exact)


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_format
def test_every_value_of_16_bits(fmt: Format, dtype: torch.dtype, device: str) -> None:
    x = all_of(dtype)
    for overflow in fmt.overflows:
        assert same(fmt.round(x.to(device), overflow=overflow).cpu(), expected(fmt.name, x, overflow).to(dtype))


@pytest.mark.parametrize(
    ("fmt", "last", "first"),
    [
        (formats.e4m3fn, 464.0, math.nextafter(464, math.inf)),  # 448 is even: the tie stays
        (formats.e4m3fnuz, math.nextafter(248, 0), 248.0),  # 240 is odd: the tie overflows
        (formats.e5m2, math.nextafter(61440, 0), 61440.0),
        (formats.e5m2fnuz, math.nextafter(61440, 0), 61440.0),
        (formats.int8, math.nextafter(127.5, 0), 127.5),
    ],
    ids=lambda value: value.name if isinstance(value, Format) else "",
)
def test_overflow_begins_where_rounding_passes_the_largest(fmt: Format, last: float, first: float) -> None:
    x = torch.tensor([last, first, math.inf, -math.inf], dtype=torch.float64)
    assert fmt.round(x).tolist() == [fmt.max, fmt.max, fmt.max, fmt.min]
    assert fmt.counts(x).as_dict() == {"elements": 4, "overflowed": 1, "flushed": 0, "nonfinite": 2}
    if "nan" in fmt.overflows:
        assert fmt.round(x, overflow="nan").isnan().tolist() == [False, True, True, True]
    if "inf" in fmt.overflows:
        assert fmt.round(x, overflow="inf").tolist() == [fmt.max, math.inf, math.inf, -math.inf]


def test_int8_reaches_one_further_below() -> None:
    x = torch.tensor([-127.5, -128.5, math.nextafter(-128.5, -math.inf), math.nan, -0.0], dtype=torch.float64)
    assert formats.int8.round(x).tolist() == [-128, -128, -128, 0, 0]
    assert formats.int8.cast(x).tolist() == [-128, -128, -128, 0, 0]
    assert formats.int8.counts(x).as_dict() == {"elements": 5, "overflowed": 1, "flushed": 0, "nonfinite": 1}


@floats_only
def test_nan_is_one_code_whatever_its_bits(fmt: Format) -> None:
    payloads = torch.tensor([0x7FC00000, -0x400000, 0x7F800001, -0x7FFFFF, 0x7FFFFFFF, -1], dtype=torch.int32).view(
        torch.float32
    )
    assert payloads.isnan().all()
    assert set(fmt.encode(payloads).tolist()) == {fmt.nan_code}


def test_float64_is_rounded_once() -> None:
    x = torch.tensor([1 + 2**-4 + 2**-40], dtype=torch.float64)  # just above the tie between 1 and 1.125
    assert formats.e4m3fn.round(x).item() == 1.125
    assert formats.e4m3fn.round(x.float()).item() == 1.0  # float32 has already rounded it to the tie


@given(st.lists(st.floats(width=64), min_size=1, max_size=200))
def test_any_float64(xs: list[float]) -> None:
    x = torch.tensor(xs, dtype=torch.float64)
    for fmt in formats.formats:
        assert same(fmt.round(x), expected(fmt.name, x))
        assert same(fmt.decode(fmt.encode(x), torch.float64), expected(fmt.name, x))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=200), st.integers(-30, 30))
def test_monotone_idempotent_and_odd(xs: list[float], shift: int) -> None:
    x = torch.tensor(xs).sort().values
    x = torch.cat([x, x * 2.0**shift]).sort().values
    for fmt in formats.formats:
        rounded = fmt.round(x)
        assert (rounded.diff() >= 0).all()
        assert same(fmt.round(rounded), rounded)
        if not fmt.is_integer:
            assert torch.equal(fmt.round(-x), -rounded)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_relative_error_is_at_most_a_unit_roundoff(xs: list[float]) -> None:
    x = torch.tensor(xs, dtype=torch.float64)
    for fmt in formats.formats[:-1]:
        normal = x[(x.abs() >= fmt.smallest_normal) & (x.abs() <= fmt.max)]
        assert ((fmt.round(normal) - normal).abs() <= fmt.unit_roundoff * normal.abs()).all()


def test_shape_strides_and_gradient() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    turned = x.t()[::2].expand(3, 2, 6)
    for fmt in formats.formats:
        assert same(fmt.round(turned), fmt.round(turned.contiguous()))
        assert fmt.cast(turned).shape == turned.shape
        assert not fmt.round(x).requires_grad
        assert fmt.round(torch.tensor(1.3)).shape == ()
        assert fmt.encode(torch.empty(0, 3)).shape == (0, 3)


# Wrong input


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda f: f.round(torch.tensor([1, 2])),
            TypeError,
            "x holds int64; accepted are float64, float32, float16 and bfloat16",
        ),
        (lambda f: f.encode(torch.ones(2, dtype=torch.complex64)), TypeError, "x holds complex64; accepted are float64"),
        (lambda f: f.cast(torch.ones(2).to(torch.float8_e5m2)), TypeError, "x holds float8_e5m2; accepted are float64"),
        (lambda f: f.counts([1.0]), TypeError, "x is a list; accepted is a torch tensor"),
        (
            lambda f: f.counts(torch.ones(2), scaled=torch.ones(3)),
            ValueError,
            "scaled has the shape (3,), x (2,); accepted are",
        ),
        (
            lambda f: f.round(torch.ones(2), overflow="inf"),
            ValueError,
            "overflow is 'inf'; accepted for e4m3fn are 'saturate', 'nan'",
        ),
        (lambda f: f.round(torch.ones(2), overflow="wrap"), ValueError, "overflow is 'wrap'; accepted for e4m3fn are"),
        (
            lambda f: f.decode(torch.tensor([1])),
            TypeError,
            "codes are int64; accepted for e4m3fn are tensors of uint8 or float8_e4m3fn",
        ),
        (lambda f: f.decode(torch.ones(1).to(torch.float8_e5m2)), TypeError, "codes are float8_e5m2; accepted for e4m3fn are"),
        (lambda f: f.decode(7), TypeError, "codes are a int; accepted for e4m3fn are tensors"),
        (lambda f: f.values(torch.int8), TypeError, "dtype is int8; accepted are float64, float32, float16 and bfloat16"),
        (lambda f: f.fields(256), ValueError, "code is 256; accepted are integers from 0 to 255"),
        (lambda f: f.fields(1.0), ValueError, "code is 1.0; accepted are integers from 0 to 255"),
    ],
)
def test_wrong_input_is_one_sentence(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)) as raised:
        call(formats.e4m3fn)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=re.escape("overflow is 'nan'; accepted for int8 are 'saturate'")):
        formats.int8.round(torch.ones(1), overflow="nan")
