"""Matrix products by light, simulated: weights in the phases of meshes, inputs as powers, each on a wavelength of its own.

A core takes `wavelength_channels` inputs x >= 0, the power of one wavelength at one port each, so that powers add at a detector
without interference. A mesh whose field matrix is M gives output i the power sum_j |M_ij|^2 x_j. Two meshes, programmed with
sqrt(max(W, 0)) and sqrt(max(-W, 0)) by SVD, feed the two detectors of a balanced receiver, which reads W x. Negative inputs go
through in a second time slot. Dispersion of the meshes over the wavelengths is not modelled.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kpt_lab.core import Metric
from kpt_lab.frontier.photonic import thermal
from kpt_lab.frontier.photonic.energy import Constants, Counts, EnergyReport
from kpt_lab.frontier.photonic.mesh import Scheme, SVDMesh, _checked_scheme, part, svd
from kpt_lab.frontier.photonic.noise import (
    Noise,
    PhaseError,
    _positive,
    checked_bits,
    detect,
    detected_photons,
    disturbed,
    photon_energy,
    photons_for,
    quantised,
    received_bits,
    shot_bits,
)
from kpt_lab.frontier.photonic.product import Program, StraightThrough, check

OPTICAL_POWER = 1e-3  # W of light launched on each wavelength, the default: what a small laser line gives
SYMBOL_RATE = 1e9  # input vectors per second, the default


class PrecisionWarning(UserWarning):
    """More bits were asked for than the light can carry; the message says how many photons they need."""


class PhotonicAccelerator:
    """A photonic matrix machine, simulated locally: nothing here is a measurement of a device.

    wavelength_channels: inputs and outputs of a core. precision_bits: of all converters in the energy model, and what is held
    against shot noise; values are rounded only where `noise` has a Quantisation. thermal_stabilization: a PI controller holds
    the phase shifters against `ambient`, which is constant by default (None: no drift at all, controlled or not).
    optical_power: W launched on each wavelength, 1 mW by default; symbol_rate: vectors per second. All noise is off by default.
    A PrecisionWarning comes where shot noise, and Johnson noise if `noise` has it, leave fewer bits, were all modulated light detected.
    """

    def __init__(
        self,
        wavelength_channels: int = 64,
        precision_bits: int = 16,
        thermal_stabilization: bool = True,
        *,
        optical_power: float = OPTICAL_POWER,
        symbol_rate: float = SYMBOL_RATE,
        wavelength: float = 1.55e-6,
        noise: Noise | None = None,
        ambient: thermal.Ambient | None = None,
        controller: thermal.Controller | None = None,
        scheme: Scheme = "clements",
        constants: Constants | None = None,
        seed: int = 0,
    ) -> None:
        if (
            isinstance(wavelength_channels, bool)
            or not isinstance(wavelength_channels, int)
            or not 1 <= wavelength_channels <= 1024
        ):
            raise ValueError(f"wavelength_channels is {wavelength_channels!r}; a whole number from 1 to 1024 is needed")
        if not isinstance(thermal_stabilization, bool):
            raise ValueError(f"thermal_stabilization is {thermal_stabilization!r}; accepted are True and False")
        for name, value, kind in (
            ("noise", noise, Noise),
            ("ambient", ambient, thermal.Ambient),
            ("controller", controller, thermal.Controller),
        ):
            if not isinstance(value, kind | None):
                raise ValueError(f"{name} is {value!r}; a {kind.__name__} or None is accepted")
        if controller and not thermal_stabilization:
            raise ValueError("controller is given, but thermal_stabilization is False, so nothing would use it")
        self.wavelength_channels = wavelength_channels
        self.precision_bits = checked_bits("precision_bits", precision_bits)
        self.thermal_stabilization = thermal_stabilization
        self.optical_power = _positive("optical_power", optical_power)
        self.symbol_rate = _positive("symbol_rate", symbol_rate)
        self.wavelength = _positive("wavelength", wavelength)
        self.noise = noise or Noise()
        self.scheme = _checked_scheme(scheme)
        self.constants = constants or Constants()
        self.seed = seed
        self.drift = (
            thermal.drift(ambient, (controller or thermal.Controller()) if thermal_stabilization else None) if ambient else None
        )
        self.last = self.total = Counts()
        self._generators: dict[torch.device, torch.Generator] = {}
        self._warn()

    @property
    def name(self) -> str:
        """The machine's name, as a Trial's `simulates` has it."""
        return f"photonic-{self.wavelength_channels}"

    @property
    def launched_photons(self) -> float:
        """Photons launched on a wavelength for one vector."""
        return self.optical_power / self.symbol_rate / photon_energy(self.wavelength)

    @property
    def detected_photons(self) -> float:
        """Detected photons a multiply at best: inputs uniform on [0, 1], and all light behind the modulators is detected."""
        return detected_photons(self.optical_power, self.symbol_rate, self.wavelength_channels, self.wavelength)

    @property
    def shot_noise_bits(self) -> float:
        """Effective bits that shot noise leaves at best, for inputs uniform on [0, 1] and weights uniform on [-1, 1]."""
        return shot_bits(self.detected_photons)

    @property
    def receiver_bits(self) -> float:
        """The same less what Johnson noise takes, where `noise` has it."""
        return received_bits(self.detected_photons, self._electrons, self.wavelength_channels)

    @property
    def _electrons(self) -> float:
        return self.noise.johnson.electrons(1 / self.symbol_rate) if self.noise.johnson else 0.0

    def _warn(self) -> None:
        needed, have = photons_for(self.precision_bits, self._electrons, self.wavelength_channels), self.detected_photons
        if needed > have:
            limit = "shot and Johnson noise alone" if self.noise.johnson else "shot noise alone"
            warnings.warn(
                f"precision_bits={self.precision_bits} needs {needed:.2g} detected photons a multiply by {limit}; "
                f"{self.optical_power * 1e3:.3g} mW on each of {self.wavelength_channels} wavelengths at {self.symbol_rate:.3g} vectors/s "
                f"gives at most {have:.2g}, enough for {max(self.receiver_bits, 0):.1f} bits: ask for fewer bits, or for "
                f"{needed / have:.2g} times the light",
                PrecisionWarning,
                stacklevel=3,
            )

    def photonic_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b with b in the phases: shapes as torch.matmul, broadcasting included; the dtype and device of the inputs.

        Computed through the meshes in double precision. Gradients are those of the ideal product (straight-through for noise
        and converters). ValueError for anything but two floating point tensors of one dtype and device that fit together.
        """
        check(a, b)
        left, right = a[None] if a.dim() == 1 else a, b[:, None] if b.dim() == 1 else b
        with torch.no_grad():
            reading = self.run(left, self.program(right))
        result = StraightThrough.apply(left, right, reading.to(a.dtype))
        if a.dim() == 1:
            result = result.squeeze(-2)
        return result.squeeze(-1) if b.dim() == 1 else result

    @torch.no_grad()
    def program(self, b: Tensor) -> Program:
        """The cores' phases for a matrix b (..., k, n), errors of noise and drift left out; each tile has a scale of its own."""
        rows, cols = b.shape[-2:]
        tiles = self._tiled(b.to(torch.float64), (-2, -1)).mT  # (..., k tiles, n tiles, outputs, inputs)
        scale = tiles.abs().amax((-2, -1))
        weights = tiles / torch.where(scale > 0, scale, 1.0)[..., None, None]
        if quantisation := self.noise.quantisation:
            weights = quantised(weights, quantisation.weight_bits, signed=True)
        rails = [(sign * weights).clamp(min=0) for sign in (1, -1)]
        full_scale = torch.stack([rail.sum(-1).amax(-1) for rail in rails]).amax(0)
        both = svd(torch.stack(rails).sqrt(), self.scheme)
        plus, minus = (SVDMesh(part(both.left, k), both.gains[k], part(both.right, k), both.scale[k]) for k in range(2))
        return Program(plus, minus, scale, full_scale, (rows, cols))

    @torch.no_grad()
    def run(self, a: Tensor, program: Program) -> Tensor:
        """What the receivers read, scaled back: (..., m, k) against a program's (..., k, n) -> (..., m, n) in float64."""
        if a.shape[-1] != program.shape[0]:
            raise ValueError(f"a has shape {tuple(a.shape)}, but the program holds a matrix of {program.shape[0]} rows")
        cores = self._fabricated(program)
        powers = [rail.transfer().abs().square() * rail.scale[..., None, None].square() for rail in (cores.plus, cores.minus)]
        photons = self._full_scale_photons(program)
        x = self._inputs(a)
        size = x.abs().amax(-1, keepdim=True)
        x = x / torch.where(size > 0, size, 1.0)
        slots = 2 if bool((x < 0).any()) else 1
        reading = torch.zeros((), dtype=torch.float64, device=a.device)
        for sign in (1, -1)[:slots]:
            reading = reading + sign * self._slot((sign * x).clamp(min=0), powers, photons, program.full_scale)
        y = (reading * size * program.scale[..., None, None]).sum(-4)  # the tiles of k, added in electronics
        self._count(x, program, reading.shape, slots, a.element_size())
        return y.movedim(-3, -2).flatten(-2)[..., : program.shape[1]]

    def report(self) -> EnergyReport:
        """Modelled energy of all products so far, every constant cited; ValueError before the first."""
        if not self.total.products:
            raise ValueError("no product was computed yet, so there is nothing to report; call photonic_matmul first")
        setting = f"{self.optical_power * 1e3:.3g} mW a wavelength, {self.symbol_rate:.3g} vectors/s, {self.precision_bits} bit converters"
        return EnergyReport(self.total, f"{self.name} ({setting})", self.constants)

    def metrics(self) -> Mapping[str, Metric]:
        """The modelled metrics of the latest product, for a Trial."""
        return replace(self.report(), counts=self.last).metrics

    # ---- on the way

    def _inputs(self, a: Tensor) -> Tensor:
        """(..., m, k) -> (..., tiles of k, 1, m, channels)."""
        return self._tiled(a.to(torch.float64), (-1,)).movedim(-2, -3)[..., None, :, :]

    def _tiled(self, matrix: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Zero-padded and cut: the last dim into (tiles, channels), or the last two into (tiles, tiles, channels, channels)."""
        n = self.wavelength_channels
        pads = [(-matrix.shape[d]) % n if d in dims else 0 for d in (-1, -2)]
        padded = torch.nn.functional.pad(matrix, (0, pads[0], 0, pads[1]))
        if dims == (-1,):
            return padded.unflatten(-1, (-1, n))
        return padded.unflatten(-1, (-1, n)).unflatten(-3, (-1, n)).movedim(-3, -2)

    def _fabricated(self, program: Program) -> Program:
        """The program in the chip at hand: fabrication errors, the same in every call, and what drift leaves in the phases."""
        noise = self.noise
        if self.drift is not None:
            std = math.hypot(noise.phase.std if noise.phase else 0.0, self.drift.phase_rms)
            noise = replace(noise, phase=PhaseError(std))
        if not (noise.phase or noise.splitter):
            return program
        generator = torch.Generator().manual_seed(self.seed)
        rails = [
            replace(r, left=disturbed(r.left, noise, generator), right=disturbed(r.right, noise, generator))
            for r in (program.plus, program.minus)
        ]
        return replace(program, plus=rails[0], minus=rails[1])

    def detected(self, program: Program) -> Tensor:
        """Detected photons a multiply of each core as programmed, (..., tiles of k, tiles of n): less than `detected_photons`.

        Half the light goes to each rail, and a mesh passes what its largest singular value leaves. For inputs uniform on [0, 1]
        and weights uniform on [-1, 1], as everywhere; `shot_bits` of it are the bits of that core.
        """
        return self._full_scale_photons(program) / 4

    def _full_scale_photons(self, program: Program) -> Tensor:
        """Detected photons of a full-scale product, by core."""
        shot = self.noise.shot
        if shot and shot.photons is not None:
            return torch.full_like(program.scale, shot.photons)
        passed = torch.maximum(program.plus.scale, program.minus.scale).square()
        return self.launched_photons / 2 / torch.where(passed > 1e-12, passed, 1.0)

    def _slot(self, x: Tensor, powers: list[Tensor], photons: Tensor, full_scale: Tensor) -> Tensor:
        """One time slot: inputs (..., m, channels) in [0, 1] -> readings (..., tiles, tiles, m, channels) in full-scale products."""
        quantisation = self.noise.quantisation
        if quantisation:
            x = quantised(x, quantisation.input_bits, signed=False)
        plus, minus = (x @ power.mT for power in powers)
        generator = self._generators.setdefault(x.device, torch.Generator(x.device).manual_seed(self.seed))
        reading = detect(plus, minus, self.noise, photons[..., None, None], 1 / self.symbol_rate, generator)
        if quantisation and quantisation.output_bits is not None:
            span = torch.where(full_scale > 0, full_scale, 1.0)[..., None, None]
            reading = quantised(reading / span, quantisation.output_bits, signed=True) * span
        return reading

    def _count(self, x: Tensor, program: Program, shape: torch.Size, slots: int, itemsize: int) -> None:
        n, (k, cols) = self.wavelength_channels, program.shape
        *batch, tall, wide, m, _ = shape
        vectors = math.prod(batch) * tall * wide * m * slots  # that went through a core
        held = sum(
            float(torch.remainder(phases, 2 * math.pi).sum())
            for mesh in program.meshes
            for phases in (mesh.theta, mesh.phi, mesh.output)
        )
        repeats = math.prod(batch) * m * slots / math.prod(program.scale.shape[:-2])  # vectors that each core saw
        self.last = Counts(
            multiplies=math.prod(batch) * m * k * cols,
            products=1,
            bits=self.precision_bits,
            light=self.optical_power / self.symbol_rate * n * vectors,
            inputs=vectors * n,
            outputs=vectors * n,
            radian_seconds=held * repeats / self.symbol_rate,
            bytes=itemsize
            * (math.prod(x.shape[:-4]) * m * k + math.prod(program.scale.shape[:-2]) * k * cols + math.prod(batch) * m * cols),
            shifters=sum(phases.numel() for mesh in program.meshes for phases in (mesh.theta, mesh.phi, mesh.output)),
        )
        self.total = self.total + self.last
