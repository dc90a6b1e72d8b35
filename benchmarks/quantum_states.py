"""States of random circuits against Qiskit's Statevector and Aer. Run: python benchmarks/quantum_states.py [--circuits 300]

Circuits of 1 to 10 qubits and depth up to 60, drawn over all gate names. Prints the largest difference of any amplitude for each
dtype and reference, how many gates of each name were in, and ends with exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from typing import Any

import numpy as np
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import MCPhaseGate, MCXGate, UnitaryGate, get_standard_gate_name_mapping
from qiskit.quantum_info import Statevector, random_unitary

from kpt_lab.frontier.quantum import Circuit, statevector
from kpt_lab.frontier.quantum.gates import NAMES

STANDARD = get_standard_gate_name_mapping()
BARS = {torch.complex128: 1e-12, torch.complex64: 1e-6}


def start(qubits: int, dice: random.Random) -> QuantumCircuit:
    """A circuit that turns each qubit at random."""
    circuit = QuantumCircuit(qubits)
    for q in range(qubits):
        circuit.u(*(dice.uniform(-3, 3) for _ in range(3)), q)
    return circuit


def append(circuit: QuantumCircuit, name: str, dice: random.Random) -> None:
    """Append a gate of that name with random angles on random qubits, unless the circuit has too few."""
    n = circuit.num_qubits
    if name == "global_phase":
        circuit.global_phase += dice.uniform(-3, 3)
    elif name == "unitary":
        count = dice.randint(1, min(3, n))
        circuit.append(UnitaryGate(random_unitary(2**count, seed=dice.randrange(10**6))), dice.sample(range(n), count))
    elif name in ("mcx", "mcphase"):
        if n > 1:
            count = dice.randint(2, min(5, n))
            gate = MCXGate(count - 1) if name == "mcx" else MCPhaseGate(dice.uniform(-7, 7), count - 1)
            circuit.append(gate, dice.sample(range(n), count))
    elif (gate := STANDARD[name]).num_qubits <= n:
        gate = type(gate)(*(dice.uniform(-7, 7) for _ in gate.params)) if gate.params else gate
        circuit.append(gate, dice.sample(range(n), gate.num_qubits))


def random_circuit(seed: int) -> QuantumCircuit:
    """1 to 10 qubits, depth 1 to 60 counted by Qiskit, every name of NAMES equally likely."""
    dice = random.Random(seed)
    qubits, depth = dice.randint(1, 10), dice.randint(1, 60)
    circuit = QuantumCircuit(qubits)
    while circuit.depth() < depth:
        append(circuit, dice.choice(NAMES), dice)
    return circuit


def reference(circuit: QuantumCircuit) -> np.ndarray:
    """The state as Qiskit computes it."""
    return np.asarray(Statevector(circuit).data)


def aer_reference(circuit: QuantumCircuit) -> np.ndarray:
    """The state as Aer computes it."""
    from qiskit_aer import AerSimulator

    simulator = AerSimulator(method="statevector")
    ready = transpile(circuit, simulator, optimization_level=0)
    ready.save_statevector()
    return np.asarray(simulator.run(ready).result().get_statevector().data)


def to_qiskit(circuit: Circuit, values: dict[str, float]) -> QuantumCircuit:
    """A Circuit of ours with numbers for its parameters, as Qiskit's."""
    made = QuantumCircuit(circuit.qubits)
    for gate in circuit.gates:
        angles = [angle.constant + sum(slope * values[name] for name, slope in angle.terms) for angle in gate.angles]
        found: Any = {"mcx": MCXGate, "mcphase": MCPhaseGate}.get(gate.name)
        if gate.name == "global_phase":
            made.global_phase += angles[0]
        elif gate.matrix is not None:
            made.append(UnitaryGate(gate.matrix.numpy()), gate.qubits)
        elif found is not None:
            made.append(found(*angles, len(gate.qubits) - 1), gate.qubits)
        else:
            made.append(type(STANDARD[gate.name])(*angles) if angles else STANDARD[gate.name], gate.qubits)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--circuits", type=int, default=300)
    number = parser.parse_args().circuits
    worst: dict[tuple[str, str], float] = {}
    gates: Counter[str] = Counter()
    for seed in range(number):
        circuit = random_circuit(seed)
        gates.update(circuit.count_ops())
        expected = {"Qiskit": reference(circuit), "Aer": aer_reference(circuit)}
        for dtype in BARS:
            found = statevector(circuit, dtype=dtype).numpy()
            for name, state in expected.items():
                key = (str(dtype).removeprefix("torch."), name)
                worst[key] = max(worst.get(key, 0.0), float(np.abs(found - state).max()))
    print(f"{number} circuits, {sum(gates.values())} gates of {len(gates)} names, rarest {gates.most_common()[-1]}")
    for (dtype, name), error in worst.items():
        print(f"{dtype} against {name}: {error:.2e}; bar {BARS[getattr(torch, dtype)]:.0e}")
    return 0 if all(error <= BARS[getattr(torch, dtype)] for (dtype, _), error in worst.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
