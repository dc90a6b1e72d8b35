"""A data sheet as data: what a vendor prints of a device, where, how that was read, and the arithmetic that makes a ceiling of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kpt_lab.core import NOTHING, FrozenDict, Metric, Target

_PREFIXES = {"": 1.0, "G": 1e9, "T": 1e12, "P": 1e15, "Gi": 2.0**30, "Mi": 2.0**20, "Ki": 2.0**10}
_UNITS = ("FLOP/s", "OP/s", "B/s", "B")
# One printed row stands for several arithmetic types: vendors print FP16 and BF16, and FP8, without telling the formats apart.
_KINDS = {
    "half": ("float16", "bfloat16"),
    "float8": ("float8_e4m3fn", "float8_e5m2"),
    "float8_fnuz": ("float8_e4m3fnuz", "float8_e5m2fnuz"),
    "float4": ("float4_e2m1fn_x2",),
}


@dataclass(frozen=True)
class Source:
    """A publication: title with the table or column, address, and how its figures were read.

    `original` is False where the publication itself was not at hand and its figures are as others quote it; `read` says who.
    """

    title: str
    where: str
    read: str
    original: bool = False


@dataclass(frozen=True)
class Figure:
    """One printed number and what it comes to: `value` is `number` in SI units divided by `share`.

    `share` is 2 where the print is with 2:4 sparsity, or the number of devices that it is for; `because` says so. `sparse` is
    the number with sparsity, where the source prints both.
    """

    number: float
    unit: str
    source: Source
    share: int = 1
    because: str = ""
    sparse: float | None = None

    def __post_init__(self) -> None:
        if self.base not in _UNITS or self.unit.removesuffix(self.base) not in _PREFIXES:
            raise ValueError(
                f"unit is {self.unit!r}; accepted are {', '.join(_UNITS)} with or without a prefix such as T or Gi"
            )
        if self.share != 1 and not self.because:
            raise ValueError(f"share is {self.share}, so because must say why the printed number is divided")

    @property
    def base(self) -> str:
        """The unit without its prefix: "FLOP/s", "OP/s", "B/s" or "B"."""
        return next((unit for unit in _UNITS if self.unit.endswith(unit)), self.unit)

    @property
    def value(self) -> float:
        """The figure in its base unit, dense and for one device."""
        return self.number * _PREFIXES[self.unit.removesuffix(self.base)] / self.share

    @property
    def text(self) -> str:
        """Source, what it prints, the arithmetic, and how it was read."""
        printed = f"{self.number:,.10g} {self.unit}"
        if self.sparse is not None:
            printed += f" dense ({self.sparse:,.10g} with sparsity)"
        if self.because:
            printed += f" {self.because}, so divided by {self.share}"
        return f"{self.source.title}: {printed}; {self.source.read}"

    @property
    def metric(self) -> Metric:
        """The figure as a quoted Metric."""
        return Metric(self.value, self.base, "quoted", source=self.text)


@dataclass(frozen=True)
class Pins:
    """What a memory bus comes to: `bits` wide at `rate` Gbit/s on each pin (for HBM twice the printed clock), both published."""

    bits: int
    rate: float
    source: Source

    @property
    def value(self) -> float:
        """Bandwidth in B/s."""
        return self.bits * self.rate * 1e9 / 8

    @property
    def text(self) -> str:
        """The arithmetic and its source."""
        return f"{self.source.title}: {self.bits} bit at {self.rate:.10g} Gbit/s a pin, divided by 8; {self.source.read}"


@dataclass(frozen=True)
class Device:
    """A device as its vendor describes it. A figure that could not be verified is left out, and `missing` says so.

    `drivers` are its names as the driver (or framework) gives them. `pins` is what bus width and clock come to, where both
    are published: a limit on `bandwidth`, no figure of its own. `cache` is the last-level cache.
    """

    name: str
    text: str
    vendor: str
    generation: str
    drivers: tuple[str, ...]
    peaks: Mapping[str, Figure]
    bandwidth: Figure | None = None
    memory: Figure | None = None
    cache: Figure | None = None
    pins: Pins | None = None
    absent: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("peaks", "absent"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    @property
    def figures(self) -> dict[str, Figure]:
        """All figures by name: arithmetic types, then "bandwidth", "memory" and "cache" where there are any."""
        others = {name: getattr(self, name) for name in ("bandwidth", "memory", "cache")}
        return {**self.peaks, **{name: figure for name, figure in others.items() if figure is not None}}

    def missing(self, figure: str) -> str:
        """One sentence: why this row has no figure of that name, or "" where it has one."""
        if figure in self.figures:
            return ""
        return self.absent.get(figure) or f"no {figure} of {self.text} was found in a source that can be named"

    def target(self) -> Target:
        """The device as a Target for bounds; ValueError where its bandwidth or all of its peaks are missing."""
        if self.bandwidth is None or not self.peaks:
            why = self.missing("bandwidth") or self.missing("peaks")
            raise ValueError(f"{self.name!r} can't bound a time: {why}")
        source = {name: f"{figure.text} (quoted)" for name, figure in self.figures.items() if name != "memory"}
        sparse = any(figure.sparse is not None or "sparsity" in figure.because for figure in self.peaks.values())
        features = {"2:4"} if sparse else set()
        if any(kind.startswith("float8") for kind in self.peaks):
            features.add("fp8")
        return Target(
            self.name,
            {kind: figure.value for kind, figure in self.peaks.items()},
            self.bandwidth.value,
            source,
            features=frozenset(features),
            cache=self.cache.value if self.cache else 0.0,
        )


def dense(source: Source, rates: Mapping[str, float | tuple[float, float]], unit: str = "T") -> dict[str, Figure]:
    """Figures printed dense, by arithmetic type, in units of `unit` FLOP/s; a pair is printed as dense and with sparsity."""
    figures = {}
    for kind, number in rates.items():
        plain, sparse = number if isinstance(number, tuple) else (number, None)
        for name in _KINDS.get(kind, (kind,)):
            figures[name] = Figure(plain, _rate(unit, name), source, sparse=sparse)
    return figures


def halved(source: Source, rates: Mapping[str, float], unit: str = "T", because: str = "with sparsity") -> dict[str, Figure]:
    """Figures of which only the number with sparsity (or for two devices, as `because` says) is printed: ours is half of it."""
    return {
        name: Figure(number, _rate(unit, name), source, share=2, because=because)
        for kind, number in rates.items()
        for name in _KINDS.get(kind, (kind,))
    }


def _rate(prefix: str, kind: str) -> str:
    return f"{prefix}OP/s" if kind.startswith("int") else f"{prefix}FLOP/s"
