"""Forward and backward of a quantum layer as Workloads, and the ways in which this package simulates it.

The specification applies every gate alone and lets PyTorch differentiate. All techniques here simulate, so their clock is
simulation_time: it compares programs on one machine, and says nothing about a quantum computer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.core import Problem, Technique, Unsupported, Workload
from kpt_lab.frontier.quantum.layer import QuantumLayer
from kpt_lab.frontier.quantum.sublayers import ansatz

TARGET = "an ideal quantum computer"
_TOLERANCE = 256.0  # unit roundoffs: gates and observables add theirs up


def z_of_each(qubits: int) -> list[str]:
    """The labels of Z on each qubit, qubit 0 first: "IIZ", "IZI", "ZII"."""
    return ["I" * (qubits - 1 - q) + "Z" + "I" * q for q in range(qubits)]


def _made(drive: Any, device: str, dtype: torch.dtype, seed: int, qubits: int, depth: int, batch: int) -> Problem:
    circuit = ansatz(qubits, depth)
    names = circuit.parameters
    layer = QuantumLayer(circuit, z_of_each(qubits), names[:qubits], names[qubits:], "reference")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_((2 * torch.rand(len(layer.weight), generator=draw, dtype=torch.float64) - 1) * math.pi)
    sets = [torch.randn(batch, qubits, generator=draw, dtype=torch.float64) for _ in range(3)]
    return Problem(layer.to(device, dtype), [(x.to(device, dtype),) for x in sets], drive)


def _make_forward(*, device: str, dtype: torch.dtype, seed: int, qubits: int = 6, depth: int = 2, batch: int = 32) -> Problem:
    return _made(_forward, device, dtype, seed, qubits, depth, batch)


def _make_backward(*, device: str, dtype: torch.dtype, seed: int, qubits: int = 6, depth: int = 2, batch: int = 32) -> Problem:
    return _made(_backward, device, dtype, seed, qubits, depth, batch)


def _forward(candidate: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def step(x: Tensor) -> Tensor:
        return candidate(x)

    return step


def _backward(candidate: nn.Module) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """x -> outputs, and the gradients of their weighted sum by x and by the candidate's parameters."""

    def step(x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        out = candidate(x)
        weighted = out @ torch.linspace(1, 2, out.shape[1], dtype=out.dtype, device=out.device)
        return out.detach(), *torch.autograd.grad(weighted.sum(), [x, *candidate.parameters()])

    return step


forward = Workload("quantum.layer.forward", _make_forward, tolerance=_TOLERANCE, dtypes=("float32", "float64"))
backward = Workload("quantum.layer.backward", _make_backward, tolerance=_TOLERANCE, dtypes=("float32", "float64"))
"""RX by inputs, then `depth` times RY and RZ by weights and a ring of CX, Z of each qubit; gradients of inputs and weights."""


def _same_layer(fn: Callable, backend: str, dtype: torch.dtype) -> QuantumLayer:
    if not isinstance(fn, QuantumLayer):
        raise Unsupported(f"this replaces the backend of a QuantumLayer; this is {type(fn).__name__}")
    made = QuantumLayer(fn.circuit, fn.observables.sums, fn.input_params, fn.weight_params, backend, dtype=dtype)
    made.to(fn.weight)
    made.load_state_dict(fn.state_dict())
    return made


def _adjoint(fn: Callable, args: tuple) -> QuantumLayer:
    return _same_layer(fn, "torch", torch.complex64 if args[0].dtype == torch.float32 else torch.complex128)


def _autograd(fn: Callable, args: tuple) -> QuantumLayer:
    return _same_layer(fn, "reference", torch.complex128)


autograd = Technique("autograd, gate by gate", _autograd, stage="device", simulates=TARGET, baseline=True)
"""The specification again, as a baseline: PyTorch differentiates through every gate, and keeps a state for each."""

adjoint = Technique("adjoint", _adjoint, stage="device", simulates=TARGET)
"""Fused gates, and the state taken back through the circuit instead of stored; complex64 where inputs are float32."""

techniques = (autograd, adjoint)
