"""States of a circuit for a batch of parameter values, their expectations and samples; on any device, differentiable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.quantum.adjoint import Evolve, Expect
from kpt_lab.frontier.quantum.circuit import as_circuit, check_values
from kpt_lab.frontier.quantum.observables import Observables
from kpt_lab.frontier.quantum.program import Program

DTYPES = (torch.complex64, torch.complex128)


def statevector(
    circuit: Any,
    values: Mapping[str, float | Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.complex128,
    device: torch.device | str | None = None,
) -> Tensor:
    """The state after the circuit: (2^n,), or (B, 2^n) where a parameter's value is a tensor (B,).

    circuit: a Circuit or a qiskit.QuantumCircuit; index bit q is qubit q, as in Qiskit, and the global phase is kept.
    values:  for every parameter's name a number, a tensor () or a tensor (B,); gradients flow to tensors that ask for them.
    Raises ValueError for an unbound or unknown parameter, batches of different sizes, and another dtype.
    """
    circuit, dtype = as_circuit(circuit), check_dtype(dtype)
    given = {name: _tensor(value, device) for name, value in (values or {}).items()}
    check_values(circuit, given)
    sizes = {name: len(value) for name, value in given.items() if value.dim() == 1}
    if wrong := [name for name, value in given.items() if value.dim() > 1]:
        raise ValueError(f"values[{wrong[0]!r}] has the shape {tuple(given[wrong[0]].shape)}; accepted are () and (B,)")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"values have the batch sizes {', '.join(f'{n}: {b}' for n, b in sizes.items())}; one size is needed")
    if 0 in sizes.values():
        raise ValueError("values hold a batch of 0 samples; at least 1 is needed")
    program = Program(circuit, sizes)
    where = next((value.device for value in given.values()), torch.device(device or "cpu"))
    batch = next(iter(sizes.values()), 1)
    sample = _stacked([given[name] for name in program.angles.names["sample"]], (batch, 0), where, 1)
    shared = _stacked([given[name] for name in program.angles.names["shared"]], (0,), where, 0)
    state = run(program, sample, shared, dtype)
    return state if sizes else state[0]


def _tensor(value: float | Tensor, device: torch.device | str | None) -> Tensor:
    exact = None if isinstance(value, Tensor) else torch.float64  # a Python number is double, whatever torch's default
    return torch.as_tensor(value, dtype=exact, device=device)


def _stacked(values: list[Tensor], empty: tuple[int, ...], device: torch.device, dim: int) -> Tensor:
    return torch.stack([v.double() for v in values], dim) if values else torch.zeros(empty, dtype=torch.float64, device=device)


def run(program: Program, sample: Tensor, shared: Tensor, dtype: torch.dtype) -> Tensor:
    """States (B, 2^n) of a compiled circuit: values (B, batched parameters) and (other parameters,), in the program's order."""
    return Evolve.apply(program, dtype, *program.angles.table(sample, shared))


def expectations(state: Tensor, observables: Iterable[Any] | Observables) -> Tensor:
    """Expectations (B, m) of states (B, 2^n), or (m,) of one (2^n,); observables as `as_pauli_sum` takes them."""
    states, qubits = _batch(state)
    made = observables if isinstance(observables, Observables) else Observables(observables, qubits)
    found = Expect.apply(made, states)
    return found if state.dim() == 2 else found[0]


def sample(state: Tensor, shots: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Outcomes (B, shots) of measuring all qubits of states (B, 2^n), or (shots,) of one; integers, bit q is qubit q."""
    if shots < 1:
        raise ValueError(f"shots is {shots}; at least 1 is needed")
    states, _ = _batch(state)
    chances = states.detach().real.double().square() + states.detach().imag.double().square()
    # by the inverse of the cumulated chances: torch.multinomial stops at 2^24 categories
    cumulated = chances.cumsum(1)
    draws = torch.rand(len(states), shots, dtype=torch.float64, device=state.device, generator=generator)
    found = torch.searchsorted(cumulated, draws * cumulated[:, -1:], right=True).clamp_(max=states.shape[1] - 1)
    return found if state.dim() == 2 else found[0]


def counts(outcomes: Tensor, qubits: int) -> dict[str, int]:
    """How often each bit string came among outcomes (shots,), written as Qiskit does: qubit 0 rightmost."""
    if outcomes.dim() != 1:
        raise ValueError(f"outcomes has the shape {tuple(outcomes.shape)}; (shots,) is needed: count one state's at a time")
    return {f"{number:0{qubits}b}": times for number, times in sorted(Counter(outcomes.tolist()).items())}


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself; ValueError unless it is complex64 or complex128."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype}; accepted are torch.complex64 and torch.complex128")
    return dtype


def _batch(state: Tensor) -> tuple[Tensor, int]:
    size = state.shape[-1] if state.dim() in (1, 2) else 0
    qubits = size.bit_length() - 1
    if size < 2 or size != 2**qubits or not state.is_complex():
        raise ValueError(
            f"state has the shape {tuple(state.shape)} and dtype {state.dtype}; complex (2^n,) or (B, 2^n) is needed"
        )
    return state.reshape(-1, size), qubits
