"""The circuit view: sliders for a small circuit's angles, bars for the chance of each outcome, an expectation value and its slopes.

The front end simulates up to four qubits exactly with the few gates of GATES; the circuits come from here, as data, and tests hold its
states equal to those of `kpt_lab.frontier.quantum.statevector`, and its slopes to the adjoint gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kpt_lab.frontier.quantum.circuit import Circuit, Gate, as_circuit
from kpt_lab.frontier.quantum.statevector import expectations, statevector

from .views import Drawn

if TYPE_CHECKING:
    import plotly.graph_objects as go

GATES = ("h", "x", "y", "z", "s", "sdg", "t", "tdg", "rx", "ry", "rz", "p", "cx", "cz", "swap", "rzz")
QUBITS, PARAMETERS = 4, 12  # at most
TURNS = tuple(round(0.05 * k, 2) for k in range(-20, 21))
"""Stops of the sliders in units of pi."""


def _layer(qubits: int, *, entangle: bool) -> Circuit:
    """Inputs as RX, a turn by a weight on each qubit, CX from each to the next, another turn: a small hybrid layer."""
    pairs = [(q, q + 1) for q in range(qubits - 1)] if entangle else []
    return Circuit(
        qubits,
        [
            *(Gate("rx", [q], [f"x{q}"]) for q in range(qubits)),
            *(Gate("ry", [q], [f"w{q}"]) for q in range(qubits)),
            *(Gate("cx", pair) for pair in pairs),
            *(Gate("ry", [q], [f"v{q}"]) for q in range(qubits)),
        ],
    )


CIRCUITS = {
    "a layer of two qubits": _layer(2, entangle=True),
    "the same without CX": _layer(2, entangle=False),
    "a layer of three qubits": _layer(3, entangle=True),
    "a pair": Circuit(2, [Gate("ry", [0], ["turn"]), Gate("cx", [0, 1])]),
    "interference": Circuit(1, [Gate("h", [0]), Gate("rz", [0], ["phase"]), Gate("h", [0])]),
}
"""What the view offers, by name."""

_FIRST = next(iter(CIRCUITS))
_VALUES = (0.3, 0.65, 0.25, -0.2, 0.15, -0.35, 0.4, 0.1, -0.1, 0.2, -0.3, 0.45)
"""First angles in units of pi: no symmetry, so that every slider does something."""


class Circuits(Drawn):
    """The circuit view; `state` holds the circuit's name, the observable, and the angles by name in units of pi."""

    def __init__(self, state: Mapping[str, Any], own: Circuit | None = None) -> None:
        super().__init__("circuit", tables(own), dict(state))

    def __repr__(self) -> str:
        return f"circuit: {self.state['circuit']}, {self.state['observable']}"


def circuit(circuit: Any = _FIRST, *, observable: str | None = None, **angles: float) -> Circuits:
    """A small circuit with a slider for each angle, bars of the outcomes' chances, and an expectation value with its slopes.

    circuit: one of CIRCUITS by name, or your own Circuit or qiskit.QuantumCircuit with gates of GATES, at most 4 qubits and 12
    parameters. observable: a Pauli label of Z and I, such as "ZI"; by default Z on every qubit. angles: in units of pi, by parameter.
    Raises ValueError for what is not accepted.
    """
    name, own = _named(circuit)
    return Circuits(_checked(name, own or CIRCUITS[name], observable, angles), own)


def probabilities(circuit: Any = _FIRST, *, observable: str | None = None, **angles: float) -> go.Figure:
    """The view's bars as a figure: the chance of each outcome, and in the title the expectation value."""
    from kpt_lab import look

    name, own = _named(circuit)
    made = own or CIRCUITS[name]
    state = _checked(name, made, observable, angles)
    amplitudes = statevector(made, {p: math.pi * state[p] for p in made.parameters})
    chances = amplitudes.abs().square().tolist()
    value = expectations(amplitudes, [state["observable"]]).item()
    labels = [f"{index:0{made.qubits}b}" for index in range(len(chances))]
    said = ", ".join(f"{p} {state[p]:g} pi" for p in made.parameters)
    note = f"Computed exactly. Expectation of {state['observable']}: {value:.4f}. The rightmost digit is qubit 0."
    figure = look.frame(f"Outcomes of {name}", said, [""], [note], row_height=240)
    figure.add_bar(
        x=labels, y=[look.six(c) for c in chances], marker={"color": look.colors().palette[0]}, hovertemplate="%{x}: %{y:.4f}"
    )
    figure.update_xaxes(type="category", title="outcome")
    return figure.update_yaxes(title="chance", range=[0, 1]).update_layout(showlegend=False)


def tables(own: Circuit | None = None) -> dict[str, Any]:
    """What the front end simulates: the circuits with their gates, parameters and observables; JSON-ready."""
    offered = {**CIRCUITS, **({"yours": own} if own else {})}
    return {
        "schema": 1,
        "title": "a small circuit",
        "turns": list(TURNS),
        "circuits": [_table(name, each) for name, each in offered.items()],
    }


def observables(qubits: int) -> list[str]:
    """Z on all qubits, then on each alone: what the view offers."""
    alone = ["I" * (qubits - 1 - q) + "Z" + "I" * q for q in range(qubits)]
    return list(dict.fromkeys(["Z" * qubits, *alone]))


def slopes(made: Circuit, values: Mapping[str, float], observable: str) -> dict[str, float]:
    """Derivatives of the expectation by each parameter, in radians, by the adjoint method."""
    leaves = {p: torch.tensor(values[p], dtype=torch.float64, requires_grad=True) for p in made.parameters}
    expectations(statevector(made, leaves), [observable]).sum().backward()
    return {p: 0.0 if leaf.grad is None else leaf.grad.item() for p, leaf in leaves.items()}


def _table(name: str, made: Circuit) -> dict[str, Any]:
    gates = [
        {
            "name": gate.name,
            "qubits": list(gate.qubits),
            "angle": [{"constant": a.constant, "terms": [list(term) for term in a.terms]} for a in gate.angles],
        }
        for gate in made.gates
    ]
    start = dict(zip(made.parameters, _VALUES, strict=False))
    return {
        "name": name, "qubits": made.qubits, "gates": gates, "start": start, "observables": observables(made.qubits),
    }  # fmt: skip


def _named(circuit: Any) -> tuple[str, Circuit | None]:
    """The name under which the view knows it, and the reader's own Circuit, if it is one; ValueError with what is accepted."""
    if isinstance(circuit, str):
        if circuit not in CIRCUITS:
            raise ValueError(f"circuit is {circuit!r}; accepted are {', '.join(map(repr, CIRCUITS))}, or a Circuit of your own")
        return circuit, None
    own = as_circuit(circuit)
    if own.qubits > QUBITS or len(own.parameters) > PARAMETERS:
        raise ValueError(
            f"circuit has {own.qubits} qubits and {len(own.parameters)} parameters; the view shows at most {QUBITS} and {PARAMETERS}"
        )
    if unknown := next((gate.name for gate in own.gates if gate.name not in GATES), ""):
        raise ValueError(f"circuit has the gate {unknown!r}; the view knows {', '.join(GATES)}")
    if taken := next((p for p in own.parameters if p in ("circuit", "observable", "view")), ""):
        raise ValueError(f"circuit has a parameter named {taken!r}, which the view needs for itself; rename it")
    return "yours", own


def _checked(name: str, made: Circuit, observable: str | None, angles: Mapping[str, float]) -> dict[str, Any]:
    """The state as the front end takes it; ValueError with what is accepted."""
    accepted = observables(made.qubits)
    if observable is not None and observable not in accepted:
        raise ValueError(f"observable is {observable!r}; accepted here are {', '.join(map(repr, accepted))}")
    if unknown := next((p for p in angles if p not in made.parameters), ""):
        raise ValueError(f"{name!r} has no angle {unknown!r}; it has {', '.join(made.parameters) or 'none'}")
    for parameter, value in angles.items():
        if not isinstance(value, int | float) or not -1 <= value <= 1:
            raise ValueError(f"{parameter} is {value!r}; accepted are numbers from -1 to 1, in units of pi")
    start = dict(zip(made.parameters, _VALUES, strict=False))
    return {"circuit": name, "observable": observable or accepted[0], **start, **{p: float(v) for p, v in angles.items()}}
