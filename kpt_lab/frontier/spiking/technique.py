"""Conversion as a Technique, so that its quality and error are measured like any other's and its clock is never a chip's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kpt_lab.core import Metric, Technique, Unsupported
from kpt_lab.frontier.spiking.convert import SpikingTransformer


def _convert(
    fn: Callable, args: tuple, strategy: str = "exact", timesteps: int | None = None, weight_bits: int | None = None
) -> SpikingTransformer:
    if not isinstance(fn, nn.Module):
        raise Unsupported(f"conversion needs an nn.Module, whose structure can be read; this is {type(fn).__name__}")
    return SpikingTransformer.from_standard(
        fn, strategy, TARGET, calibration=args, timesteps=timesteps, weight_bits=weight_bits
    )  # fmt: skip


def _quantised(
    fn: Callable, args: tuple, strategy: str = "exact", timesteps: int | None = None, weight_bits: int | None = None
) -> Callable:
    return _convert(fn, args, strategy, timesteps, weight_bits).quantised


def _report(candidate: Any) -> Mapping[str, Metric]:
    """Modelled energy of the last run, in int8 where the weights have 8 bits, and how sparse its trains were."""
    if not isinstance(candidate, SpikingTransformer) or candidate.last is None:
        return {}
    energy = candidate.energy()
    spikes = Metric(energy.spikes_per_synapse, "1", "simulated")
    return {"spikes_per_synapse": spikes, **energy.trials[-1].metrics}


TARGET = "Intel_Loihi"

spiking = Technique(
    "spiking", _convert, stage="device", replaces=frozenset({"model"}), contract="lossy", definition=_quantised, report=_report,
    simulates=TARGET,
)  # fmt: skip
"""A module as a spiking network, thresholds set on the inputs it is applied with; its definition is the quantised network."""

techniques = (spiking,)
