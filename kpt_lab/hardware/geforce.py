"""NVIDIA's GeForce devices as the white papers of their architectures give them; rates dense, with float32 accumulation."""

from __future__ import annotations

from kpt_lab.core import NOTHING
from kpt_lab.hardware.sheet import Device, Figure, Pins, Source, dense

_GA102 = Source(
    "NVIDIA Ampere GA102 GPU Architecture white paper v2, appendix A, table 9",
    "NVIDIA document, GA102 white paper v2",
    "as a public repository transcribes it",
)
_ADA = Source(
    "NVIDIA Ada GPU Architecture white paper v2.1, appendix A, table 2",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    "as public repositories transcribe it, which agree",
)
_BLACKWELL = Source(
    "NVIDIA RTX Blackwell GPU Architecture white paper, table 3",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
    "as public repositories transcribe it, which agree",
)
_NOTE = "Tensor rates are with float32 accumulation; with float16 accumulation float16 and float8 are twice as fast."


def _card(number: int, generation: str, source: Source, peaks: dict[str, Figure], memory: tuple, **more: object) -> Device:
    """A row of the GeForce RTX of that number; `memory` is bandwidth (GB/s), size (GB), bus (bits) and rate of a pin (Gbit/s)."""
    bandwidth, size, bits, rate = memory
    kilobytes = more.get("cache")
    return Device(
        f"rtx-{number}",
        f"NVIDIA GeForce RTX {number}",
        "NVIDIA",
        generation,
        (f"NVIDIA GeForce RTX {number}",),
        peaks,
        Figure(bandwidth, "GB/s", source),
        Figure(size, "GB", source),
        Figure(float(kilobytes), "KiB", source) if isinstance(kilobytes, int) else None,
        Pins(bits, rate, source),
        {"tf32": "the tf32 rate of the GeForce RTX 3090 was not verified"} if number == 3090 else NOTHING,
        _NOTE,
    )


DEVICES = (
    _card(
        3090,
        "Ampere GA102",
        _BLACKWELL,
        dense(_BLACKWELL, {"half": (71.2, 142.4), "float32": 35.6}) | dense(_GA102, {"int8": (284.0, 568.0)}),
        (936, 24, 384, 19.5),
    ),
    _card(
        4090,
        "Ada AD102",
        _ADA,
        dense(
            _ADA,
            {"half": (165.2, 330.4), "tf32": (82.6, 165.2), "float8": (330.3, 660.6), "int8": (660.6, 1321.2), "float32": 82.6},
        ),
        (1008, 24, 384, 21.0),
        cache=73728,
    ),
    _card(
        5090,
        "Blackwell GB202",
        _BLACKWELL,
        dense(
            _BLACKWELL,
            {
                "half": (209.5, 419.0),
                "tf32": (104.8, 209.5),
                "float8": (419.0, 838.0),
                "int8": (838.0, 1676.0),
                "float4": (1676.0, 3352.0),
                "float32": 104.8,
            },
        ),
        (1792, 32, 512, 28.0),
        cache=98304,
    ),
)
