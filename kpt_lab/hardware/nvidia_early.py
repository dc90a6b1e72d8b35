"""NVIDIA's data centre devices before sparsity, Fermi to Turing, as their data sheets give them; rates dense."""

from __future__ import annotations

from kpt_lab.core import NOTHING
from kpt_lab.hardware.sheet import Device, Figure, Pins, Source, dense

_FERMI = Source(
    "NVIDIA announcement of the Tesla M2090, May 2011",
    "NVIDIA press release",
    "as pcmasters.de and Computerworld.cz report it, which agree",
)
_KEPLER = Source(
    "NVIDIA announcement of the Tesla K40, November 2013",
    "NVIDIA press release",
    "as Geektopia reports it; Microway's page on the Tesla K40 agrees",
)
_MAXWELL = Source("NVIDIA Tesla M40 data sheet", "Microway's page on the Tesla M40", "as Microway, a vendor, quotes it")
BLOG = Source(
    "NVIDIA Ampere Architecture In-Depth (NVIDIA Technical Blog, 14 May 2020), table comparing P100, V100 and A100",
    "https://developer.nvidia.com/blog/nvidia-ampere-architecture-in-depth/",
    "read in the original",
    original=True,
)
_V100 = Source(
    "NVIDIA V100 data sheet 1165301-r5, V100 PCIe",
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    "as MosaicML Composer and PyTorch Lightning quote it, which agree",
)
_T4 = Source(
    "NVIDIA T4 product page, specifications",
    "https://www.nvidia.com/en-us/data-center/tesla-t4/",
    "as MosaicML Composer and PyTorch Lightning quote it, which agree; data sheet 951643 prints 300 GB/s",
)


def device(
    name: str,
    text: str,
    generation: str,
    drivers: list[str],
    peaks: dict[str, Figure],
    bandwidth: Figure | None,
    memory: Figure,
    *,
    cache: Figure | None = None,
    pins: Pins | None = None,
    note: str = "",
) -> Device:
    """A row of NVIDIA's."""
    absent = {} if bandwidth else {"bandwidth": f"NVIDIA's own print of the bandwidth of {text} was not found"}
    return Device(
        name, text, "NVIDIA", generation, tuple(drivers), peaks, bandwidth, memory, cache, pins, absent or NOTHING, note
    )


def gbs(number: float, source: Source) -> Figure:
    """A bandwidth in GB/s."""
    return Figure(number, "GB/s", source)


def gb(number: float, source: Source) -> Figure:
    """A memory in GB."""
    return Figure(number, "GB", source)


_FERMI_RATES = dense(_FERMI, {"float64": 0.665, "float32": 1.33})
_KEPLER_RATES = dense(_KEPLER, {"float32": 4.29, "float64": 1.43})
_MAXWELL_RATES = dense(_MAXWELL, {"float32": 7.0, "float64": 0.21})
_SXM2 = dense(BLOG, {"float16": 125.0, "float32": 15.7, "float64": 7.8})
_PCIE = dense(_V100, {"float16": 112.0, "float32": 14.0, "float64": 7.0})
_TURING = dense(_T4, {"float16": 65.0, "int8": 130.0, "float32": 8.1})


def _m40(size: int, drivers: list[str]) -> Device:
    text, speed = f"NVIDIA Tesla M40 {size} GB", gbs(288, _MAXWELL)
    return device(f"m40-{size}gb", text, "Maxwell GM200", drivers, _MAXWELL_RATES, speed, gb(size, _MAXWELL))


def _v100_sxm2(size: int) -> Device:
    return device(
        f"v100-sxm2-{size}gb",
        f"NVIDIA Tesla V100 SXM2 {size} GB",
        "Volta GV100",
        [f"Tesla V100-SXM2-{size}GB"],
        _SXM2,
        gbs(900, BLOG),
        gb(size, BLOG),
        cache=Figure(6144, "KiB", BLOG),
        pins=Pins(4096, 2 * 0.8775, BLOG),
    )


def _v100_pcie(size: int) -> Device:
    text, drivers = f"NVIDIA Tesla V100 PCIe {size} GB", [f"Tesla V100-PCIE-{size}GB"]
    return device(f"v100-pcie-{size}gb", text, "Volta GV100", drivers, _PCIE, gbs(900, _V100), gb(size, _V100))


DEVICES = (
    device("m2090", "NVIDIA Tesla M2090", "Fermi GF110", ["Tesla M2090"], _FERMI_RATES, None, gb(6, _FERMI)),
    device(
        "k40",
        "NVIDIA Tesla K40",
        "Kepler GK110B",
        ["Tesla K40m", "Tesla K40c"],
        _KEPLER_RATES,
        gbs(288, _KEPLER),
        gb(12, _KEPLER),
    ),
    _m40(12, ["Tesla M40"]),
    _m40(24, ["Tesla M40", "Tesla M40 24GB"]),
    device(
        "p100-sxm2",
        "NVIDIA Tesla P100 SXM2 16 GB",
        "Pascal GP100",
        ["Tesla P100-SXM2-16GB"],
        dense(BLOG, {"float16": 21.2, "float32": 10.6, "float64": 5.3}),
        gbs(720, BLOG),
        gb(16, BLOG),
        cache=Figure(4096, "KiB", BLOG),
        pins=Pins(4096, 2 * 0.703, BLOG),
        note="Its data sheet prints 732 GB/s, at a faster memory clock.",
    ),
    *(form(size) for form in (_v100_sxm2, _v100_pcie) for size in (16, 32)),
    device("t4", "NVIDIA T4", "Turing TU104", ["Tesla T4"], _TURING, gbs(320, _T4), gb(16, _T4)),
)
