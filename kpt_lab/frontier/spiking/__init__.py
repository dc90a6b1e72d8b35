"""Spiking networks from transformers: converted by structure, run spike by spike, their operations counted from the trains.

from kpt_lab.frontier.spiking import SpikingTransformer

spiking = SpikingTransformer.from_standard(standard_transformer=model, conversion_strategy="exact", calibration=batch)
outputs = spiking.spike_forward(spiking.encode(inputs))
print(spiking.report())  # where it ran, what became of each step, how many spikes
print(spiking.energy())  # two models side by side, per inference, against the standard network in float32 and int8
"""

from kpt_lab.frontier.spiking.convert import STRATEGIES, TARGETS, SpikingTransformer
from kpt_lab.frontier.spiking.counts import Run, Work
from kpt_lab.frontier.spiking.energy import Energy
from kpt_lab.frontier.spiking.neurons import CODES, Train, best_scale, fire, first_spike, integrate_and_fire, nearest_level

__all__ = [
    "CODES", "STRATEGIES", "TARGETS", "Energy", "Run", "SpikingTransformer", "Train", "Work", "best_scale", "fire", "first_spike",
    "integrate_and_fire", "nearest_level",
]  # fmt: skip
