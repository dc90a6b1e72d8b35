"""Energy of a product on a photonic machine, modelled: each row counted from the run, each constant with its source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from kpt_lab.core import Metric, Trial, Trials

HOROWITZ = "M. Horowitz, Computing's energy problem, ISSCC 2014, 45 nm"


@dataclass(frozen=True)
class Constant:
    """A number with its unit and where it is from."""

    value: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if not (self.value > 0 and self.source):
            raise ValueError(
                f"a Constant is {self.value!r} with source {self.source!r}; a value above 0 and a source are needed"
            )


@dataclass(frozen=True)
class Constants:
    """What the model multiplies counts by; replace one by dataclasses.replace, with its source."""

    wall_plug: Constant = Constant(1.0, "W of light per W", "conservation of energy: the limit that no laser passes")
    modulator: Constant = Constant(0.9e-15, "J/bit", "E. Timurdogan et al., Nat. Commun. 5, 4008 (2014)")
    adc: Constant = Constant(
        4.4e-15,
        "J per conversion step",
        "M. van Elzakker et al., ISSCC 2008: a 10 bit converter at 1 MS/s; faster ones need more",
    )
    dac: Constant = Constant(
        4.4e-15, "J per conversion step", "assumed to cost what the ADC's step does (van Elzakker et al., ISSCC 2008)"
    )
    heater: Constant = Constant(24.77e-3, "W for a phase of pi", "N. C. Harris et al., Opt. Express 22, 10487 (2014)")
    memory: Constant = Constant(640e-12 / 4, "J/byte", f"{HOROWITZ}: DRAM, 1.3 to 2.6 nJ for 64 bits, the lower end")
    float32: Constant = Constant(4.6e-12, "J per multiply and add", f"{HOROWITZ}: 3.7 pJ and 0.9 pJ")
    int8: Constant = Constant(0.3e-12, "J per multiply and add", f"{HOROWITZ}: 8 bit multiply 0.2 pJ, 32 bit add 0.1 pJ")


@dataclass(frozen=True)
class Counts:
    """What one product, or several, used. Light is joules that left the laser; radian_seconds is held phase times time."""

    multiplies: int = 0
    products: int = 0
    bits: int = 0
    light: float = 0.0
    inputs: int = 0  # samples that went through a DAC and a modulator
    outputs: int = 0  # samples that went through an ADC
    radian_seconds: float = 0.0
    bytes: int = 0  # of the operands and of the result as they are stored, each moved once
    shifters: int = 0

    def __add__(self, other: Counts) -> Counts:
        if self.products and other.products and self.bits != other.bits:
            raise ValueError(f"counts at {self.bits} and at {other.bits} bits can't be added")
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Counts(**{**total, "bits": max(self.bits, other.bits)})


LEFT_OUT = "left out: receivers' amplifiers, thermal control, programming the phases, losses in waveguides, control logic"


@dataclass(frozen=True)
class EnergyReport:
    """Modelled joules by row, with the boundary "energy.compute" (all but memory) and "energy.with_memory"; prints as a table."""

    counts: Counts
    machine: str
    constants: Constants = field(default_factory=Constants)

    @property
    def rows(self) -> Mapping[str, Metric]:
        """Joules by part, each with the constant's source."""
        c, k = self.counts, self.constants
        steps = 2.0**c.bits
        parts = {
            "light": (c.light, Constant(1.0, "", "optical power, a setting of the machine, times time")),
            "laser losses": (c.light * (1 / k.wall_plug.value - 1), k.wall_plug),
            "modulators": (c.inputs * c.bits * k.modulator.value, k.modulator),
            "DACs": (c.inputs * steps * k.dac.value, k.dac),
            "ADCs": (c.outputs * steps * k.adc.value, k.adc),
            "heaters": (c.radian_seconds * k.heater.value / math.pi, k.heater),
            "memory": (c.bytes * k.memory.value, k.memory),
        }
        return {name: Metric(joules, "J", "modelled", source=constant.source) for name, (joules, constant) in parts.items()}

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """`energy.compute`, `energy.with_memory` (J) and `optical_share` of the first, for a Trial."""
        rows = self.rows
        compute = sum(metric.value for name, metric in rows.items() if name != "memory")
        source = f"{self.machine}: " + "; ".join(dict.fromkeys(m.source for name, m in rows.items() if name != "memory"))
        return {
            "energy.compute": Metric(compute, "J", "modelled", source=source),
            "energy.with_memory": Metric(
                compute + rows["memory"].value, "J", "modelled", source=f"{source}; {rows['memory'].source}"
            ),
            "optical_share": Metric(rows["light"].value / compute, "1", "modelled", source="light over energy.compute"),
        }

    def digital(self, kind: str = "int8") -> Mapping[str, Metric]:
        """The same products on digital units, counted within the same two boundaries and moving the same bytes: kind is "int8" or "float32"."""
        if kind not in ("int8", "float32"):
            raise ValueError(f"kind is {kind!r}; accepted are int8, float32")
        constant: Constant = getattr(self.constants, kind)
        compute = self.counts.multiplies * constant.value
        memory = self.counts.bytes * self.constants.memory.value
        both = f"{constant.source}; {self.constants.memory.source}"
        return {
            "energy.compute": Metric(compute, "J", "modelled", source=constant.source),
            "energy.with_memory": Metric(compute + memory, "J", "modelled", source=both),
        }

    @property
    def trials(self) -> Trials:
        """Modelled Trials for `kpt.compare`: "photonic", "digital int8", "digital float32", of the same products in the same boundaries."""
        c = self.counts
        params = {"products": c.products, "multiplies": c.multiplies, "bytes": c.bytes}

        def trial(technique: str, metrics: Mapping[str, Metric], target: str, light: bool = False) -> Trial:
            return Trial(
                "photonic products", technique, params, {"bits": c.bits} if light else {}, "lossy" if light else "same",
                simulates=target.split(" ")[0] if light else "", target=target, device="", metrics=metrics,
            )  # fmt: skip

        digital = [trial(f"digital {kind}", self.digital(kind), "45 nm") for kind in ("int8", "float32")]
        return Trials([trial("photonic", self.metrics, self.machine, True), *digital])

    def __str__(self) -> str:
        c, total = self.counts, self.metrics
        per = 1e12 / c.multiplies
        lines = [
            f"{self.machine}: simulated; every energy below is modelled, none is measured",
            f"{c.products} product(s), {c.multiplies} multiplies",
        ]
        lines += [f"  {name:<14}{m.value * per:>12.4g} pJ/multiply  {m.source}" for name, m in self.rows.items()]
        for boundary in ("energy.compute", "energy.with_memory"):
            lines.append(f"  {boundary:<20}{total[boundary].value * per:>10.4g} pJ/multiply; digital units, same boundary: " + ", ".join(
                f"{kind} {self.digital(kind)[boundary].value * per:.4g}" for kind in ("int8", "float32")
            ))  # fmt: skip
        return "\n".join([*lines, f"  optical share of energy.compute: {total['optical_share'].value:.2%}", f"  {LEFT_OUT}"])


def published_efficiency(operations: float, electrical: float, optical: float) -> tuple[float, float]:
    """Operations per joule and the share of light, from a chip's published operations/s and its two powers in W."""
    if not (operations > 0 and electrical >= 0 and optical >= 0 and electrical + optical > 0):
        raise ValueError(
            f"operations {operations!r}, electrical {electrical!r}, optical {optical!r}; rates and powers above 0 are needed"
        )
    return operations / (electrical + optical), optical / (electrical + optical)
