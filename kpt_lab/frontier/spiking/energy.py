"""Joules from counts, by two models side by side: arithmetic alone, and with the movement of data. Every constant is cited.

`energy.compute` is what most papers print: one addition for each spike and target against one multiply-accumulate (and one
addition where the standard network only adds). `energy.with_memory` adds what these cost in a chip with on-chip memory: every
weight and every operand read, membranes read and written, thresholds compared at every step, spikes queued and taken out. The
additions by which a first spike acts on until the window's end are a neuron's own steps, so they are in the second model only.
Functions computed in the neuron (GELU, LayerNorm, softmax, biases) are the same on both sides and in neither model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.frontier.spiking.counts import Run

HOROWITZ = (
    "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, pp. 10-14: energies at 45 nm and 0.9 V"
)
DAVIES = (
    "M. Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, IEEE Micro 38(1), 2018, pp. 82-99, "
    "table 2 (14 nm, 0.75 V, from circuit simulation before the chip was made), as others cite it: the paper was not at hand, and the "
    "inactive neuron's update is from memory"
)
PICO = 1e-12

Memory = Literal["8KB", "32KB", "1MB"]
ADD = {"float32": 0.9 * PICO, "int32": 0.1 * PICO}
"""Joules of an addition (Horowitz 2014)."""
MULTIPLY = {"float32": 3.7 * PICO, "int8": 0.2 * PICO}
"""Joules of a multiplication (Horowitz 2014)."""
ACCESS_64_BITS: dict[Memory, float] = {"8KB": 10 * PICO, "32KB": 20 * PICO, "1MB": 100 * PICO}
"""Joules of a 64-bit access to an SRAM cache of that size (Horowitz 2014); narrower words are taken as their share of 64 bits."""
LOIHI = {"synaptic": 23.6 * PICO, "spike": 1.7 * PICO, "neuron_step": 52 * PICO}
"""Joules of a synaptic operation (the least), of a spike within a tile, and of an inactive neuron's update (Davies 2018)."""

STATE_BITS = 32  # of a membrane, a counter, and a spike's address
_OUTSIDE = "functions computed in the neuron (GELU, LayerNorm, softmax, biases) left out on both sides"
_COMPUTE = f"{HOROWITZ}. Boundary: additions by spikes, multiply-accumulates and additions of values; no memory, no neuron's own steps; {_OUTSIDE}"
_MEMORY = (
    f"{HOROWITZ}. Boundary: as energy.compute, and every weight and operand read from an SRAM of {{memory}}, results written, "
    f"membranes read and written at each addition and each step, thresholds compared, spikes queued; no reuse between reads; {_OUTSIDE}"
)


@dataclass(frozen=True)
class Arithmetic:
    """In which numbers a network computes: energies of its operations in joules, and the bits of a weight or operand."""

    name: str
    add: float
    multiply: float
    bits: int


FLOAT32 = Arithmetic("float32", ADD["float32"], MULTIPLY["float32"], 32)
INT8 = Arithmetic("int8", ADD["int32"], MULTIPLY["int8"], 8)
"""8-bit weights and operands, sums in 32 bits."""


def access(bits: int, memory: Memory = "8KB") -> float:
    """Joules of reading or writing one word of so many bits."""
    return ACCESS_64_BITS[memory] * bits / 64


def spiking_compute(counts: Mapping[str, float], arithmetic: Arithmetic = FLOAT32) -> float:
    """Joules of the additions that spikes caused."""
    return counts["synaptic"] * arithmetic.add


def spiking_with_memory(
    counts: Mapping[str, float], arithmetic: Arithmetic = FLOAT32, memory: Memory = "8KB", reuse: float = 1.0
) -> float:
    """Joules of the same and of all that goes with it: weights, membranes, counters, thresholds and the spikes themselves.

    reuse: additions by spikes that one access to a weight and a membrane serves; a neuron's own steps are not spared by it.
    """
    state = access(STATE_BITS, memory)
    update = arithmetic.add + 2 * state
    additions = counts["synaptic"] * (arithmetic.add + (access(arithmetic.bits, memory) + 2 * state) / reuse)
    integrated = counts["integrated"] * (update + state)  # the current is read as well
    return additions + integrated + (counts["latched"] + counts["neuron_steps"]) * update + counts["spikes"] * 2 * state


def standard_compute(counts: Mapping[str, float], arithmetic: Arithmetic = FLOAT32) -> float:
    """Joules of the standard network's multiplications and additions."""
    return (counts["macs"] + counts["multiplies"]) * arithmetic.multiply + (counts["macs"] + counts["adds"]) * arithmetic.add


def standard_with_memory(
    counts: Mapping[str, float], arithmetic: Arithmetic = FLOAT32, memory: Memory = "8KB", reuse: float = 1.0
) -> float:
    """Joules of the same and of all operands read and results written; a sum under way stays in a register.

    reuse: operations that one read of a weight or an operand serves.
    """
    moved = counts["read"] / reuse + counts["written"]
    return standard_compute(counts, arithmetic) + moved * access(arithmetic.bits, memory)


def loihi(counts: Mapping[str, float]) -> float:
    """Joules by Loihi's published figures, as a lower limit: least synaptic operations, inactive updates, spikes within a tile."""
    steps = counts["neuron_steps"] + counts["integrated"]
    return (
        (counts["synaptic"] + counts["latched"]) * LOIHI["synaptic"]
        + counts["spikes"] * LOIHI["spike"]
        + steps * LOIHI["neuron_step"]
    )


@dataclass(frozen=True)
class Energy:
    """Modelled energy per inference: one Trial for each network and arithmetic, and the counts that they come from.

    counts: per inference, a mean over the batch. Where the target is Loihi, "spiking int8" also holds energy.loihi, which the
    standard networks don't have: no ratio across chips can be formed. trials: "spiking float32", "standard float32", "standard int8", and
    "spiking int8" where the weights have 8 bits or fewer; each holds energy.compute and energy.with_memory in joules.
    """

    trials: Trials
    counts: Mapping[str, float]
    spikes_per_synapse: float
    spikes_per_neuron: float

    def of(self, label: str) -> Trial:
        """The Trial of that technique, such as "spiking float32"; ValueError with the names there are."""
        found = self.trials.where(technique=label)
        if not found:
            raise ValueError(f"label is {label!r}; there are {', '.join(t.technique for t in self.trials)}")
        return found[0]

    def gain(self, metric: str = "energy.compute", arithmetic: str = "float32") -> float:
        """How many times less the spiking network needs by that model than the standard one; below 1 it needs more."""
        from kpt_lab.ratios import compare

        return compare(self.of(f"standard {arithmetic}"), self.of(f"spiking {arithmetic}"), metric).value

    def __repr__(self) -> str:
        names = ("energy.compute", "energy.with_memory", "energy.loihi")
        rows = [f"{'J per inference, modelled':<28}" + "".join(f"{n:>22}" for n in names[:2])]
        for trial in self.trials:
            cells = (f"{trial.metrics[n].value:>22.4g}" for n in names[:2])
            rows.append(f"{trial.technique:<28}" + "".join(cells))
        rows += [f"{n}: {t.metrics[n].source}" for n in names[:2] for t in self.trials[:1]]
        rows += [
            f"{n}: {t.metrics[n].value:.4g} J ({t.metrics[n].source})" for t in self.trials for n in names[2:] if n in t.metrics
        ]
        rows.append(f"{self.spikes_per_synapse:.4g} spikes a synapse, {self.spikes_per_neuron:.4g} spikes a neuron")
        return "\n".join(rows)


def energy_of(run: Run, workload: str, target: str, weight_bits: int | None, memory: Memory = "8KB") -> Energy:
    """The Energy of a run that has happened; ValueError for a memory that the models have no figure for."""
    if memory not in ACCESS_64_BITS:
        raise ValueError(f"memory is {memory!r}; accepted are {', '.join(ACCESS_64_BITS)}")
    counts = {name: run.total(name) for name in _USED}
    kinds = [("standard", FLOAT32), ("standard", INT8), ("spiking", FLOAT32)]
    if weight_bits is not None and weight_bits <= 8:
        kinds.append(("spiking", INT8))
    trials = [_trial(kind, arithmetic, counts, run, (workload, target, memory)) for kind, arithmetic in kinds]
    means = {name: value / run.batch for name, value in counts.items()}
    return Energy(Trials(trials), means, run.spikes_per_synapse, run.spikes_per_neuron)


_USED = (
    "spikes",
    "synaptic",
    "latched",
    "integrated",
    "neurons",
    "neuron_steps",
    "functions",
    "macs",
    "multiplies",
    "adds",
    "read",
    "written",
)


def _trial(kind: str, arithmetic: Arithmetic, counts: dict[str, int], run: Run, where: tuple[str, str, Memory]) -> Trial:
    workload, target, memory = where
    compute, moved = (spiking_compute, spiking_with_memory) if kind == "spiking" else (standard_compute, standard_with_memory)
    joules = {"energy.compute": compute(counts, arithmetic), "energy.with_memory": moved(counts, arithmetic, memory)}
    sources = {"energy.compute": _COMPUTE, "energy.with_memory": _MEMORY.format(memory=memory)}
    metrics = {name: Metric(value / run.batch, "J", "modelled", source=sources[name]) for name, value in joules.items()}
    spikes = kind == "spiking"
    if spikes and arithmetic is INT8 and target == "Intel_Loihi":  # its synapses have 9 bits at most
        metrics["energy.loihi"] = Metric(loihi(counts) / run.batch, "J", "modelled", source=f"{DAVIES}; a lower limit")
    return Trial(
        workload, f"{kind} {arithmetic.name}", simulates=target if spikes else "", device="", metrics=metrics,
        knobs={"code": run.code, "timesteps": run.steps} if spikes else {}, contract="lossy" if spikes else "same",
        target=target, dtype=arithmetic.name,
    )  # fmt: skip
