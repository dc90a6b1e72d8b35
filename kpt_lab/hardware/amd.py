"""AMD's Instinct devices as their data sheets give them; rates dense, of the matrix cores where they have one."""

from __future__ import annotations

from kpt_lab.core import NOTHING
from kpt_lab.hardware.sheet import Device, Figure, Source, dense, halved

_DOCS = "https://www.amd.com/content/dam/amd/en/documents"
_MI210 = Source(
    "AMD Instinct MI210 brochure",
    f"{_DOCS}/instinct-business-docs/product-briefs/instinct-mi210-brochure.pdf",
    "as PyTorch's device_info.py quotes it",
)
_MI250X = Source(
    "AMD Instinct MI250X product page and announcement table, November 2021 (module of two dies)",
    "amd.com, AMD Instinct MI250X",
    "as a public report transcribes it; torchtitan's 191.5 TFLOP/s of one die agrees",
)
_MI300X = Source(
    "AMD Instinct MI300X data sheet",
    f"{_DOCS}/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf",
    "as PyTorch's device_info.py (dense) and a public repository (dense and with sparsity) quote it, which agree",
)
_MI325X = Source(
    "AMD Instinct MI325X product page, specifications",
    "amd.com, AMD Instinct MI325X",
    "as a public repository transcribes it; AMD's ROCm blog agrees on bfloat16, int8 and float8, Vultr's documents on memory",
)
_MI350X = Source(
    "AMD Instinct MI350X brochure",
    f"{_DOCS}/instinct-tech-docs/product-briefs/amd-instinct-mi350x-gpu-brochure.pdf",
    "as PyTorch's device_info.py quotes it",
)
_MI355X = Source(
    "AMD Instinct MI355X brochure LE-92703-00",
    "AMD document LE-92703-00",
    "as a public repository transcribes it",
)
_NO_TF32 = {"tf32": "CDNA 4 has no TF32 in its matrix cores (AMD CDNA 4 white paper)"}
_NO_FP8 = {f"float8_{kind}": "CDNA 2 has no float8" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")}
_TWO_DIES = "for two dies"
_MODULE = {"half": 383.0, "int8": 383.0, "float32": 95.7, "float64": 95.7}


def _instinct(
    model: str,
    generation: str,
    peaks: dict[str, Figure],
    bandwidth: Figure,
    memory: Figure,
    absent: dict[str, str] | None = None,
    note: str = "",
) -> Device:
    """A row of the Instinct of that model: "MI300X", or "MI250X GCD" for one die of a module."""
    name, driver = model.lower().replace(" ", "-"), f"AMD Instinct {model.split()[0]}"
    text = f"AMD Instinct {model}"
    return Device(name, text, "AMD", generation, (driver,), peaks, bandwidth, memory, absent=absent or NOTHING, note=note)


def _tb(number: float, source: Source) -> Figure:
    return Figure(number, "TB/s", source)


def _gb(number: float, source: Source) -> Figure:
    return Figure(number, "GB", source)


_CDNA3 = {"half": (1307.4, 2614.9), "tf32": (653.7, 1307.4), "float8_fnuz": (2614.9, 5229.8), "int8": (2614.9, 5229.8)}
_CDNA4 = {"half": (2516.6, 5033.2), "float8": (5033.2, 10066.4), "int8": (5033.2, 10066.4)}

DEVICES = (
    _instinct(
        "MI210",
        "CDNA 2",
        dense(_MI210, {"half": 181.0, "int8": 181.0, "float32": 45.3, "float64": 45.3}),
        _tb(1.6, _MI210),
        _gb(64, _MI210),
        _NO_FP8,
    ),
    _instinct(
        "MI250X",
        "CDNA 2",
        dense(_MI250X, _MODULE),
        _tb(3.2, _MI250X),
        _gb(128, _MI250X),
        _NO_FP8,
        "The module of two dies; a driver shows each die as a device: mi250x-gcd.",
    ),
    _instinct(
        "MI250X GCD",
        "CDNA 2",
        halved(_MI250X, _MODULE, because=_TWO_DIES),
        Figure(3.2, "TB/s", _MI250X, share=2, because=_TWO_DIES),
        Figure(128, "GB", _MI250X, share=2, because=_TWO_DIES),
        _NO_FP8,
        "One die of the module, which is what a driver shows as one device.",
    ),
    _instinct(
        "MI300X", "CDNA 3", dense(_MI300X, {**_CDNA3, "float32": 163.4, "float64": 163.4}), _tb(5.3, _MI300X), _gb(192, _MI300X)
    ),
    _instinct(
        "MI325X",
        "CDNA 3",
        dense(_MI325X, {**_CDNA3, "float32": 163.4}),
        _tb(6.0, _MI325X),
        _gb(256, _MI325X),
        {"float64": "the float64 rate of the MI325X was not verified"},
    ),
    _instinct(
        "MI350X",
        "CDNA 4",
        dense(_MI350X, {"half": 2309.6, "float8": 4614.0, "int8": 4614.0, "float32": 144.2, "float64": 72.1}),
        _tb(8.0, _MI350X),
        _gb(288, _MI350X),
        _NO_TF32,
    ),
    _instinct(
        "MI355X",
        "CDNA 4",
        dense(_MI355X, {**_CDNA4, "float4": 10066.3, "float32": 157.3, "float64": 78.6}),
        _tb(8.0, _MI355X),
        _gb(288, _MI355X),
        _NO_TF32,
    ),
)
