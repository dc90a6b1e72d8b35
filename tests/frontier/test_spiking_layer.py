"""One layer in closed form against runs, and the line of a hundred against the counts on it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kpt_lab.frontier.spiking import SpikingTransformer
from kpt_lab.frontier.spiking.energy import FLOAT32, INT8
from kpt_lab.frontier.spiking.layer import Boundary, Layer


@pytest.mark.parametrize(("strategy", "code"), [("exact", "count"), ("temporal_coding", "first_spike")])
def test_counts_are_those_of_a_run(strategy: str, code: str) -> None:
    """Two layers, of which only the first one's neurons fire: the last one's membranes are the answer."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(7, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    made = SpikingTransformer.from_standard(model, strategy, timesteps=6, calibration=torch.rand(9, 7))
    made(torch.rand(1, 7))
    sent = [int(w.spikes) for w in made.last.works if w.step in ("input", "fire")]
    layers = [Layer(7, 5, 6, code), Layer(5, 3, 6, code)]
    found = [layer.counts(spikes / layer.inputs) for layer, spikes in zip(layers, sent, strict=True)]
    for name, value in made.energy().counts.items():
        if name in ("neurons", "functions"):  # in no energy
            continue
        total = sum(counts[name] for counts in found) - (3 * 6 if name == "neuron_steps" else 0)
        assert total == pytest.approx(value), name


@pytest.mark.parametrize("memory", [None, "8KB", "1MB"])
@pytest.mark.parametrize("arithmetic", [FLOAT32, INT8])
@pytest.mark.parametrize("code", ["count", "first_spike"])
def test_the_gain_at_the_spikes_for_it_is_that_gain(memory: str | None, arithmetic: object, code: str) -> None:
    boundary = Boundary(memory, arithmetic, arithmetic, reuse=4)
    layer = Layer(4096, 4096, 8, code)
    for gain in (0.01, 0.5, 1.0):
        needed = boundary.spikes_for(layer, gain)
        assert boundary.gain(layer, needed) == pytest.approx(gain)
        assert boundary.gain(layer, needed / 2) > gain


def test_a_hundred_lies_where_the_constants_put_it() -> None:
    layer = Layer()
    assert Boundary().spikes_for(layer, 100) == pytest.approx(4.6 / 0.9 / 100)
    assert Boundary(None, INT8, INT8).spikes_for(layer, 100) == pytest.approx(0.3 / 0.1 / 100)
    assert Boundary().gain(layer, 0) == math.inf
    assert math.isnan(Boundary("8KB").spikes_for(Layer(64, 64, 64), 100))  # thresholds alone cost more than that
    assert Layer(timesteps=9).most == 9
    assert Layer(timesteps=9, code="first_spike").most == 1


def test_reuse_spares_accesses_but_no_neurons_own_steps() -> None:
    layer = Layer(100, 10, 5)
    counts = layer.counts(0.5)
    standard, spiking = Boundary("8KB", reuse=10).joules(layer, 0.5)
    assert standard == pytest.approx((1000 * 4.6 + (2000 / 10 + 10) * 5) * 1e-12)
    assert spiking == pytest.approx((500 * (0.9 + 15 / 10) + 50 * 10.9 + 50 * 10) * 1e-12)
    assert counts["spikes"] == 50


def test_what_is_no_layer_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="timesteps is 0; a whole number from 1 up is needed"):
        Layer(timesteps=0)
    with pytest.raises(ValueError, match="code is 'rate'; accepted are count, first_spike"):
        Layer(code="rate")
