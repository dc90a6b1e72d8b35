"""Peak bytes of tensors in forward and backward, by depth: python benchmarks/quantum_memory.py [--depths 10 1000] [--fake] [--out FILE]

Counts the storages that are alive at once, as PyTorch's operators make them; the circuit turns every qubit by a weight and entangles
neighbours in each layer, and takes its inputs in the first. Ends with exit code 1 where the peaks differ by more than 10%. A depth of
1000 at 16 qubits and batch 32 is arithmetic for a quarter of an hour on one core; --fake runs the same operators on shapes alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kpt_lab.environment import environment
from kpt_lab.frontier.quantum import Circuit, Gate, QuantumLayer


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operators made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def layered(qubits: int, depth: int) -> Circuit:
    """Inputs as RX, then in each layer RY by a weight, RZZ by a weight or CRX by a weight, and CX on neighbours."""
    gates = [Gate("rx", [q], [f"x{q}"]) for q in range(qubits)]
    for layer in range(depth):
        gates += [Gate("ry", [q], [f"w{layer}_{q}"]) for q in range(qubits)]
        pairs = [(q, (q + 1) % qubits) for q in range(layer % 2, qubits - 1, 2)]
        kind = ("cx", "rzz", "cx", "crx")[layer % 4]
        gates += [Gate(kind, pair, [] if kind == "cx" else [f"v{layer}"]) for pair in pairs]
    return Circuit(qubits, gates)


def peak(qubits: int, batch: int, depth: int, *, fake: bool = False) -> int:
    """Peak bytes of the tensors made by one forward and backward; `fake` runs the operators on shapes alone."""
    circuit = layered(qubits, depth)
    inputs = [name for name in circuit.parameters if name.startswith("x")]
    weights = [name for name in circuit.parameters if not name.startswith("x")]
    layer = QuantumLayer(circuit, ["I" * (qubits - 1 - q) + "Z" + "I" * q for q in range(qubits)], inputs, weights)
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext():
        x = torch.randn(batch, qubits, requires_grad=True)
        with Alive() as alive:
            layer(x).sum().backward()
    return alive.peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qubits", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--fake", action="store_true", help="run the operators on shapes alone: the same count in a minute")
    parser.add_argument("--out", type=Path, help="write what was counted to this JSON file")
    asked = parser.parse_args()
    state = asked.batch * 2**asked.qubits * 16
    rows = []
    for depth in asked.depths:
        found = peak(asked.qubits, asked.batch, depth, fake=asked.fake)
        rows.append({"depth": depth, "peak_bytes": found, "states": found / state})
        print(f"depth {depth}: peak {found / 1e6:.1f} MB of tensors, {found / state:.2f} times the batch of states", flush=True)
    peaks = [row["peak_bytes"] for row in rows]
    spread = max(peaks) / min(peaks) - 1
    if asked.out:
        content = {
            "what": "peak bytes of the tensors that one forward and backward of a quantum layer make, complex128",
            "counted": "on shapes alone" if asked.fake else "in a real run", "qubits": asked.qubits, "batch": asked.batch,
            "state_bytes": state, "spread": spread, "depths": rows, "environment": environment("cpu"),
        }  # fmt: skip
        asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if spread <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
