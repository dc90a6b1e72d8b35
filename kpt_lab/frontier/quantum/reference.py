"""The slow definition: every gate applied alone by its matrix, with PyTorch's own autograd; what the fast path must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from kpt_lab.frontier.quantum.circuit import Circuit, Gate
from kpt_lab.frontier.quantum.gates import DTYPE, KINDS, NAMES


def matrix(gate: Gate, angles: Tensor) -> Tensor:
    """The gate's matrix (..., 2^k, 2^k) for angles (..., m), with its first qubit as the lowest bit."""
    if gate.matrix is not None:
        return gate.matrix.to(angles.device)
    kind, count = KINDS[gate.name], len(gate.qubits)
    if kind.role in ("local", "dense"):
        return kind.build(angles)
    index = torch.arange(2**count, device=angles.device)
    bits = [(index >> q) & 1 for q in range(count)]
    if kind.role == "permutation":
        moved = kind.build(bits)  # where each amplitude came from
        source = sum((bit << q for q, bit in enumerate(moved)), torch.zeros_like(index))
        return torch.eye(2**count, dtype=DTYPE, device=angles.device)[source]
    fixed = angles.new_tensor(kind.fixed).expand(*angles.shape[:-1], -1)
    every = torch.cat([angles, fixed], -1)
    rows = torch.stack([row.to(angles.device).double().expand(2**count) for row in kind.build(bits)])
    return torch.diag_embed(torch.exp(1j * (every @ rows)))


def states(circuit: Circuit, values: dict[str, Tensor], batch: int) -> Tensor:
    """States (B, 2^n) in complex128 for values () or (B,) of every parameter; memory grows with the depth."""
    assert all(gate.name in NAMES for gate in circuit.gates)
    device = next((value.device for value in values.values()), torch.device("cpu"))
    n = circuit.qubits
    state = torch.zeros(batch, 2**n, dtype=DTYPE, device=device)
    state[:, 0] = 1
    for gate in circuit.gates:
        angles = [
            sum((slope * values[name].double() for name, slope in angle.terms), state.real.new_tensor(angle.constant))
            for angle in gate.angles
        ]
        table = torch.stack([angle.expand(batch) for angle in angles], -1) if angles else state.real.new_zeros(batch, 0)
        axes = [n - q for q in reversed(gate.qubits)]  # dimension 0 is the batch, 1 the highest qubit
        rest = [axis for axis in range(1, n + 1) if axis not in axes]
        order = [0, *axes, *rest]
        front = state.view(batch, *[2] * n).permute(order)
        made = matrix(gate, table).expand(batch, -1, -1) @ front.reshape(batch, 2 ** len(axes), -1)
        state = made.view(front.shape).permute([order.index(axis) for axis in range(n + 1)]).reshape(batch, -1)
    return state
