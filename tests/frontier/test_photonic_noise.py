"""Noise, converters and thermal control against closed forms and scipy."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import constants, signal

from kpt_lab.frontier.photonic import (
    Ambient,
    Controller,
    Johnson,
    Noise,
    PhaseError,
    Quantisation,
    Shot,
    SplitterError,
    detect,
    drift,
    phase_bits,
    photons_for,
    received_bits,
    shot_bits,
    thermal,
)
from kpt_lab.frontier.photonic import noise as of_noise

RECORDED = Path(__file__).parents[2] / "benchmarks" / "recorded" / "photonic_fidelity.json"
DRAWS = 20_000


def rails(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of positive and of negative products of n inputs on [0, 1] with n weights on [-1, 1]."""
    products = torch.rand(n, dtype=torch.float64) * (2 * torch.rand(n, dtype=torch.float64) - 1)
    return products.clamp(min=0).sum(), (-products).clamp(min=0).sum()


@pytest.mark.parametrize("photons", [0.4, 4.0, 400.0, 4e6, 1.4e10])
def test_shot_noise_has_the_deviation_of_the_closed_form(photons):
    plus, minus = rails()
    shape = (2 * DRAWS,)
    read = detect(plus.expand(shape), minus.expand(shape), Noise(shot=Shot()), photons, 1e-9)
    expected = math.sqrt((plus + minus) / photons)
    assert read.std().item() == pytest.approx(expected, rel=0.03)
    assert read.mean().item() == pytest.approx((plus - minus).item(), abs=5 * expected / math.sqrt(shape[0]))


def simulated_bits(detected: float, n: int = 64, warm: Johnson | None = None) -> float:
    x = torch.rand(DRAWS, n, dtype=torch.float64)
    products = x * (2 * torch.rand(DRAWS, n, dtype=torch.float64) - 1)
    plus, minus = products.clamp(min=0).sum(-1), (-products).clamp(min=0).sum(-1)
    read = detect(plus, minus, Noise(shot=Shot(), johnson=warm), 4 * detected, 1e-9)
    ideal = plus - minus
    return of_noise.bits_of((ideal.square().mean() / (read - ideal).square().mean()).item())


def test_shot_noise_gives_1_66_bits_a_decade():
    bits = [simulated_bits(10.0**k) for k in range(1, 7)]
    for k, found in enumerate(bits, start=1):
        assert found == pytest.approx(shot_bits(10.0**k), abs=0.05)
    slopes = [b - a for a, b in pairwise(bits)]
    assert all(abs(slope - 1.66) <= 0.05 for slope in slopes)


def test_sixteen_bits_need_3_6e9_detected_photons_a_multiply():
    assert photons_for(16) == pytest.approx(3.6e9, rel=0.01)
    assert shot_bits(photons_for(11.5)) == pytest.approx(11.5)


@pytest.mark.parametrize("channels", [1, 7, 64])
@pytest.mark.parametrize("detected", [30.0, 3e3, 1e6])
def test_a_warm_receiver_takes_bits_as_the_closed_form_says(detected, channels):
    warm = Johnson(50.0, 300.0)
    found = simulated_bits(detected, channels, warm)
    electrons = warm.electrons(1e-9)
    assert found == pytest.approx(received_bits(detected, electrons, channels), abs=0.06)
    assert received_bits(detected, electrons, channels) < received_bits(detected) == shot_bits(detected)


@pytest.mark.parametrize("bits", [2, 8.5, 16])
@pytest.mark.parametrize(("electrons", "channels"), [(0.0, 1), (500.0, 1), (4e3, 64), (1e6, 256)])
def test_the_photons_that_a_receiver_needs_are_the_inverse(bits, electrons, channels):
    needed = photons_for(bits, electrons, channels)
    assert received_bits(needed, electrons, channels) == pytest.approx(bits, abs=1e-9)
    assert needed >= photons_for(bits)


def test_johnson_noise_against_nyquist_and_its_crossover_with_shot_noise():
    for ohms in (50.0, 1e3, 1e4):
        warm = Johnson(ohms, 300.0)
        bandwidth = 1e9
        assert warm.current(bandwidth) == pytest.approx(math.sqrt(4 * constants.k * 300 * bandwidth / ohms), rel=1e-12)
        current = warm.crossover()
        assert 2 * constants.e * current * bandwidth == pytest.approx(warm.current(bandwidth) ** 2, rel=1e-12)
        # the same crossover by simulation: a charge of I t / q electrons, counted and disturbed
        seconds = 1 / (2 * bandwidth)
        electrons = current * seconds / constants.e
        one = torch.ones(DRAWS, dtype=torch.float64)
        counted = detect(one, 0 * one, Noise(shot=Shot()), electrons, seconds)
        disturbed = detect(one, 0 * one, Noise(johnson=warm), electrons, seconds)
        assert (counted.std() / disturbed.std()).item() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("bits", [6, 8, 10, 12, 16])
def test_a_converter_keeps_6_02_decibels_a_bit_of_a_sine(bits):
    sine = torch.sin(torch.linspace(0, 2 * math.pi * 997, 2**18, dtype=torch.float64))
    error = of_noise.quantised(sine, bits, signed=True) - sine
    decibels = 10 * math.log10((sine.square().mean() / error.square().mean()).item())
    assert decibels == pytest.approx(6.02 * bits + 1.76, abs=0.3)  # 2^b - 1 codes, not 2^b: at 6 bits 0.27 dB less


def test_a_converters_codes():
    values = torch.tensor([-2.0, -1.0, -0.17, 0.0, 0.16, 0.5, 1.0, 3.0], dtype=torch.float64)
    assert of_noise.quantised(values, 3, signed=True).mul(3).tolist() == [-3, -3, -1, 0, 0, 2, 3, 3]
    assert of_noise.quantised(values, 2, signed=False).mul(3).tolist() == [0, 0, 0, 0, 0, 2, 3, 3]
    assert of_noise.quantised(values, None, signed=True) is values


def test_the_bits_of_a_weight_whose_phase_wanders():
    weight = torch.rand(200_000, dtype=torch.float64)
    theta = 2 * torch.asin(weight.sqrt())
    error = torch.sin((theta + 0.01 * torch.randn_like(theta)) / 2).square() - weight
    assert of_noise.bits_of((weight.square().mean() / error.square().mean()).item()) == pytest.approx(
        phase_bits(0.01), abs=0.02
    )


def test_constants_are_those_of_the_si():
    assert (
        constants.k,
        constants.e,
        constants.h,
        constants.c,
    ) == (of_noise.BOLTZMANN, of_noise.CHARGE, of_noise.PLANCK, of_noise.LIGHT)
    assert of_noise.photon_energy(1.55e-6) == pytest.approx(1.28e-19, rel=0.01)


def test_every_effect_is_off_by_default_and_names_its_formula_and_source():
    plus, minus = rails()
    assert torch.equal(detect(plus, minus, Noise(), 1.0, 1.0), plus - minus)
    assert Noise() == Noise(None, None, None, None, None)
    for kind in (Shot, Johnson, PhaseError, SplitterError, Quantisation):
        assert len(kind.formula) > 20
        assert len(kind.source) > 20


def test_the_recorded_fidelity_at_256_modes_is_within_the_bar():
    report = json.loads(RECORDED.read_text())
    assert (report["modes"], report["draws"]) == (256, 20)
    assert report["reconstruction_error"] <= 1e-12
    assert {row["error"] for row in report["rows"]} == {"splitter", "phase"}
    for row in report["rows"]:
        rate = 2 if row["error"] == "splitter" else 1
        assert abs(row["mean"] - math.exp(-rate * 256 * row["std"] ** 2)) <= 0.01


# ---- thermal


@pytest.mark.parametrize("controller", [None, Controller(3.0, 2e6), Controller(0.0, 1e5), Controller(50.0, 0.0)])
def test_drift_agrees_with_scipy(controller):
    tau, seconds, steps = 1e-6, 4e-5, 400
    kp, ki = (controller.kp, controller.ki) if controller else (0.0, 0.0)
    found = drift(lambda t: torch.sin(t * 3e5) + 0.5, controller, seconds=seconds, steps=steps, tau=tau)
    system = signal.StateSpace([[-(1 + kp), -ki * tau], [1, 0]], [[1], [0]], [[1, 0]], [[0]])  # time in units of tau
    time = found.time.numpy() / tau
    _, expected, _ = signal.lsim(system, torch.sin(found.time * 3e5).numpy() + 0.5, time, interp=True)
    assert torch.allclose(found.temperature, torch.from_numpy(expected), rtol=0, atol=1e-10)


def test_a_step_ends_where_theory_says():
    step = {"seconds": 2e-4, "steps": 2000}
    free = drift(lambda t: torch.ones_like(t), None, **step)
    expected = 1 - torch.exp(-free.time / thermal.TAU)
    assert torch.allclose(free.temperature, expected, rtol=0, atol=1e-12)
    proportional = drift(lambda t: torch.ones_like(t), Controller(9.0, 0.0), **step)
    assert proportional.temperature[-1].item() == pytest.approx(0.1, abs=1e-9)  # 1 / (1 + kp)
    integral = drift(lambda t: torch.ones_like(t), Controller(9.0, 1e7), **step)
    assert abs(integral.temperature[-1].item()) < 1e-9  # no error stays
    assert integral.heater[-1].item() == pytest.approx(-1.0, abs=1e-9)  # the heater takes all of it


def test_the_controller_takes_the_drift_away():
    ambient = Ambient(amplitude=5.0)
    free, held = drift(ambient), drift(ambient, Controller())
    slope = 2 * math.pi / 1.55e-6 * thermal.DN_DT * thermal.LENGTH
    assert free.phase_rms == pytest.approx(slope * 5 / math.sqrt(2), rel=0.01)
    # the loop's response to a slow sine is omega / ki of its size
    assert held.phase_rms == pytest.approx(slope * 5 / math.sqrt(2) * 2 * math.pi / ambient.period / Controller().ki, rel=0.05)
    assert phase_bits(free.phase_rms) < 5
    assert phase_bits(held.phase_rms) > 9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shot(-1.0), "photons is -1.0; a finite number above 0"),
        (lambda: Johnson(0.0), "resistance is 0.0"),
        (lambda: Johnson(50.0, -3.0), "temperature is -3.0"),
        (lambda: Johnson().current(0), "bandwidth is 0"),
        (lambda: PhaseError(-0.1), "std is -0.1; a finite number of 0 or more"),
        (lambda: SplitterError(math.nan), "std is nan"),
        (lambda: Quantisation(input_bits=1), "input_bits is 1; a whole number from 2 to 24"),
        (lambda: Quantisation(output_bits=8.0), "output_bits is 8.0"),
        (lambda: Noise(shot=3), "shot is 3; a Shot or None is accepted"),
        (lambda: of_noise.photon_energy(0), "wavelength is 0"),
        (lambda: shot_bits(0), "detected is 0"),
        (lambda: received_bits(1.0, -1.0), "electrons is -1.0; a finite number of 0 or more"),
        (lambda: photons_for(8, 1.0, 0), "channels is 0"),
        (lambda: Controller(-1), "kp is -1"),
        (lambda: Ambient(steps=0), "steps is 0"),
        (lambda: Ambient(period=-1.0), "period is -1.0"),
        (lambda: drift(lambda t: t), "needs seconds and steps"),
        (lambda: drift(lambda t: t, seconds=1.0, steps=0), "steps is 0"),
        (lambda: drift(tau=0.0), "tau is 0.0"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
