"""The 8-bit formats beside torch: its own casts by version, torch.compile, and the counts that must be taken before a cast."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact_tables import beside, midpoints, nearest, same
from packaging.version import Version
from torch import Tensor

from kpt_lab.precision import formats
from kpt_lab.precision.formats import Counts, Format

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]

every_format = pytest.mark.parametrize("fmt", formats.formats, ids=lambda fmt: fmt.name)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
floats_only = pytest.mark.parametrize("fmt", formats.formats[:-1], ids=lambda fmt: fmt.name)


# torch's own cast


@every_device
@floats_only
def test_torch_casts_alike_up_to_the_largest_number(fmt: Format, device: str) -> None:
    x = torch.cat([torch.randn(10_000) * 2.0**exponent for exponent in range(-20, 16, 4)]).clamp(fmt.min, fmt.max).to(device)
    ties = torch.from_numpy(midpoints(fmt.name)[1:-1]).float().to(device)
    for values in (x, x.bfloat16(), x.half(), ties):
        inside = values.clamp(fmt.min, fmt.max)
        assert torch.equal(fmt.encode(inside), inside.to(fmt.dtype).view(torch.uint8))


@every_device
def test_torch_casts_beyond_it_by_version(device: str) -> None:
    """Why our own: float8_e4m3fn saturates since torch 2.12 (pytorch/pytorch#178817); the others never did."""
    x = torch.tensor([465.0, 1e9, math.inf, -math.inf], device=device)
    saturates = Version(torch.__version__.partition("+")[0]) >= Version("2.12")
    ours = formats.e4m3fn.round(x, overflow="saturate" if saturates else "nan")
    assert same(x.to(torch.float8_e4m3fn).float(), ours)
    x = torch.tensor([1e9, math.inf, -math.inf], device=device)
    assert same(x.to(torch.float8_e5m2).float(), formats.e5m2.round(x, overflow="inf"))
    for fmt in (formats.e4m3fnuz, formats.e5m2fnuz):
        assert same(x.to(fmt.dtype).float(), fmt.round(x, overflow="nan"))


# Counts


@every_device
@every_format
def test_counts_are_those_of_the_oracle(fmt: Format, device: str) -> None:
    for dtype in FLOATS:
        x = beside(midpoints(fmt.name), dtype)
        wide = x.double().numpy()
        finite = np.isfinite(wide)
        value, beyond = nearest(fmt.name, np.where(finite, wide, 1.0))
        found = fmt.counts(x.to(device))
        assert found.overflowed.device.type == device
        assert found.as_dict() == {
            "elements": x.numel(),
            "overflowed": int((finite & beyond).sum()),
            "flushed": int((finite & (value == 0) & (wide != 0)).sum()),
            "nonfinite": int((~finite).sum()),
        }


def test_counts_look_through_a_scale() -> None:
    x = torch.tensor([1e38, 1e-38, 1.0, 0.0, math.inf, math.nan])
    up, down = formats.e4m3fn.counts(x, scaled=x * 1e10), formats.e4m3fn.counts(x, scaled=x * 1e-38)
    assert up.as_dict() == {"elements": 6, "overflowed": 2, "flushed": 1, "nonfinite": 2}  # 1e48 is infinite in float32
    assert down.as_dict() == {"elements": 6, "overflowed": 0, "flushed": 2, "nonfinite": 2}  # 1e-76 is zero in float32
    assert (up + down).as_dict() == {"elements": 12, "overflowed": 2, "flushed": 3, "nonfinite": 4}


# torch.compile


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.float64, marks=pytest.mark.gpu),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it
def test_compiled_equals_eager(device: str, dtype: torch.dtype) -> None:
    def everything(x: Tensor) -> list[tuple[Tensor, Tensor, Tensor, Counts]]:
        results = []
        for fmt in formats.formats:
            codes = fmt.encode(x)
            results.append((fmt.round(x, overflow=fmt.overflows[-1]), codes, fmt.decode(codes), fmt.counts(x)))
        return results

    points = np.concatenate([midpoints(fmt.name) for fmt in formats.formats])
    x = beside(points, dtype).to(device)
    compiled = torch.compile(everything, fullgraph=True)(x)
    for ours, theirs in zip(everything(x), compiled, strict=True):
        assert same(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert same(ours[2], theirs[2])
        assert ours[3].as_dict() == theirs[3].as_dict()
