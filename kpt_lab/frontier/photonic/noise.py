"""What keeps light from computing exactly: each effect a frozen dataclass with its formula and source, all off by default.

Signals are counted in full-scale products: 1 is an input of 1 times a weight of 1. A balanced receiver has two rails; light of
positive products falls on one detector, light of negative ones on the other, and the difference of the two is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kpt_lab.frontier.photonic.mesh import Mesh

BOLTZMANN = 1.380649e-23  # J/K, exact in the SI since 2019
CHARGE = 1.602176634e-19  # C, exact
PLANCK = 6.62607015e-34  # J s, exact
LIGHT = 299792458.0  # m/s, exact
TIE = 1e-9  # of a step: what lies this close below the middle between two codes is rounded up, whatever its last bits are


@dataclass(frozen=True)
class Shot:
    """Photons arrive at random: each rail's count is Poisson. `photons` detected for a full-scale product; None: as powered."""

    photons: float | None = None
    formula: ClassVar[str] = "counts ~ Poisson(photons * rail), so std(y) = sqrt(sum(|w| x) / photons)"
    source: ClassVar[str] = "photon statistics of laser light: R. Loudon, The Quantum Theory of Light (Oxford University Press)"

    def __post_init__(self) -> None:
        if self.photons is not None:
            _positive("photons", self.photons)


@dataclass(frozen=True)
class Johnson:
    """The receiver's load resistor is warm: noise current, integrated for half the inverse of the bandwidth."""

    resistance: float = 1e3  # ohm
    temperature: float = 300.0  # K
    formula: ClassVar[str] = (
        "std of the current = sqrt(4 k T bandwidth / R); over t = 1 / (2 bandwidth), sqrt(2 k T t / R) / q electrons"
    )
    source: ClassVar[str] = "J. B. Johnson, Phys. Rev. 32, 97 (1928); H. Nyquist, Phys. Rev. 32, 110 (1928)"

    def __post_init__(self) -> None:
        _positive("resistance", self.resistance)
        _positive("temperature", self.temperature)

    def current(self, bandwidth: float) -> float:
        """Standard deviation of the current in A over `bandwidth` in Hz."""
        return math.sqrt(4 * BOLTZMANN * self.temperature * _positive("bandwidth", bandwidth) / self.resistance)

    def electrons(self, seconds: float) -> float:
        """Standard deviation of the charge in electrons, integrated over so many seconds."""
        return self.current(1 / (2 * _positive("seconds", seconds))) * seconds / CHARGE

    def crossover(self) -> float:
        """The photocurrent in A at which shot noise, 2 q I, equals this: 2 k T / (q R)."""
        return 2 * BOLTZMANN * self.temperature / (CHARGE * self.resistance)


@dataclass(frozen=True)
class PhaseError:
    """Every phase shifter, those at the outputs included, is off by a normal deviate of this deviation in radians."""

    std: float
    formula: ClassVar[str] = "fidelity of an N-mode mesh = exp(-N std^2), mean over meshes, to second order in std"
    source: ClassVar[str] = "perturbation of N^2 phases; M. Y.-S. Fang et al., Opt. Express 27, 14009 (2019) has the curves"

    def __post_init__(self) -> None:
        _not_negative("std", self.std)


@dataclass(frozen=True)
class SplitterError:
    """Every splitter is exp(i (pi/4 + e) X) with e a normal deviate of this deviation in radians."""

    std: float
    formula: ClassVar[str] = "fidelity of an N-mode mesh = exp(-2 N std^2), mean over meshes, to second order in std"
    source: ClassVar[str] = (
        "perturbation of N(N-1) splitters; M. Y.-S. Fang et al., Opt. Express 27, 14009 (2019) has the curves"
    )

    def __post_init__(self) -> None:
        _not_negative("std", self.std)


@dataclass(frozen=True)
class Quantisation:
    """Converters have steps: bits of the inputs' DACs, the weights' settings and the outputs' ADCs; None leaves one exact."""

    input_bits: int | None = None
    weight_bits: int | None = None
    output_bits: int | None = None
    formula: ClassVar[str] = (
        "2^b - 1 steps from 0 to 1, or 2^(b-1) - 1 to either side; a full-scale sine keeps 6.02 b + 1.76 dB"
    )
    source: ClassVar[str] = "W. R. Bennett, Bell Syst. Tech. J. 27, 446 (1948)"

    def __post_init__(self) -> None:
        for name in ("input_bits", "weight_bits", "output_bits"):
            if (bits := getattr(self, name)) is not None:
                checked_bits(name, bits)


@dataclass(frozen=True)
class Noise:
    """The effects that are simulated; nothing by default."""

    shot: Shot | None = None
    johnson: Johnson | None = None
    phase: PhaseError | None = None
    splitter: SplitterError | None = None
    quantisation: Quantisation | None = None

    def __post_init__(self) -> None:
        kinds = {"shot": Shot, "johnson": Johnson, "phase": PhaseError, "splitter": SplitterError, "quantisation": Quantisation}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; a {kind.__name__} or None is accepted")


def disturbed(mesh: Mesh, noise: Noise, generator: torch.Generator | None = None) -> Mesh:
    """The mesh with the phase and splitter errors of `noise` drawn once, as a chip has them for life."""

    def draw(like: Tensor, std: float) -> Tensor:
        deviate = torch.randn(like.shape, generator=generator, dtype=like.dtype)  # drawn on the CPU: the same on any device
        return std * deviate.to(like.device)

    if noise.phase and noise.phase.std:
        parts = {name: getattr(mesh, name) for name in ("theta", "phi", "output")}
        mesh = replace(mesh, **{name: part + draw(part, noise.phase.std) for name, part in parts.items()})
    if noise.splitter and noise.splitter.std:
        pairs = mesh.theta[..., None].expand(*mesh.theta.shape, 2)
        before = 0 if mesh.splitters is None else mesh.splitters
        mesh = replace(mesh, splitters=before + draw(pairs, noise.splitter.std))
    return mesh


def detect(
    plus: Tensor, minus: Tensor, noise: Noise, photons: Tensor | float, seconds: float, generator: torch.Generator | None = None
) -> Tensor:
    """The difference that a balanced receiver reads, for rails in full-scale products: float64, any one shape.

    photons: detected for a full-scale product (broadcast over the rails). seconds: that the light is collected.
    """
    signal = plus - minus
    if noise.shot:
        counts = [torch.poisson((rail * photons).clamp(min=0), generator=generator) for rail in (plus, minus)]
        signal = (counts[0] - counts[1]) / photons
    if noise.johnson:
        deviate = torch.randn(signal.shape, generator=generator, dtype=signal.dtype, device=signal.device)
        signal = signal + deviate * noise.johnson.electrons(seconds) / photons
    return signal


def quantised(values: Tensor, bits: int | None, *, signed: bool) -> Tensor:
    """Values of full scale 1 on the converter's nearest code: 2^b - 1 steps from 0 to 1, or 2^(b-1) - 1 to either side of 0."""
    if bits is None:
        return values
    steps = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    return torch.floor(values.clamp(-1.0 if signed else 0.0, 1.0) * steps + 0.5 + TIE) / steps


def bits_of(signal_to_noise: float) -> float:
    """Effective bits of a ratio of powers: (its decibels - 1.76) / 6.02, as for a converter."""
    return (10 * math.log10(_positive("signal_to_noise", signal_to_noise)) - 1.76) / 6.02


def shot_bits(detected: float) -> float:
    """Effective bits at so many detected photons a multiply, for inputs uniform on [0, 1] and weights uniform on [-1, 1].

    A full-scale product then has 4 times as many; the signal's mean square is n/9 and the noise's n/(4 * full scale), whatever
    the number n of products that are summed, so the signal-to-noise ratio is 16/9 of `detected`.
    """
    return bits_of(16 / 9 * _positive("detected", detected))


def received_bits(detected: float, electrons: float = 0.0, channels: int = 1) -> float:
    """`shot_bits` of a receiver that also adds noise of so many electrons to each sum of `channels` products.

    Its variance over the shot noise's is electrons^2 over channels * detected, the photons of a whole reading.
    """
    _not_negative("electrons", electrons)
    return bits_of(16 / 9 * _positive("detected", detected) / (1 + electrons**2 / (_positive("channels", channels) * detected)))


def photons_for(bits: float, electrons: float = 0.0, channels: int = 1) -> float:
    """Detected photons a multiply that so many bits ask for: the inverse of `received_bits`, and of `shot_bits` by default."""
    _not_negative("electrons", electrons)
    quiet = 9 / 16 * 10 ** ((6.02 * bits + 1.76) / 10)
    return quiet / 2 + math.sqrt(quiet**2 / 4 + quiet * electrons**2 / _positive("channels", channels))


def phase_bits(std: float) -> float:
    """Effective bits of one weight sin^2(theta/2), uniform on [0, 1], whose phase has this deviation: signal to noise 2 / std^2."""
    return bits_of(2 / _positive("std", std) ** 2)


def photon_energy(wavelength: float = 1.55e-6) -> float:
    """Joules of a photon of this vacuum wavelength in m."""
    return PLANCK * LIGHT / _positive("wavelength", wavelength)


def detected_photons(power: float, rate: float, channels: int, wavelength: float = 1.55e-6) -> float:
    """Detected photons a multiply at best, from `power` in W launched on each of `channels` wavelengths, `rate` vectors a second.

    Half the light passes inputs uniform on [0, 1], and all of that reaches one of `channels` receivers.
    """
    return _positive("power", power) / _positive("rate", rate) / photon_energy(wavelength) / 2 / _positive("channels", channels)


def checked_bits(name: str, bits: int, least: int = 2) -> int:
    """The number of bits; ValueError unless it is a whole number from `least` to 24."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 24:
        raise ValueError(f"{name} is {bits!r}; a whole number from {least} to 24 is needed")
    return bits


def _positive(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf):
        raise ValueError(f"{name} is {value!r}; a finite number above 0 is needed")
    return value


def _not_negative(name: str, value: float) -> None:
    if not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise ValueError(f"{name} is {value!r}; a finite number of 0 or more is needed")
