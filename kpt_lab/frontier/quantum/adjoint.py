"""Gradients through a simulated circuit by the adjoint method (Jones and Gacon, arXiv:2009.02823): two states, whatever the depth.

The final state and its gradient are taken back through the circuit together, gate by gate; nothing in between is stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kpt_lab.frontier.quantum.matrices import Matrices, Place
from kpt_lab.frontier.quantum.observables import Observables
from kpt_lab.frontier.quantum.program import Program


class Evolve(torch.autograd.Function):
    """(program, dtype, angles (B, sample), angles (1, shared)) -> states (B, 2^n); first derivatives only."""

    @staticmethod
    def forward(ctx: Any, program: Program, dtype: torch.dtype, sample: Tensor, shared: Tensor) -> Tensor:
        state = torch.zeros(len(sample), 2**program.circuit.qubits, dtype=dtype, device=sample.device)
        state[:, 0] = 1
        angles, wants = {"sample": sample, "shared": shared}, {"sample": False, "shared": False}
        for segment in program.segments:
            matrices = Matrices(segment, angles, program.angles.where, dtype, wants)
            for operation in segment.operations:
                state = operation.apply(state, matrices)
        ctx.program = program
        ctx.save_for_backward(sample, shared, state)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
        sample, shared, state = ctx.saved_tensors
        program: Program = ctx.program
        wants = {"sample": ctx.needs_input_grad[2], "shared": ctx.needs_input_grad[3]}
        angles = {"sample": sample, "shared": shared}
        sums = {kind: torch.zeros_like(angles[kind]) for kind, wanted in wants.items() if wanted}
        pair = torch.cat([state, gradient])
        del state, gradient
        for segment in reversed(program.segments):
            matrices = Matrices(segment, angles, program.angles.where, pair.dtype, wants)
            found: dict[Place, Tensor] = {}
            for operation in reversed(segment.operations):
                pair = operation.undo(pair, matrices, found)
            for kind, value in matrices.gradients(found).items():
                if value is not None:
                    sums[kind] += value
        return None, None, sums.get("sample"), sums.get("shared")


class Expect(torch.autograd.Function):
    """(observables, states (B, 2^n)) -> expectations (B, m); first derivatives only. Keeps the state and nothing else."""

    @staticmethod
    def forward(ctx: Any, observables: Observables, state: Tensor) -> Tensor:
        ctx.observables = observables
        ctx.save_for_backward(state)
        return observables.values(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (state,) = ctx.saved_tensors
        return None, ctx.observables.applied(state, 2 * gradient)
