"""NVIDIA's data centre devices as their data sheets give them, Ampere to Blackwell; rates dense, and what they are printed as."""

from __future__ import annotations

from kpt_lab.hardware import targets
from kpt_lab.hardware.nvidia_early import BLOG, device, gb, gbs
from kpt_lab.hardware.sheet import Device, Figure, Pins, Source, dense, halved

_A100 = Source(
    "NVIDIA A100 data sheet 1758950-r4",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    "as Thunder Compute's guide quotes it; PyTorch's device_info.py agrees on the SXM part",
)
_A10 = Source(
    "NVIDIA A10 data sheet",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf",
    "as two public repositories quote it, which agree",
)
_L4 = Source(
    "NVIDIA L4 product page, specifications",
    "https://www.nvidia.com/en-us/data-center/l4/",
    "as PyTorch's device_info.py (rates) and other public repositories quote it, the latter with its mark of sparsity",
)
_L40S = Source(
    "NVIDIA L40S product page, specifications",
    "https://www.nvidia.com/en-us/data-center/l40s/",
    "as two public repositories transcribe it, which agree",
)
_H100_PCIE = Source(
    "NVIDIA H100 Tensor Core GPU data sheet, H100 PCIe",
    "NVIDIA document, H100 Tensor Core GPU data sheet",
    "as HPC Tech, a vendor, reproduces it; the architecture white paper v1.04, as a public repository quotes it, agrees",
)
_H100_PAPER = Source(
    "NVIDIA H100 Tensor Core GPU Architecture white paper v1.04, table 3, H100 PCIe",
    "NVIDIA document, by title",
    "as a public repository quotes it",
)
_H100_NVL = Source(
    "NVIDIA H100 product page, H100 NVL",
    "https://www.nvidia.com/en-us/data-center/h100/",
    "as several public repositories transcribe it, which agree",
)
_NVL_BRIEF = Source(
    "NVIDIA H100 NVL product brief PB-11773-001_v01, memory specifications",
    "NVIDIA document PB-11773-001_v01",
    "as public repositories quote it",
)
_H200 = Source(
    "NVIDIA H200 product page, H200 NVL",
    "https://www.nvidia.com/en-us/data-center/h200/",
    "as several public repositories transcribe it, which agree",
)
_BLACKWELL = Source(
    "NVIDIA Blackwell data sheet 3384703, HGX B200 column (per GPU)",
    "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703",
    "as a public repository transcribes it; torchao and Glenn Lockwood's page agree on bfloat16 and float8",
)
_DGX = Source(
    "NVIDIA DGX B200 data sheet, memory",
    "NVIDIA document, DGX B200 data sheet",
    "as public repositories transcribe it; the HGX sheet prints 7.7 TB/s for one",
)
_GRACE = Source(
    "NVIDIA Blackwell data sheet 3384703, GB200 NVL72 column (per GPU)",
    "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703",
    "as a public repository transcribes it; the product page's column for a superchip of two GPUs agrees",
)
_TARGETS = (
    "as kpt_lab.hardware.targets states it; PyTorch's device_info.py quotes the H100 data sheet's rounded rates, which agree"
)


def _ampere_and_ada() -> list[Device]:
    rates = dense(
        BLOG, {"half": (312.0, 624.0), "tf32": (156.0, 312.0), "int8": (624.0, 1248.0), "float32": 19.5, "float64": 19.5}
    )
    note = "float64 is the tensor cores'; half of it outside them."
    forms = (
        ("a100-sxm4-40gb", "A100 SXM4 40 GB", "NVIDIA A100-SXM4-40GB", gbs(1555, BLOG), gb(40, BLOG)),
        ("a100-pcie-40gb", "A100 PCIe 40 GB", "NVIDIA A100-PCIE-40GB", gbs(1555, _A100), gb(40, _A100)),
        ("a100-sxm4-80gb", "A100 SXM4 80 GB", "NVIDIA A100-SXM4-80GB", gbs(2039, _A100), gb(80, _A100)),
        ("a100-pcie-80gb", "A100 PCIe 80 GB", "NVIDIA A100 80GB PCIe", gbs(1935, _A100), gb(80, _A100)),
    )
    l2, pins = Figure(40960, "KiB", BLOG), {"a100-sxm4-40gb": Pins(5120, 2 * 1.215, BLOG)}
    rows = [
        device(name, f"NVIDIA {text}", "Ampere GA100", [driver], rates, speed, size, cache=l2, pins=pins.get(name), note=note)
        for name, text, driver, speed, size in forms
    ]
    a10 = dense(_A10, {"half": (125.0, 250.0), "tf32": 62.5, "int8": 250.0, "float32": 31.2})
    l4 = halved(_L4, {"half": 242.0, "tf32": 120.0, "float8": 485.0, "int8": 485.0}) | dense(_L4, {"float32": 30.3})
    l40s = dense(
        _L40S,
        {"half": (362.05, 733.0), "tf32": (183.0, 366.0), "float8": (733.0, 1466.0), "int8": (733.0, 1466.0), "float32": 91.6},
    )
    return [
        *rows,
        device("a10", "NVIDIA A10", "Ampere GA102", ["NVIDIA A10"], a10, gbs(600, _A10), gb(24, _A10)),
        device("l4", "NVIDIA L4", "Ada AD104", ["NVIDIA L4"], l4, gbs(300, _L4), gb(24, _L4)),
        device("l40s", "NVIDIA L40S", "Ada AD102", ["NVIDIA L40S"], l40s, gbs(864, _L40S), gb(48, _L40S)),
    ]


def _hopper() -> list[Device]:
    pcie = halved(_H100_PCIE, {"half": 1513.0, "tf32": 756.0, "float8": 3026.0, "int8": 3026.0}) | dense(
        _H100_PCIE, {"float32": 51.0, "float64": 51.0}
    )
    note = "float64 is the tensor cores'; half of it outside them."
    rows = [
        _from_target("h100-sxm", "NVIDIA H100 SXM5 80 GB", "NVIDIA H100 80GB HBM3", 80),
        _from_target("h200-sxm", "NVIDIA H200 SXM 141 GB", "NVIDIA H200", 141),
        device(
            "h100-pcie",
            "NVIDIA H100 PCIe 80 GB",
            "Hopper GH100",
            ["NVIDIA H100 PCIe"],
            pcie,
            gbs(2000, _H100_PCIE),
            gb(80, _H100_PCIE),
            cache=Figure(50, "MiB", _H100_PAPER),
            note=note,
        ),
    ]
    for name, driver, source, speed, size in (
        ("h100-nvl", "NVIDIA H100 NVL", _H100_NVL, gbs(3938, _NVL_BRIEF), 94),
        ("h200-nvl", "NVIDIA H200 NVL", _H200, Figure(4.8, "TB/s", _H200), 141),
    ):
        rates = halved(source, {"half": 1671.0, "tf32": 835.0, "float8": 3341.0, "int8": 3341.0}) | dense(
            source, {"float32": 60.0, "float64": 60.0}
        )
        pins = Pins(6016, 2 * 2.619, _NVL_BRIEF) if name == "h100-nvl" else None
        rows.append(device(name, driver, "Hopper GH100", [driver], rates, speed, gb(size, source), pins=pins, note=note))
    return rows


def _blackwell() -> list[Device]:
    b200 = halved(_BLACKWELL, {"half": 4.5, "tf32": 2.2, "float8": 9.0, "int8": 9.0, "float4": 18.0}, "P")
    gb200 = halved(_GRACE, {"half": 5.0, "tf32": 2.5, "float8": 10.0, "int8": 10.0, "float4": 20.0}, "P")
    eight = Figure(64, "TB/s", _DGX, share=8, because="for eight GPUs")
    return [
        device(
            "b200",
            "NVIDIA B200 SXM",
            "Blackwell",
            ["NVIDIA B200"],
            b200 | dense(_BLACKWELL, {"float32": 75.0, "float64": 37.0}),
            eight,
            gb(180, _BLACKWELL),
        ),
        device(
            "gb200",
            "NVIDIA GB200, one of its two GPUs",
            "Blackwell",
            ["NVIDIA GB200"],
            gb200 | dense(_GRACE, {"float32": 80.0, "float64": 40.0}),
            Figure(8, "TB/s", _GRACE),
            gb(186, _GRACE),
        ),
    ]


def _from_target(name: str, text: str, driver: str, size: float) -> Device:
    """The row of a Target that records already use: its figures and sources, unchanged."""
    target = targets.find("cuda", driver)
    assert target is not None
    source = {figure: Source(line, "kpt_lab/hardware/targets.py", _TARGETS) for figure, line in target.source.items()}
    peaks = {
        kind: Figure(peak / 1e12, "TOP/s" if kind.startswith("int") else "TFLOP/s", source[kind])
        for kind, peak in target.peaks.items()
    }
    return Device(
        name,
        text,
        "NVIDIA",
        "Hopper GH100",
        (driver,),
        peaks,
        Figure(target.bandwidth / 1e12, "TB/s", source["bandwidth"]),
        gb(size, source["bandwidth"]),
        Figure(target.cache / 2**20, "MiB", source["cache"]),
        note="float32 is outside the tensor cores, float64 in them.",
    )


DEVICES = (*_ampere_and_ada(), *_hopper(), *_blackwell())
