"""Rows of public databases that differ from the vendor's print: both values, where theirs stands, and why ours is taken."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kpt_lab.hardware.devices import DEVICES, by_name

TORCH = "torch._inductor.analysis.device_info"
_TOLERANCE = 0.02  # closer figures differ by rounding
_ROWS = {  # the table's key -> our row
    "NVIDIA H100": "h100-sxm",
    "NVIDIA A100": "a100-sxm4-80gb",
    "NVIDIA L4": "l4",
    "AMD MI300X": "mi300x",
    "AMD MI350X": "mi350x",
    "AMD MI210X": "mi210",
}
_NO_FIGURE = "the device has no such arithmetic, or its vendor prints no rate for it"
_SCALES = "a format of scales: nothing is multiplied in it alone"
_OCP = "the device has the OCP format, and the table lists the fnuz one, which it lacks"
_SPARSE = "twice the dense rate: the print with sparsity, taken as dense"
_HALVED = "the table halves every figure of this device as if with sparsity, and this one is printed dense"
_DIFFERENT = "the vendor's print is another"


@dataclass(frozen=True)
class Disagreement:
    """One figure of `device` in two prints, in SI units: None is "has none". `where` is where theirs stands."""

    database: str
    where: str
    device: str
    figure: str
    theirs: float | None
    ours: float | None
    why: str

    @property
    def text(self) -> str:
        """Both values in one line."""
        return (
            f"{self.database}: {self.device} {self.figure} {_show(self.theirs)}, vendor's print {_show(self.ours)}: {self.why}"
        )


def disagreements() -> list[Disagreement]:
    """What the installed torch's own table says otherwise than the vendors, as it stands now, and what others were seen to say."""
    return [*torch_table(), *RECORDED]


def torch_table() -> list[Disagreement]:
    """The installed torch's rows that differ from ours by more than rounding; none where that torch has no such table."""
    try:
        module = importlib.import_module(TORCH)
    except ImportError:
        return []
    found = [row for key, name in _ROWS.items() if key in module._device_mapping for row in _compare(module, key, name)]
    return [*found, *_unfound(module)]


def _compare(module: Any, key: str, name: str) -> Iterator[Disagreement]:
    device, info = by_name(name), module._device_mapping[key]
    row = functools.partial(Disagreement, f"torch {_torch_version()}", f"{TORCH}._device_mapping[{key!r}]", name)
    theirs = {"bandwidth": info.dram_bw_gbs * 1e9}
    share = getattr(info, "tops_sparsity_factor", 1)
    for kind, tera in info.tops.items():
        theirs[str(kind).removeprefix("torch.")] = tera * 1e12 / share
    ours = {figure: device.figures[figure].value for figure in device.figures if figure not in ("memory", "cache")}
    for figure in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(figure), ours.get(figure)
        if a is None:
            yield row(figure, a, b, _OCP if f"{figure}uz" in theirs else "the table has no such entry")
        elif b is None:
            yield row(figure, a, b, _SCALES if figure == "float8_e8m0fnu" else device.absent.get(figure, _NO_FIGURE))
        elif not math.isclose(a, b, rel_tol=_TOLERANCE):
            yield row(figure, a, b, _reason(figure, a / b, share, a))


def _reason(figure: str, ratio: float, share: float, theirs: float) -> str:
    """Why their figure, `ratio` times ours, is what it is, as far as the numbers themselves tell."""
    if figure == "bandwidth":
        same = [device.name for device in DEVICES if device.bandwidth and device.bandwidth.value == theirs]
        return f"that is the bandwidth of {same[0]}" if same else _DIFFERENT
    if math.isclose(ratio, 2, rel_tol=_TOLERANCE):
        return _SPARSE
    return _HALVED if share == 2 and math.isclose(ratio, 0.5, rel_tol=_TOLERANCE) else _DIFFERENT


def _unfound(module: Any) -> Iterator[Disagreement]:
    """Devices of the table that its look-up doesn't find by the name that their driver gives."""
    for name in ("h100-sxm", "a100-sxm4-80gb", "mi210"):
        device = by_name(name)
        for driver in device.drivers:
            if module.lookup_device_info(driver) is None:
                why = f"its keys are not drivers' names, so {driver!r} finds nothing"
                where = f"{TORCH}.lookup_device_info({driver!r})"
                assert device.bandwidth is not None
                yield Disagreement(f"torch {_torch_version()}", where, name, "bandwidth", None, device.bandwidth.value, why)


def _torch_version() -> str:
    return str(importlib.import_module("torch").__version__)


def _show(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _recorded(database: str, where: str, device: str, figure: str, theirs: float, why: str) -> Disagreement:
    ours = by_name(device).figures.get(figure)
    return Disagreement(database, where, device, figure, theirs, ours.value if ours else None, why)


_AO = ("torchao", "torchao/testing/training/roofline_utils.py at commit 0598012")
RECORDED = (
    _recorded(*_AO, "rtx-5090", "bandwidth", 1.792e15, "the prefix is wrong by a thousand"),
    _recorded(*_AO, "h100-sxm", "bandwidth", 2.4e12, "its own machines have another part, and the name doesn't say so"),
    _recorded("gpu.blog", "its page on the MI300X", "mi300x", "bfloat16", 330.6e12, "neither the dense nor the sparse print"),
    _recorded(
        "gpu.blog",
        "its page on the H100 SXM",
        "h100-sxm",
        "bfloat16",
        133e12,
        "about the vector units' rate, not the tensor cores'",
    ),
    _recorded("codesota", "its page on the MI300X", "mi300x", "float16", 2615e12, "called dense, and is with sparsity"),
    _recorded(
        "ml-engineering",
        "stas00/ml-engineering at commit 744d01e",
        "a100-sxm4-80gb",
        "float8_e4m3fn",
        624e12,
        "Ampere has no float8",
    ),
)
"""Rows read once in other databases, which may have changed since."""
