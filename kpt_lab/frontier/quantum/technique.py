"""Hybrid sublayers as a Technique: measured like any other, its clock kept as simulation time and never as a device's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kpt_lab.core import Metric, Technique, Unsupported
from kpt_lab.frontier.quantum import sublayers
from kpt_lab.frontier.quantum.layer import QuantumLayer
from kpt_lab.frontier.quantum.optimizer import hybrid_copy

TARGET = "IBM_Quantum"


def _made(fn: Callable, layers: str, qubits: int, depth: int, backend: str) -> nn.Module:
    if not isinstance(fn, nn.Module):
        raise Unsupported(f"hybrid layers need an nn.Module, whose structure can be read; this is {type(fn).__name__}")
    try:
        return hybrid_copy(fn, layers.split("+"), qubits, depth, backend, entangle=True, seed=0)[0]
    except ValueError as error:
        raise Unsupported(str(error)) from error


def _hybrid(
    fn: Callable, args: tuple, layers: str = "feedforward", qubits: int = sublayers.QUBITS, depth: int = sublayers.DEPTH
) -> nn.Module:
    return _made(fn, layers, qubits, depth, "torch")


def _definition(
    fn: Callable, args: tuple, layers: str = "feedforward", qubits: int = sublayers.QUBITS, depth: int = sublayers.DEPTH
) -> nn.Module:
    return _made(fn, layers, qubits, depth, "reference")


def _report(candidate: Any) -> Mapping[str, Metric]:
    """How many gates one sample goes through in all circuits: counted in the circuits, not on a device."""
    if not isinstance(candidate, nn.Module):
        return {}
    circuits = [part.circuit for part in candidate.modules() if isinstance(part, QuantumLayer)]
    gates = sum(len(circuit.gates) for circuit in circuits)
    return {"gates": Metric(gates, "1", "modelled", source="the number of gates in the circuits of all hybrid sublayers")}


hybrid = Technique(
    "quantum hybrid", _hybrid, stage="device", contract="lossy", definition=_definition, report=_report, simulates=TARGET,
)  # fmt: skip
"""A module with untrained hybrid sublayers, knobs layers ("attention", "feedforward", "attention+feedforward"), qubits, depth."""

techniques = (hybrid,)
