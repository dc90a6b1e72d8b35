"""One linear layer in closed form: what it counts and costs for so many spikes a synapse, and where a gain would be reached.

The counts are those that a run of such a layer gives, the joules those of `energy`. Both are affine in the spikes a synapse, so the
number at which the spiking layer needs a given part of the standard one's energy is a quotient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kpt_lab.frontier.spiking.energy import (
    FLOAT32,
    Arithmetic,
    Memory,
    spiking_compute,
    spiking_with_memory,
    standard_compute,
    standard_with_memory,
)
from kpt_lab.frontier.spiking.neurons import CODES, Code


@dataclass(frozen=True)
class Layer:
    """A linear layer of `inputs` lines and `outputs` neurons, which fire in windows of `timesteps` steps in `code`."""

    inputs: int = 512
    outputs: int = 512
    timesteps: int = 32
    code: Code = "count"

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "timesteps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; a whole number from 1 up is needed")
        if self.code not in CODES:
            raise ValueError(f"code is {self.code!r}; accepted are {', '.join(CODES)}")

    @property
    def most(self) -> int:
        """The most spikes that a line can carry in a window, so also the most spikes a synapse."""
        return self.timesteps if self.code == "count" else 1

    def counts(self, spikes_per_synapse: float) -> dict[str, float]:
        """The layer's counts, as `Work` names them, when its lines carry so many spikes each on average."""
        macs = self.inputs * self.outputs
        own_steps = self.outputs * self.timesteps
        return {
            "spikes": spikes_per_synapse * self.inputs,
            "synaptic": spikes_per_synapse * macs,
            "latched": 0,
            "integrated": own_steps if self.code == "first_spike" else 0,
            "neuron_steps": own_steps,
            "macs": macs,
            "multiplies": 0,
            "adds": 0,
            "read": 2 * macs,
            "written": self.outputs,
        }


@dataclass(frozen=True)
class Boundary:
    """What an energy holds: arithmetic alone (memory None), or with the movement of data; and in which numbers each side computes.

    reuse: operations that one access to memory serves, on both sides; see `energy`.
    """

    memory: Memory | None = None
    standard: Arithmetic = FLOAT32
    spiking: Arithmetic = FLOAT32
    reuse: float = 1.0

    def joules(self, layer: Layer, spikes_per_synapse: float) -> tuple[float, float]:
        """Modelled joules of one pass: of the standard layer, and of the spiking one."""
        counts = layer.counts(spikes_per_synapse)
        if self.memory is None:
            return standard_compute(counts, self.standard), spiking_compute(counts, self.spiking)
        given = (self.memory, self.reuse)
        return standard_with_memory(counts, self.standard, *given), spiking_with_memory(counts, self.spiking, *given)

    def gain(self, layer: Layer, spikes_per_synapse: float) -> float:
        """How many times less the spiking layer needs; below 1 it needs more, and infinite where it needs nothing."""
        standard, spiking = self.joules(layer, spikes_per_synapse)
        return standard / spiking if spiking else math.inf

    def spikes_for(self, layer: Layer, gain: float) -> float:
        """The spikes a synapse at which the gain is this; NaN where not even a silent layer reaches it.

        It may lie above `layer.most`: then every train that there can be gains more.
        """
        standard, silent = self.joules(layer, 0.0)
        each = self.joules(layer, 1.0)[1] - silent
        needed = (standard / gain - silent) / each
        return needed if needed >= 0 else math.nan
