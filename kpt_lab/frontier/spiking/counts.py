"""What a run did, counted from its own trains, and what the standard network does for the same inputs, counted beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from torch import Tensor

from kpt_lab.frontier.spiking.neurons import Code


@dataclass(frozen=True)
class Work:
    """The operations of one step of the network, over the whole batch.

    Spiking side: `spikes` that came in (for a "fire" step: went out); `synaptic` additions that they caused, one for each target;
    `latched`, additions to counters that hold one operand of a product while the other's spikes come; `integrated`, steps in which
    a neuron added its current to its membrane (first-spike code only); `neuron_steps`, steps in which a neuron compared its
    membrane with its threshold.
    Standard side: `macs`, `multiplies`, `adds`, and words `read` and `written`.
    Both: `functions`, values computed by GELU, LayerNorm, softmax and the like or by constants, which the neuron computes in place.
    """

    name: str
    step: str
    called: str = ""
    spikes: int = 0
    synaptic: int = 0
    latched: int = 0
    integrated: int = 0
    neurons: int = 0
    neuron_steps: int = 0
    functions: int = 0
    macs: int = 0
    multiplies: int = 0
    adds: int = 0
    read: int = 0
    written: int = 0


COUNTS = tuple(f.name for f in fields(Work) if f.type == "int")


@dataclass
class Run:
    """One pass of trains through the network: its steps' Work and, where they were kept, the trains.

    batch: samples in it. steps: T of a window. windows: windows until the answer stood, so it took windows * steps steps.
    sent: name -> the window (0, 1, ...) in which that population sent its train. trains: name -> spikes (T, ...) int8 as sent.
    readout: (T, ...) of a final linear step's membrane in its last window, or None.
    """

    code: Code
    steps: int
    batch: int = 0
    windows: int = 0
    works: list[Work] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    trains: dict[str, Tensor] = field(default_factory=dict)
    readout: Tensor | None = None

    def total(self, count: str) -> int:
        """The sum of one of COUNTS over all steps of the network; spikes are counted where they are sent, once each."""
        if count not in COUNTS:
            raise ValueError(f"count is {count!r}; accepted are {', '.join(COUNTS)}")
        if count == "spikes":
            return sum(w.spikes for w in self.works if w.step in ("fire", "input"))
        return sum(getattr(w, count) for w in self.works)

    @property
    def spikes_per_neuron(self) -> float:
        """Mean spikes that a neuron sent, inputs included."""
        return self.total("spikes") / max(1, self.total("neurons"))

    @property
    def spikes_per_synapse(self) -> float:
        """Additions by spikes for each multiply-accumulate of the standard network, where it multiplies: s = steps x rate."""
        products = [w for w in self.works if w.macs]
        return sum(w.synaptic for w in products) / max(1, sum(w.macs for w in products))
