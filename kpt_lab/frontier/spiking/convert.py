"""Transformers as spiking networks, by their structure: the front door of this room."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.frontier.spiking.checks import STRATEGIES, TARGETS, agree, arrivals, check, what
from kpt_lab.frontier.spiking.counts import Run
from kpt_lab.frontier.spiking.energy import Energy, Memory, energy_of
from kpt_lab.frontier.spiking.network import Edit, Plain, Timed
from kpt_lab.frontier.spiking.neurons import Train, best_scale, fire, nearest_level
from kpt_lab.frontier.spiking.rewrite import traced
from kpt_lab.frontier.spiking.structure import place, structured
from kpt_lab.frontier.spiking.weights import linear_weights, round_weights


class SpikingTransformer(nn.Module):
    """A transformer that computes with trains of spikes; made by `from_standard`, for inference only.

    Both strategies give the outputs of the quantised network (`quantised`), whose values are one of 2 T + 1 levels wherever neurons
    fire: "exact" by as many spikes as levels, "temporal_coding" by the time of at most one spike. Populations take turns: one
    window of T steps each. What a neuron computes on its own (GELU, LayerNorm, softmax) it computes from its membrane at the end
    of its window. Nothing here runs on neuromorphic hardware: `hardware_target` is simulated with torch on this machine.
    """

    def __init__(
        self,
        model: nn.Module,
        strategy: str,
        target: str,
        *,
        timesteps: int | None = None,
        weight_bits: int | None = None,
        input_range: float = 1.0,
    ) -> None:
        super().__init__()
        check(model, strategy, target, timesteps, weight_bits, input_range)
        self.strategy, self.target = strategy, target
        self.code, usual = STRATEGIES[strategy]
        self.timesteps = usual if timesteps is None else timesteps
        self.weight_bits = TARGETS[target] if weight_bits is None else weight_bits
        self.network = structured(traced(model))
        if self.weight_bits is not None:
            linear_weights(self.network, self.weight_bits)  # refused now, not when the first thresholds are set
        self.dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
        self.name = type(model).__name__
        self.scales: dict[str, float] = {}
        self.calibrated_on = ""
        self.last: Run | None = None
        self._original: list[nn.Module] = [copy.deepcopy(model).eval().to(torch.float64)]  # in a list: no submodule of this one
        self._input_range = float(input_range)

    @classmethod
    def from_standard(
        cls,
        standard_transformer: nn.Module,
        conversion_strategy: str = "exact",
        hardware_target: str = "simulation",
        *,
        calibration: Tensor | Sequence[Tensor] | None = None,
        timesteps: int | None = None,
        weight_bits: int | None = None,
        input_range: float = 1.0,
    ) -> SpikingTransformer:
        """The spiking network of a model, which stays as it is; it is taken in evaluation mode.

        conversion_strategy: "exact" or "temporal_coding". hardware_target: "simulation" or "Intel_Loihi", which is simulated here
        and sets 8-bit weights. calibration: a batch of the model's inputs, from which thresholds are set; without it they are set
        on the first input that the network gets, whose floating-point values are then read as lying in -input_range..input_range.
        timesteps: T of a window, 64 for "exact" and 32 for "temporal_coding" unless given. weight_bits: rounds the linear layers'
        weights, one scale for each output.

        Raises Unsupported with the names of everything in the model that can't be converted, ValueError or TypeError in a sentence
        for an argument that can't be used.
        """
        made = cls(
            standard_transformer, conversion_strategy, hardware_target, timesteps=timesteps, weight_bits=weight_bits,
            input_range=input_range,
        )  # fmt: skip
        if calibration is not None:
            given = (calibration,) if isinstance(calibration, Tensor) else tuple(calibration)
            made._calibrate(made._values(given), f"calibration ({len(given[0])} samples)")
        return made

    @property
    def inputs(self) -> list[tuple[str, bool]]:
        """Name of each input, and whether it holds token ids."""
        return [(n.name, place(n).kind == "ids") for n in self.network.graph.nodes if n.op == "placeholder"]

    @torch.no_grad()
    def encode(self, *values: Tensor) -> Any:
        """Values (batch, ...) as spikes in time (T, batch, ...): what spike_forward takes.

        Floating-point values become int8 spikes of -1, 0 and 1 in this network's code; token ids become events, the id at the first
        step and -1, no event, at the others. A network with several inputs gives a tuple.
        """
        checked = self._values(values)
        trains = []
        for (name, ids), value in zip(self.inputs, checked, strict=True):
            if ids:
                silence = torch.full((self.timesteps - 1, *value.shape), -1, dtype=torch.long, device=value.device)
                trains.append(torch.cat([value.long()[None], silence]))
            else:
                trains.append(fire(value, self._scale(name), self.code, self.timesteps).spikes)
        return trains[0] if len(trains) == 1 else tuple(trains)

    @torch.no_grad()
    def spike_forward(self, *temporal_input: Tensor, edit: Edit | None = None, keep_trains: bool = False) -> Any:
        """The model's output, in its structure and dtype, computed with spikes from spikes.

        temporal_input: one tensor (T, batch, ...) for each input of the model, as `encode` makes them: spikes of -1, 0 and 1, at most
        one a line for "temporal_coding"; for token ids an id where it arrives and -1 elsewhere. edit: called with each population's
        name and train (T, ...) before it is sent; what it returns is sent instead. keep_trains: keep all trains, and the membrane
        of a final linear layer over its last window, in `last.trains` and `last.readout`. `last` holds the run's counts.
        """
        trains = self._trains(temporal_input)
        if not self.scales:
            seen = [t.levels() * t.scale if isinstance(t, Train) else t for t in trains]
            on = f"its first input ({trains[0].shape[0]} samples), as no calibration was given"
            self._calibrate(seen, on, {name: self._scale(name) for name, ids in self.inputs if not ids})
        run = Run(self.code, self.timesteps, int(trains[0].shape[0]))
        out = Timed(self.network, self.scales, run, edit, keep_trains).run(*trains)
        self.last = run
        return self._as_model(out)

    def forward(self, *values: Tensor) -> Any:
        """spike_forward of the encoded values."""
        encoded = self.encode(*values)
        return self.spike_forward(*(encoded if isinstance(encoded, tuple) else (encoded,)))

    @torch.no_grad()
    def quantised(self, *values: Tensor) -> Any:
        """The same network without time: ordinary arithmetic, with values rounded to levels where neurons would fire."""
        checked = self._values(values)
        if not self.scales:
            raise ValueError(
                "this network has no thresholds yet: give from_standard a calibration batch, or run spike_forward first"
            )
        entered = [v if ids else self._rounded(name, v) for (name, ids), v in zip(self.inputs, checked, strict=True)]
        return self._as_model(Plain(self.network, self._rounded).run(*entered))

    def energy(self, memory: Memory = "8KB") -> Energy:
        """Modelled energy per inference of the last run, beside the standard network's on the same inputs; see `Energy`."""
        if self.last is None:
            raise ValueError("there is no run to count: call spike_forward first")
        return energy_of(self.last, self.name, self.target, self.weight_bits, memory)

    def report(self) -> str:
        """In words: where this ran, what was converted to what, how thresholds were set, and what the last run counted."""
        steps = Counter(place(n).step for n in self.network.graph.nodes if place(n).kind in ("train", "membrane"))
        chip = "no neuromorphic hardware was used" if self.target == "simulation" else f"no {self.target} was used"
        local = ", ".join(f"{name} x{steps[name]}" for name in _IN_NEURON if steps[name])
        weights = "weights as they are" if self.weight_bits is None else f"linear weights rounded to {self.weight_bits} bits"
        lines = [
            f"{self.name}, {self.strategy}: simulated on this machine with torch; {chip}",
            f"{steps['fire']} populations of neurons, windows of {self.timesteps} steps, code {self.code}, {weights}",
            f"thresholds: {'not set yet' if not self.scales else f'set on {self.calibrated_on}'}",
        ]
        if local:
            lines.append(
                f"computed by the simulator in the neuron, not by spikes; whether a chip can was not examined: {local}"
            )
        if self.last is not None:
            lines.append(
                f"last run: {self.last.batch} samples, answer after {self.last.windows} windows of {self.last.steps} steps, "
                f"{self.last.spikes_per_neuron:.4g} spikes a neuron, {self.last.spikes_per_synapse:.4g} spikes a synapse"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.report()

    # thresholds

    def _calibrate(self, values: list[Tensor], on: str, known: dict[str, float] | None = None) -> None:
        """Set every population's threshold, each from what reaches it when those before it are already quantised."""
        with torch.no_grad():
            mine = Plain(self.network, lambda name, x: x).run(*values)
            theirs = self._original[0].to(values[0].device)(*values)
        agree(self.name, mine, theirs)
        if self.weight_bits is not None:
            round_weights(self.network, self.weight_bits)
        scales: dict[str, float] = dict(known or {})

        def rule(name: str, x: Tensor) -> Tensor:
            if not bool(torch.isfinite(x).all()):
                raise ValueError(f"the calibration gives values that are not finite at {name!r}, which no train can say")
            if name not in scales:
                scales[name] = best_scale(x, self.timesteps)
            return nearest_level(x, scales[name], self.timesteps) * scales[name]

        with torch.no_grad():
            entered = [v if ids else rule(name, v) for (name, ids), v in zip(self.inputs, values, strict=True)]
            Plain(self.network, rule).run(*entered)
        self.scales, self.calibrated_on = scales, on
        self._original.clear()

    def _scale(self, name: str) -> float:
        return self.scales.get(name, self._input_range / self.timesteps)

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        return nearest_level(value, self._scale(name), self.timesteps) * self._scale(name)

    # what comes in and goes out

    def _values(self, given: Sequence[Any]) -> list[Tensor]:
        """Inputs of the model, checked; floating-point ones in float64."""
        self._counted(given, "an input")
        checked = []
        for (name, ids), value in zip(self.inputs, given, strict=True):
            if not isinstance(value, Tensor) or not value.numel() or not value.dim():
                raise ValueError(f"{name} is {what(value)}; a tensor (batch, ...) with at least one value is needed")
            if ids == (value.is_floating_point() or value.dtype == torch.bool):
                raise ValueError(
                    f"{name} is {value.dtype}; {'whole numbers, token ids, are' if ids else 'a floating dtype is'} needed"
                )
            if not ids and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} holds values that are not finite, which no train can say")
            checked.append(value if ids else value.to(torch.float64))
        return checked

    def _trains(self, given: Sequence[Any]) -> list[Any]:
        """The temporal inputs as Trains, and as the ids that arrived."""
        self._counted(given, "a temporal_input (T, batch, ...)")
        found: list[Any] = []
        for (name, ids), value in zip(self.inputs, given, strict=True):
            if not isinstance(value, Tensor) or value.dim() < 2:
                raise ValueError(
                    f"temporal_input for {name} is {what(value)}; a tensor (T, batch, ...) is needed, as encode makes it"
                )
            if value.shape[0] != self.timesteps or not value.numel():
                raise ValueError(
                    f"temporal_input for {name} has T={value.shape[0]} and shape {tuple(value.shape)}; this network reads windows of "
                    f"T={self.timesteps} steps (set by timesteps=) and at least one sample"
                )
            found.append(arrivals(name, value) if ids else self._spikes(name, value))
        return found

    def _spikes(self, name: str, value: Tensor) -> Train:
        spikes = value.to(torch.int8)
        if not bool(((spikes.to(value.dtype) == value) & (spikes.abs() <= 1)).all()):
            raise ValueError(
                f"temporal_input for {name} holds other values than -1, 0 and 1; encode(values) makes spikes from values"
            )
        if self.code == "first_spike" and bool((spikes.count_nonzero(0) > 1).any()):
            raise ValueError(
                f"temporal_input for {name} has a line with more than one spike; temporal_coding takes at most one a line"
            )
        return Train(spikes, self._scale(name), self.code)

    def _counted(self, given: Sequence[Any], what: str) -> None:
        if len(given) != len(self.inputs):
            names = ", ".join(name for name, _ in self.inputs)
            raise ValueError(f"{len(given)} tensors came; {self.name} needs {what} for each of {names}")

    def _as_model(self, out: Any) -> Any:
        if isinstance(out, Tensor):
            return out.to(self.dtype) if out.is_floating_point() else out
        if isinstance(out, dict):  # the graph keeps dicts and lists as immutable kinds of its own
            return {key: self._as_model(value) for key, value in out.items()}
        if isinstance(out, list):
            return [self._as_model(value) for value in out]
        if isinstance(out, tuple):
            parts = [self._as_model(value) for value in out]
            return type(out)(*parts) if hasattr(out, "_fields") else tuple(parts)
        return out


_IN_NEURON = ("gelu", "silu", "relu", "layer_norm", "rms_norm", "softmax")
