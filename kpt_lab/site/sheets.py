"""The device table and the public databases' errors in Markdown, from the code that holds them."""

from __future__ import annotations

from collections.abc import Iterable

from kpt_lab.core import Metric
from kpt_lab.hardware.devices import DEVICES
from kpt_lab.hardware.disagreements import Disagreement, disagreements
from kpt_lab.hardware.probe import quantity
from kpt_lab.hardware.sheet import Device, Figure, Source
from kpt_lab.tables import markdown

VENDORS = ("NVIDIA", "AMD", "Intel", "Apple", "Google")
PARTS = (*(f"devices-{vendor.lower()}" for vendor in VENDORS), "device-sources", "disagreements")
FIGURES = {  # columns, and the arithmetic types that a sheet prints in one row
    "float64": ("float64",),
    "float32": ("float32",),
    "tf32": ("tf32",),
    "16 bit": ("bfloat16", "float16"),
    "float8": ("float8_e4m3fn", "float8_e4m3fnuz"),
    "float4": ("float4_e2m1fn_x2",),
    "int8": ("int8",),
    "bandwidth": ("bandwidth",),
    "memory": ("memory",),
}
HALVED = "\N{DAGGER}"
_SCALE = {"FLOP/s": 1e12, "OP/s": 1e12, "B/s": 1e9, "B": 1e9}  # the page says: TFLOP/s, TOP/s, GB/s and GB


def sheets(part: str) -> str:
    """A part of the hardware page in Markdown: "devices-nvidia" and so on, "device-sources" or "disagreements"."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; accepted are {', '.join(map(repr, PARTS))}")
    if part == "disagreements":
        return markdown(("database", "device", "figure", "there", "vendor", "why"), map(_against, disagreements()))
    if part == "device-sources":
        return "\n".join(f"{number}. {_cited(source)}" for source, number in _numbers().items())
    vendor = next(each for each in VENDORS if part == f"devices-{each.lower()}")
    rows = [device for device in DEVICES if device.vendor == vendor]
    columns = [name for name, kinds in FIGURES.items() if any(_first(device, kinds) for device in rows)]
    header = ("device", "generation", *columns, "sources")
    return markdown(header, (_row(device, columns) for device in rows))


def _row(device: Device, columns: Iterable[str]) -> tuple[str, ...]:
    numbers = _numbers()
    cited = sorted({numbers[figure.source] for figure in device.figures.values()})
    cells = [_printed(_first(device, FIGURES[name])) for name in columns]
    return f"{device.text}, `{device.name}`", device.generation, *cells, ", ".join(map(str, cited))


def _first(device: Device, kinds: Iterable[str]) -> Figure | None:
    return next((device.figures[kind] for kind in kinds if kind in device.figures), None)


def _printed(figure: Figure | None) -> str:
    """A figure for one device, dense, in the page's units, with the mark of those that are half of what is printed; "-" for none."""
    if figure is None:
        return "-"
    return f"{figure.value / _SCALE[figure.base]:.4g}" + (f"\N{NO-BREAK SPACE}{HALVED}" if figure.share == 2 else "")


def _numbers() -> dict[Source, int]:
    """All sources in the order of the table, from 1."""
    found = dict.fromkeys(figure.source for device in DEVICES for figure in device.figures.values())
    return {source: number for number, source in enumerate(found, 1)}


def _cited(source: Source) -> str:
    title = f"[{source.title}]({source.where})" if source.where.startswith("https://") else f"{source.title} ({source.where})"
    return f"{title}: {source.read}."


def _against(row: Disagreement) -> tuple[str, ...]:
    database = f"[{row.database}]({row.where})" if row.where.startswith("https://") else f"{row.database}, `{row.where}`"
    return database, f"`{row.device}`", f"`{row.figure}`", _value(row, row.theirs), _value(row, row.ours), row.why


def _value(row: Disagreement, value: float | None) -> str:
    if value is None:
        return "none"
    unit = "B/s" if row.figure == "bandwidth" else "OP/s" if row.figure.startswith("int") else "FLOP/s"
    return quantity(Metric(value, unit, "quoted", source=row.where)).replace(" ", "\N{NO-BREAK SPACE}")
