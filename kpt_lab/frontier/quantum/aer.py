"""The same circuits on Qiskit Aer's simulator: exact expectations, and gradients by parameter shift, a run for each shift.

Slow by nature, and independent of the simulator here: it is what a device could do, without its noise and its shots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kpt_lab.frontier.quantum.circuit import Circuit
from kpt_lab.frontier.quantum.gates import KINDS, shift_rule
from kpt_lab.frontier.quantum.matrices import Angles
from kpt_lab.frontier.quantum.observables import Observables

# Aer 0.18.2 computes wrong values, without an error, where it binds many values to these at once: they are decomposed before
MISBOUND = ["cp", "cu1", "mcphase", "crx", "cry", "crz", "cu3"]
AT_ONCE = 4096  # bound circuits in one call of the simulator


def load() -> Any:
    """The module qiskit_aer; ModuleNotFoundError with what to install otherwise."""
    try:
        import qiskit_aer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "backend 'aer' needs the packages qiskit and qiskit-aer: pip install qiskit qiskit-aer, or use backend 'torch'"
        ) from error
    return qiskit_aer


def to_qiskit(circuit: Circuit) -> tuple[Any, list[Any]]:
    """A qiskit.QuantumCircuit with one Parameter for every angle of every gate, and these Parameters in order."""
    from qiskit import QuantumCircuit
    from qiskit.circuit import Parameter
    from qiskit.circuit.library import MCPhaseGate, MCXGate, UnitaryGate, get_standard_gate_name_mapping

    known = get_standard_gate_name_mapping()
    made = QuantumCircuit(circuit.qubits)
    found: list[Any] = []
    for gate in circuit.gates:
        angles = [Parameter(f"angle{len(found) + k:06d}") for k in range(len(gate.angles))]
        found += angles
        if gate.name == "global_phase":
            made.global_phase += angles[0]
        elif gate.matrix is not None:
            made.append(UnitaryGate(gate.matrix.numpy()), gate.qubits)
        elif gate.name == "mcx":
            made.append(MCXGate(len(gate.qubits) - 1), gate.qubits)
        elif gate.name == "mcphase":
            made.append(MCPhaseGate(angles[0], len(gate.qubits) - 1), gate.qubits)
        elif angles:
            made.append(type(known[gate.name])(*angles), gate.qubits)
        else:
            made.append(known[gate.name], gate.qubits)
    return made, found


class AerProgram:
    """A circuit and its observables as Aer runs them; `batched` names the parameters that have a value for each sample."""

    def __init__(self, circuit: Circuit, batched: Any, observables: Observables) -> None:
        package = load()
        from qiskit import transpile
        from qiskit.quantum_info import SparsePauliOp

        self.angles = Angles(circuit, batched)
        free = [bool(gate.angles) for gate in circuit.gates for _ in _columns_of(gate)]
        self.free = [column for column, is_free in enumerate(free) if is_free]
        columns = circuit.columns
        shifts = [rule for gate in circuit.gates for rule in (KINDS[gate.name].shifts if gate.name in KINDS else ())]
        self.rules = [shift_rule(*rule) if columns[c].terms else [] for c, rule in zip(self.free, shifts, strict=True)]
        self.simulator = package.AerSimulator(method="statevector")
        template, self.parameters = to_qiskit(circuit)
        template = transpile(template.decompose(MISBOUND, reps=4), self.simulator, optimization_level=0)
        assert not set(template.count_ops()) & set(MISBOUND)
        self.labels = [f"observable{k}" for k in range(len(observables))]
        for label, one in zip(self.labels, observables.sums, strict=True):
            template.save_expectation_value(SparsePauliOp.from_list(list(one.terms)), list(range(circuit.qubits)), label=label)
        self.template = template

    def table(self, sample: Tensor, shared: Tensor) -> Tensor:
        """Angles (B, free columns), those equal in all samples repeated."""
        both = {"sample": sample, "shared": shared.expand(len(sample), -1)}
        picked = [both[kind][:, index] for kind, index in (self.angles.where[column] for column in self.free)]
        return torch.stack(picked, 1) if picked else sample.new_zeros(len(sample), 0)

    def values(self, angles: Tensor) -> Tensor:
        """Expectations (rows, m) of angles (rows, free columns)."""
        return torch.cat([self._run(part) for part in angles.split(AT_ONCE)])

    def _run(self, angles: Tensor) -> Tensor:
        kept = [k for k, parameter in enumerate(self.parameters) if parameter in self.template.parameters]
        if kept:
            binds = [{self.parameters[k]: angles[:, k].tolist() for k in kept}]
            result = self.simulator.run(self.template, parameter_binds=binds).result()
        else:
            result = self.simulator.run(self.template).result()
        if not result.success:
            raise RuntimeError(f"Aer could not run the circuit: {result.status}")
        rows = [[float(result.data(k)[label]) for label in self.labels] for k in range(len(angles) if kept else 1)]
        return torch.tensor(rows, dtype=torch.float64).expand(len(angles), -1)


def _columns_of(gate: Any) -> tuple[float, ...]:
    kind = KINDS.get(gate.name)
    return (*[0.0] * len(gate.angles), *(kind.fixed if kind else ()))


class Shifted(torch.autograd.Function):
    """(program, angles (B, sample), angles (1, shared)) -> expectations (B, m); derivatives by parameter shift."""

    @staticmethod
    def forward(ctx: Any, program: AerProgram, sample: Tensor, shared: Tensor) -> Tensor:
        ctx.program = program
        ctx.save_for_backward(sample, shared)
        return program.values(program.table(sample.cpu(), shared.cpu())).to(sample.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        sample, shared = ctx.saved_tensors
        program: AerProgram = ctx.program
        angles = program.table(sample.cpu(), shared.cpu())
        rows, owners = [], []
        for column, rule in enumerate(program.rules):
            for shift, weight in rule:
                moved = angles.clone()
                moved[:, column] += shift
                rows.append(moved)
                owners.append((column, weight))
        sums = {"sample": torch.zeros_like(sample), "shared": torch.zeros_like(shared)}
        found = program.values(torch.cat(rows)).unflatten(0, (len(rows), -1)) if rows else ()
        for (column, weight), values in zip(owners, found, strict=True):
            kind, index = program.angles.where[program.free[column]]
            slope = weight * (values.to(gradient.device) * gradient).sum(1)
            sums[kind][:, index] += slope if kind == "sample" else slope.sum()
        return None, sums["sample"], sums["shared"]
