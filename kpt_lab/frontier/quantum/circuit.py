"""Circuits as data: gates on numbered qubits, angles affine in named parameters, and the import from Qiskit.

Qubit 0 is the lowest bit of a state's index, as in Qiskit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.quantum.gates import DTYPE, KINDS, NAMES

_UNITARY_TOLERANCE = 1e-8  # the largest entry of U^H U - 1
_IGNORED = ("barrier", "id", "delay")
_RENAMED = {"c3x": "mcx", "c4x": "mcx"}


@dataclass(frozen=True)
class Angle:
    """constant + sum of coefficient times named parameter, in radians."""

    constant: float = 0.0
    terms: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class Gate:
    """One gate: its name as in Qiskit, its qubits, and its angles: numbers, parameter names or Angles.

    matrix: for the name "unitary", (2^k, 2^k); the gate's first qubit is the lowest bit of its indices.
    Raises ValueError for an unknown name, a wrong number of qubits or angles, and a matrix that is not unitary.
    """

    name: str
    qubits: tuple[int, ...]
    angles: tuple[Angle, ...] = ()
    matrix: Tensor | None = None

    def __init__(
        self, name: str, qubits: Iterable[int], angles: Iterable[float | str | Angle] = (), matrix: Any = None
    ) -> None:
        set_field = object.__setattr__
        set_field(self, "name", name)
        set_field(self, "qubits", tuple(qubits))
        set_field(self, "angles", tuple(_angle(value, name) for value in angles))
        set_field(self, "matrix", None if matrix is None else torch.as_tensor(matrix).detach().to("cpu", DTYPE))
        self._check()

    def _check(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"gate {self.name!r} is not known; known are {', '.join(NAMES)}")
        kind, count = KINDS.get(self.name), len(self.qubits)
        if len(set(self.qubits)) != count:
            raise ValueError(f"gate {self.name!r} has the qubits {self.qubits}; each may stand there once")
        if kind is None:
            _check_unitary(self.matrix, count)
        elif self.matrix is not None:
            raise ValueError(f"gate {self.name!r} has a matrix; only 'unitary' takes one")
        elif kind.qubits and count != kind.qubits:
            raise ValueError(f"gate {self.name!r} has {count} qubits; it takes {kind.qubits}")
        elif self.name in ("mcx", "mcphase") and count < 2:
            raise ValueError(f"gate {self.name!r} has {count} qubits; it takes 2 or more")
        if len(self.angles) != (expected := kind.angles if kind else 0):
            raise ValueError(f"gate {self.name!r} has {len(self.angles)} angles; it takes {expected}")


@dataclass(frozen=True, eq=False)
class Circuit:
    """Gates in order on `qubits` qubits, all of which start as 0.

    parameters: names in the order in which values are given; by default the order of first use.
    Raises ValueError for a qubit out of range and a parameter that is not listed.
    """

    qubits: int
    gates: tuple[Gate, ...]
    parameters: tuple[str, ...]

    def __init__(self, qubits: int, gates: Iterable[Gate], parameters: Sequence[str] | None = None) -> None:
        if qubits < 1:
            raise ValueError(f"qubits is {qubits}; a circuit needs 1 or more")
        gates = tuple(gates)
        used = dict.fromkeys(name for gate in gates for angle in gate.angles for name, _ in angle.terms)
        names = tuple(used) if parameters is None else tuple(parameters)
        if len(set(names)) != len(names):
            raise ValueError(f"parameters names one of {', '.join(names)} twice; each may stand there once")
        for gate in gates:
            if outside := [q for q in gate.qubits if not 0 <= q < qubits]:
                raise ValueError(f"gate {gate.name!r} acts on qubit {outside[0]}; the circuit has 0 to {qubits - 1}")
        if missing := [name for name in used if name not in names]:
            raise ValueError(f"parameters lacks {missing[0]!r}, which a gate uses")
        object.__setattr__(self, "qubits", qubits)
        object.__setattr__(self, "gates", gates)
        object.__setattr__(self, "parameters", names)

    @classmethod
    def from_qiskit(cls, circuit: Any) -> Circuit:
        """The same circuit from a qiskit.QuantumCircuit, global phase included; parameters in Qiskit's order.

        Barriers, delays and identities are dropped, and so are measurements at the very end: sampling reads all qubits.
        Raises ValueError for any other instruction that is not a gate known here, for a measurement that gates follow,
        and an angle that is not affine in its parameters; each by its name.
        """
        _check_measurements(circuit)
        gates = []
        phase = _affine(circuit.global_phase, "global phase")
        if phase.terms or phase.constant:
            gates.append(Gate("global_phase", (), (phase,)))
        for instruction in circuit.data:
            name = instruction.operation.name
            if name not in (*_IGNORED, "measure"):
                gates.append(_imported(instruction.operation, [circuit.find_bit(q).index for q in instruction.qubits]))
        return cls(circuit.num_qubits, gates, [p.name for p in circuit.parameters])

    @property
    def columns(self) -> tuple[Angle, ...]:
        """All angles of all gates in order, the fixed phases of diagonal gates included."""
        found: list[Angle] = []
        for gate in self.gates:
            found += gate.angles
            if gate.name in KINDS:
                found += [Angle(value) for value in KINDS[gate.name].fixed]
        return tuple(found)

    def __repr__(self) -> str:
        return f"Circuit({self.qubits} qubits, {len(self.gates)} gates, {len(self.parameters)} parameters)"


def as_circuit(circuit: Any) -> Circuit:
    """A Circuit as it is, a qiskit.QuantumCircuit imported; TypeError otherwise."""
    if isinstance(circuit, Circuit):
        return circuit
    if hasattr(circuit, "data") and hasattr(circuit, "num_qubits") and hasattr(circuit, "global_phase"):
        return Circuit.from_qiskit(circuit)
    raise TypeError(f"circuit is {type(circuit).__name__}; a Circuit or a qiskit.QuantumCircuit is needed")


def _angle(value: Any, gate: str) -> Angle:
    if isinstance(value, Angle):
        return value
    if isinstance(value, str):
        return Angle(0.0, ((value, 1.0),))
    if isinstance(value, (int, float)) and math.isfinite(value):
        return Angle(float(value))
    raise ValueError(f"an angle of gate {gate!r} is {value!r}; accepted are finite numbers, parameter names and Angles")


def _check_unitary(matrix: Tensor | None, qubits: int) -> None:
    size = 2**qubits
    if matrix is None or matrix.shape != (size, size):
        came = "none" if matrix is None else f"of shape {tuple(matrix.shape)}"
        raise ValueError(f"gate 'unitary' on {qubits} qubits has a matrix {came}; it needs one of shape ({size}, {size})")
    error = float((matrix.mH @ matrix - torch.eye(size, dtype=DTYPE)).abs().max())
    if not error <= _UNITARY_TOLERANCE:
        raise ValueError(f"gate 'unitary' has a matrix that is not unitary: its U^H U differs from 1 by {error:.2g}")


def _check_measurements(circuit: Any) -> None:
    measured: set[Any] = set()
    for instruction in circuit.data:
        name = instruction.operation.name
        if name == "barrier":
            continue
        if again := measured.intersection(instruction.qubits):
            qubit = circuit.find_bit(again.pop()).index
            raise ValueError(
                f"qubit {qubit} is measured before {name!r} acts on it; a measurement in mid-circuit can't be imported, only at the end"
            )
        if name == "measure":
            measured.update(instruction.qubits)


def _imported(operation: Any, qubits: list[int]) -> Gate:
    name = _RENAMED.get(operation.name, operation.name)
    if name == "unitary":
        return Gate(name, qubits, matrix=operation.params[0])
    if name not in KINDS:
        hint = (
            "" if getattr(operation, "definition", None) is None else "; circuit.decompose() replaces it by what it is made of"
        )
        raise ValueError(f"instruction {name!r} can't be imported; known gates are {', '.join(NAMES)}{hint}")
    return Gate(name, qubits, [_affine(value, f"gate {name!r}") for value in operation.params])


def _affine(value: Any, where: str) -> Angle:
    """A number or a qiskit ParameterExpression as an Angle."""
    if not hasattr(value, "parameters"):
        return Angle(float(value))
    terms, names = [], sorted(value.parameters, key=lambda parameter: parameter.name)
    for parameter in names:
        slope = value.gradient(parameter)
        if getattr(slope, "parameters", ()) or isinstance(slope, complex):
            raise ValueError(
                f"{where} has the angle {value}, which is not affine in {parameter.name!r} with a real coefficient"
            )
        terms.append((parameter.name, float(slope)))
    constant = complex(value.bind(dict.fromkeys(names, 0.0)))
    if constant.imag:
        raise ValueError(f"{where} has the angle {value}, which is not real")
    return Angle(constant.real, tuple((name, slope) for name, slope in terms if slope))


def check_values(circuit: Circuit, names: Iterable[str], what: str = "values") -> None:
    """ValueError names a parameter of the circuit that `names` lacks, or one that the circuit doesn't have."""
    given = list(names)
    if unbound := [name for name in circuit.parameters if name not in given]:
        raise ValueError(f"parameter {unbound[0]!r} of the circuit is unbound; {what} gives {', '.join(given) or 'none'}")
    if unknown := [name for name in given if name not in circuit.parameters]:
        raise ValueError(f"{what} names {unknown[0]!r}; the circuit has {', '.join(circuit.parameters) or 'no parameters'}")


def bound(circuit: Circuit, values: Mapping[str, float]) -> Circuit:
    """The circuit with numbers in place of all its parameters."""
    check_values(circuit, values)

    def number(angle: Angle) -> float:
        return angle.constant + sum(slope * float(values[name]) for name, slope in angle.terms)

    return Circuit(circuit.qubits, [Gate(g.name, g.qubits, map(number, g.angles), g.matrix) for g in circuit.gates])
