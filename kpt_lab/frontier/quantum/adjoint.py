"""Gradients through a simulated circuit by the adjoint method (Jones and Gacon, arXiv:2009.02823): two states, whatever the depth.

The final state and its gradient are taken back through the circuit together, gate by gate; nothing in between is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kpt_lab.frontier.quantum.matrices import Matrices, Place
from kpt_lab.frontier.quantum.observables import Observables
from kpt_lab.frontier.quantum.program import Program

SMALL = 2**15  # amplitudes of a batch on the CPU; PyTorch's own loops split no fewer numbers over threads


@contextlib.contextmanager
def one_thread_if_small(amplitudes: int, device: torch.device) -> Iterator[None]:
    """Keep PyTorch on the calling thread while a small batch of states, B times 2^n amplitudes, is worked on.

    MKL splits even tiny products and sines over threads; beside a busy neighbour each of them then waits for the slowest
    thread to be scheduled, milliseconds for microseconds of work. PyTorch keeps this setting for each thread.
    """
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu" or amplitudes > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Evolve(torch.autograd.Function):
    """(program, dtype, angles (B, sample), angles (1, shared)) -> states (B, 2^n); first derivatives only."""

    @staticmethod
    def forward(ctx: Any, program: Program, dtype: torch.dtype, sample: Tensor, shared: Tensor) -> Tensor:
        state = torch.zeros(len(sample), 2**program.circuit.qubits, dtype=dtype, device=sample.device)
        state[:, 0] = 1
        angles, wants = {"sample": sample, "shared": shared}, {"sample": False, "shared": False}
        with one_thread_if_small(state.numel(), state.device):
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
        with one_thread_if_small(state.numel(), state.device):
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
        with one_thread_if_small(state.numel(), state.device):
            return observables.values(state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (state,) = ctx.saved_tensors
        with one_thread_if_small(state.numel(), state.device):
            return None, ctx.observables.applied(state, 2 * gradient)
