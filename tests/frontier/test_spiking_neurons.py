"""The neurons against snnTorch's and against rounding by numpy, ties and saturation included."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from kpt_lab.frontier.spiking import CODES, best_scale, fire, first_spike, integrate_and_fire, nearest_level

EDGES = torch.tensor(
    [
        0.0,
        0.5,
        0.5 - 2**-54,
        0.5 - 2**-29,
        3.5 - 2**-40,
        3.5 - 2**-28,
        -0.5,
        1.0,
        1.5,
        -1.5,
        2.5,
        6.5,
        7.49999,
        7.5,
        9.0,
        -100.0,
        1e-30,
    ],
    dtype=torch.float64,
)


def rounded(values: np.ndarray, steps: int) -> np.ndarray:
    """A half (less 2^-30) away from zero, clipped; by exact remainders, since adding would round."""
    whole = np.trunc(values)
    return np.clip(whole + np.sign(values) * (np.abs(values - whole) >= 0.5 - 2**-30), -steps, steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 32])
@pytest.mark.parametrize("code", CODES)
def test_a_train_says_the_nearest_level(code, steps: int) -> None:
    values = torch.cat([EDGES, torch.randn(3000, dtype=torch.float64) * steps / 2])
    train = fire(values, 1.0, code, steps)
    assert train.spikes.shape == (steps, len(values))
    assert train.spikes.dtype == torch.int8
    np.testing.assert_array_equal(train.levels().numpy(), rounded(values.numpy(), steps))
    np.testing.assert_array_equal(nearest_level(values, 1.0, steps).numpy(), rounded(values.numpy(), steps))


@pytest.mark.parametrize("code", CODES)
def test_scale_divides_the_membrane(code) -> None:
    values = torch.linspace(-1, 1, 41, dtype=torch.float64)
    train = fire(values, 1 / 16, code, 16)
    np.testing.assert_array_equal(train.levels().numpy(), rounded(values.numpy() * 16, 16))
    assert train.scale == 1 / 16


def test_count_code_spends_as_many_spikes_as_levels_and_first_spike_at_most_one() -> None:
    values = torch.randn(5, 400, dtype=torch.float64) * 8
    levels = rounded(values.numpy(), 16)
    counted, single = integrate_and_fire(values, 16), first_spike(values, 16)
    np.testing.assert_array_equal(counted.abs().sum(0).numpy(), np.abs(levels))
    np.testing.assert_array_equal(single.abs().sum(0).numpy(), levels != 0)
    fired, *where = np.nonzero(single.numpy())
    np.testing.assert_array_equal(16 - fired, np.abs(levels)[tuple(where)])  # the time is the level


def test_integrate_and_fire_is_snntorchs_neuron_without_leak() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snntorch = pytest.importorskip("snntorch")
    steps = 12
    values = torch.rand(2000) * 15  # positive: snnTorch's neuron has no negative spikes
    neuron = snntorch.Leaky(beta=1.0, threshold=1.0, reset_mechanism="subtract")
    membrane, spikes = torch.zeros_like(values), []
    for step in range(steps):
        spike, membrane = neuron(values + 0.5 if step == 0 else torch.zeros_like(values), membrane)
        spikes.append(spike.detach())
    assert torch.equal(integrate_and_fire(values, steps), torch.stack(spikes).to(torch.int8))


def test_best_scale_beats_the_largest_value_where_there_are_outliers() -> None:
    values = torch.cat([torch.randn(5000), torch.tensor([12.0])]).double()
    tried = {
        scale: float((nearest_level(values, scale, 8) * scale - values).square().mean())
        for scale in (12 / 8, best_scale(values, 8))
    }
    assert tried[best_scale(values, 8)] < 0.7 * tried[12 / 8]
    assert best_scale(torch.zeros(4), 8) == 1.0
