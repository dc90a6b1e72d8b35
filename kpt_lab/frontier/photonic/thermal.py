"""Thermal drift of a phase shifter, left alone or held by a heater under a PI controller; modelled.

    tau dT/dt = -T + ambient(t) + u        u = -kp T - ki (integral of T)        phase = (2 pi / wavelength) (dn/dT) length T

T and u are in kelvin: the departure from the working point, and what the heater adds in the long run. The ambient is a
straight line over a step, and the system is integrated exactly over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kpt_lab.frontier.photonic.noise import _positive

DN_DT = 1.86e-4  # 1/K, silicon at 1550 nm and room temperature: G. Cocorullo and I. Rendina, Electron. Lett. 28, 83 (1992)
LENGTH = 61.6e-6  # m and TAU, s: a phase shifter of 61.6 um and 130 kHz, N. C. Harris et al., Opt. Express 22, 10487 (2014)
TAU = 1 / (2 * math.pi * 130e3)


@dataclass(frozen=True)
class Controller:
    """A proportional-integral controller: kp without unit, ki in 1/s; both 0 or more."""

    kp: float = 50.0
    ki: float = 5e7

    def __post_init__(self) -> None:
        for name in ("kp", "ki"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise ValueError(f"{name} is {value!r}; a finite number of 0 or more is needed")


@dataclass(frozen=True)
class Ambient:
    """Drift of the surroundings: a sine of `amplitude` kelvin and `period` seconds, over `seconds` in `steps` steps."""

    amplitude: float = 1.0
    period: float = 1e-2
    seconds: float = 1e-2
    steps: int = 2000

    def __post_init__(self) -> None:
        for name in ("amplitude", "period", "seconds"):
            _positive(name, getattr(self, name))
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"steps is {self.steps!r}; a whole number of 1 or more is needed")

    def __call__(self, time: Tensor) -> Tensor:
        return self.amplitude * torch.sin(2 * math.pi * time / self.period)


@dataclass(frozen=True)
class Drift:
    """What happened: time in s, temperature and heater in K, phase in radians, each (steps + 1,) in float64."""

    time: Tensor
    temperature: Tensor
    heater: Tensor
    phase: Tensor

    @property
    def phase_rms(self) -> float:
        """Root mean square of the phase error in radians."""
        return float(self.phase.square().mean().sqrt())


def drift(
    ambient: Ambient | Callable[[Tensor], Tensor] = Ambient(),
    controller: Controller | None = None,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    tau: float = TAU,
    length: float = LENGTH,
    wavelength: float = 1.55e-6,
) -> Drift:
    """Drift under an ambient: an Ambient, or a function of time (n,) in s to kelvin (n,); without a controller nothing counters it.

    seconds and steps are the Ambient's own unless given; a function needs both. tau in s; length and wavelength in m.
    """
    seconds = ambient.seconds if seconds is None and isinstance(ambient, Ambient) else seconds
    steps = ambient.steps if steps is None and isinstance(ambient, Ambient) else steps
    if seconds is None or steps is None:
        raise ValueError("an ambient that is a function needs seconds and steps")
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"steps is {steps!r}; a whole number of 1 or more is needed")
    for name, value in {"seconds": seconds, "tau": tau, "length": length, "wavelength": wavelength}.items():
        _positive(name, value)
    kp, ki = (controller.kp, controller.ki) if controller else (0.0, 0.0)
    step = seconds / steps
    # state: T, the integral of T over tau, the ambient, its change in tau; time in units of tau keeps the entries alike
    rates = torch.zeros(4, 4, dtype=torch.float64)
    rates[0] = torch.tensor([-(1 + kp), -ki * tau, 1.0, 0.0], dtype=torch.float64)
    rates[1, 0] = rates[2, 3] = 1.0
    move = torch.linalg.matrix_exp(rates * (step / tau))[:2]
    time = torch.arange(steps + 1, dtype=torch.float64) * step
    outside = ambient(time)
    given = torch.stack([outside[:-1], outside.diff() * (tau / step)], -1) @ move[:, 2:].mT
    state = torch.zeros(steps + 1, 2, dtype=torch.float64)
    for k in range(steps):
        state[k + 1] = move[:, :2] @ state[k] + given[k]
    heater = -kp * state[:, 0] - ki * tau * state[:, 1]
    return Drift(time, state[:, 0], heater, 2 * math.pi / wavelength * DN_DT * length * state[:, 0])
