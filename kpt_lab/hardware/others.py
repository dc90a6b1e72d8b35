"""Devices of Intel, Apple and Google as their makers describe them; rates dense."""

from __future__ import annotations

from kpt_lab.core import NOTHING
from kpt_lab.hardware.sheet import Device, Figure, Pins, Source, dense

_ARK_MAX = Source(
    "Intel ARK, Data Center GPU Max 1550 (product 232873)",
    "ark.intel.com, product 232873",
    "as two public pages quote it, which agree",
)
_GAUDI3 = Source(
    "Intel Gaudi 3 AI Accelerator white paper 817486",
    "https://cdrdv2-public.intel.com/817486/gaudi-3-ai-accelerator-white-paper.pdf",
    "as public pages quote it; Intel's Hot Chips 2024 slides agree to three digits; a paper of July 2025 prints 1,678 TFLOP/s",
)
_ARK_B580 = Source(
    "Intel ARK, Arc B580 Graphics (product 241598)",
    "ark.intel.com, product 241598",
    "as public pages quote it",
)
_NO_MAX = "operators' guides print rates of the Data Center GPU Max 1550, but Intel's own print was not found"
_NO_FLOAT = "Intel prints no rate of the Arc B580 for this arithmetic"
_TWO_STACKS = "for two stacks"
_MAX_BANDWIDTH, _MAX_MEMORY = Figure(3276.8, "GB/s", _ARK_MAX), Figure(128, "GB", _ARK_MAX)
_MAX_DRIVERS = ("Intel(R) Data Center GPU Max 1550",)

INTEL = (
    Device(
        "max-1550",
        "Intel Data Center GPU Max 1550 (both stacks)",
        "Intel",
        "Ponte Vecchio",
        _MAX_DRIVERS,
        {},
        _MAX_BANDWIDTH,
        _MAX_MEMORY,
        absent={"peaks": _NO_MAX},
    ),
    Device(
        "max-1550-stack",
        "Intel Data Center GPU Max 1550, one stack",
        "Intel",
        "Ponte Vecchio",
        _MAX_DRIVERS,
        {},
        Figure(3276.8, "GB/s", _ARK_MAX, share=2, because=_TWO_STACKS),
        Figure(128, "GB", _ARK_MAX, share=2, because=_TWO_STACKS),
        absent={"peaks": _NO_MAX},
        note="What a driver shows as one device where it shows each stack.",
    ),
    Device(
        "gaudi3",
        "Intel Gaudi 3",
        "Intel",
        "Gaudi 3",
        ("GAUDI3",),
        dense(_GAUDI3, {"bfloat16": 1835.0, "float8": 1835.0}),
        Figure(3.7, "TB/s", _GAUDI3),
        Figure(128, "GB", _GAUDI3),
    ),
    Device(
        "arc-b580",
        "Intel Arc B580",
        "Intel",
        "Xe2",
        ("Intel(R) Arc(TM) B580 Graphics",),
        dense(_ARK_B580, {"int8": 233.0}),
        Figure(456, "GB/s", _ARK_B580),
        Figure(12, "GB", _ARK_B580),
        pins=Pins(192, 19, _ARK_B580),
        absent=dict.fromkeys(("float32", "float16", "bfloat16"), _NO_FLOAT),
    ),
)

_M1_PRO = Source(
    "Apple, Introducing M1 Pro and M1 Max (18 October 2021)",
    "https://www.apple.com/newsroom/2021/10/introducing-m1-pro-and-m1-max-the-most-powerful-chips-apple-has-ever-built/",
    "read in the original",
    original=True,
)
_ULTRA = Source(
    "Apple, Mac Studio (2022) technical specifications", "support.apple.com, Mac Studio (2022)", "as public pages transcribe it"
)
_M2 = Source("Apple, announcement of M2 (June 2022)", "apple.com/newsroom, 2022-06", "as MacRumors reports it")
_M2_PRO = Source(
    "Apple, announcement of M2 Pro and M2 Max (January 2023)", "apple.com/newsroom, 2023-01", "as Neowin reports it"
)
_M2_ULTRA = Source("Apple, announcement of M2 Ultra (June 2023)", "apple.com/newsroom, 2023-06", "as public pages quote it")
_M3_MAX = Source("Apple, announcement of M3 Max (October 2023)", "apple.com/newsroom, 2023-10", "as macmegasite reports it")
_M4 = Source(
    "Apple, announcements of the M4 family (May and October 2024)",
    "apple.com/newsroom, 2024-10",
    "as Neowin and MacRumors report them",
)
_NO_APPLE = "Apple prints no peak rate by type of arithmetic"
_UP_TO = 'Bandwidth and memory are those of the largest configuration ("up to").'


def _apple(chip: str, source: Source, bandwidth: float, memory: float | None) -> Device:
    absent = {"peaks": _NO_APPLE}
    if memory is None:
        absent["memory"] = f"the memory of Apple {chip} was not verified"
    return Device(
        chip.lower().replace(" ", "-"),
        f"Apple {chip}",
        "Apple",
        chip.split()[0],
        (f"Apple {chip}",),
        {},
        Figure(bandwidth, "GB/s", source),
        Figure(memory, "GB", source) if memory is not None else None,
        absent=absent,
        note=_UP_TO,
    )


APPLE = (
    _apple("M1 Pro", _M1_PRO, 200, 32),
    _apple("M1 Max", _M1_PRO, 400, 64),
    _apple("M1 Ultra", _ULTRA, 800, 128),
    _apple("M2", _M2, 100, 24),
    _apple("M2 Pro", _M2_PRO, 200, 32),
    _apple("M2 Max", _M2_PRO, 400, 96),
    _apple("M2 Ultra", _M2_ULTRA, 800, 192),
    _apple("M3 Max", _M3_MAX, 400, None),
    _apple("M4", _M4, 120, 32),
    _apple("M4 Pro", _M4, 273, 64),
    _apple("M4 Max", _M4, 546, 128),
)


def _tpu(
    version: str, drivers: tuple[str, ...], rates: dict[str, float], bandwidth: float, memory: tuple[float, str]
) -> Device:
    page = f"https://{'cloud' if version in ('v4', 'v5e') else 'docs.cloud'}.google.com/tpu/docs/{version}"
    source = Source(
        f"Google Cloud, TPU {version}, table of system architecture (per chip)", page, "read in the original", original=True
    )
    absent = {"int8": "the page gave no int8 rate that was verified"} if "int8" not in rates else NOTHING
    return Device(
        f"tpu-{version}",
        f"Google TPU {version}",
        "Google",
        f"TPU {version}",
        drivers,
        dense(source, rates),
        Figure(bandwidth, "GB/s", source),
        Figure(*memory, source),
        absent=absent,
    )


GOOGLE = (
    _tpu("v4", ("TPU v4",), {"bfloat16": 275.0, "int8": 275.0}, 1200, (32, "GiB")),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), {"bfloat16": 197.0, "int8": 393.0}, 819, (16, "GB")),
    _tpu("v5p", ("TPU v5p", "TPU v5"), {"bfloat16": 459.0}, 2765, (95, "GB")),
    _tpu("v6e", ("TPU v6 lite", "TPU v6e"), {"bfloat16": 918.0, "int8": 1836.0}, 1638, (32, "GB")),
)

DEVICES = (*INTEL, *APPLE, *GOOGLE)
