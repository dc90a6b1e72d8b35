"""A parametrised circuit as an nn.Module: inputs and weights are its parameters, expectations its outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kpt_lab.frontier.quantum.aer import AerProgram, Shifted
from kpt_lab.frontier.quantum.circuit import as_circuit, check_values
from kpt_lab.frontier.quantum.observables import Observables
from kpt_lab.frontier.quantum.program import Program
from kpt_lab.frontier.quantum.reference import states
from kpt_lab.frontier.quantum.statevector import check_dtype, expectations, run

BACKENDS = ("torch", "aer", "reference")


class QuantumLayer(nn.Module):
    """x (..., inputs) -> expectations (..., observables) of a circuit, by exact simulation; both without noise and shots.

    circuit:       a Circuit or a qiskit.QuantumCircuit.
    observables:   Pauli labels ("ZI": Z on qubit 1), mappings from labels to coefficients, PauliSums or SparsePauliOps.
    input_params:  names (or Qiskit's Parameters) that the columns of x stand for, in order.
    weight_params: names of the trained parameters, in order; `weight` starts uniformly between -pi and pi.
    backend:       "torch" (adjoint gradients, on x's device), "aer" (Qiskit Aer on the CPU, gradients by parameter shift) or
                   "reference" (every gate alone, PyTorch's own autograd: the slow definition of the same numbers).
    dtype:         of the state, for "torch"; the others' is complex128.
    The outputs have x's dtype. Raises ValueError for a parameter that is in neither list, or in both, and another backend;
    ModuleNotFoundError where Aer is asked for and missing.
    """

    def __init__(
        self,
        circuit: Any,
        observables: Iterable[Any],
        input_params: Iterable[Any],
        weight_params: Iterable[Any],
        backend: str = "torch",
        *,
        dtype: torch.dtype = torch.complex128,
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"backend is {backend!r}; accepted are {', '.join(BACKENDS)}")
        if isinstance(observables, str):
            raise ValueError(f"observables is the string {observables!r}; give a list of them: [{observables!r}]")
        self.circuit, self.backend, self.dtype = as_circuit(circuit), backend, check_dtype(dtype)
        self.input_params, self.weight_params = _names(input_params, "input_params"), _names(weight_params, "weight_params")
        if both := set(self.input_params) & set(self.weight_params):
            raise ValueError(f"parameter {both.pop()!r} is in input_params and in weight_params; it can be one of them")
        check_values(self.circuit, (*self.input_params, *self.weight_params), "input_params and weight_params")
        self.observables = Observables(observables, self.circuit.qubits)
        self.weight = nn.Parameter(torch.empty(len(self.weight_params)))
        self.reset_parameters()
        self._program = self._compiled()
        names = self._program.angles.names
        self._inputs = [self.input_params.index(name) for name in names["sample"]]
        self._weights = [self.weight_params.index(name) for name in names["shared"]]

    def reset_parameters(self) -> None:
        """Draw the weights uniformly between -pi and pi."""
        nn.init.uniform_(self.weight, -math.pi, math.pi)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inputs), floating point -> (..., observables); ValueError for another last dimension or dtype."""
        if not x.is_floating_point() or not x.dim() or x.shape[-1] != len(self.input_params):
            raise ValueError(
                f"x has the shape {tuple(x.shape)} and dtype {x.dtype}; floating point with a last dimension of "
                f"{len(self.input_params)} is needed, one for each of input_params"
            )
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        if not len(flat):
            return x.new_zeros(*x.shape[:-1], len(self.observables)) + 0 * (x.sum() + self.weight.sum()).to(x.dtype)
        sample, shared = flat[:, self._inputs], self.weight[self._weights]
        if self.backend == "reference":
            found = self._reference(flat)
        elif isinstance(self._program, Program):
            found = expectations(run(self._program, sample, shared, self.dtype), self.observables)
        else:
            found = Shifted.apply(self._program, *self._program.angles.table(sample, shared))
        return found.to(x.dtype).unflatten(0, x.shape[:-1]) if x.dim() > 1 else found[0].to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.circuit.qubits} qubits, {len(self.circuit.gates)} gates, {len(self.input_params)} inputs, "
            f"{len(self.weight_params)} weights, {len(self.observables)} observables, backend={self.backend}"
        )

    # compiled tables are cheap to make again, and Aer's circuits need not travel with a pickle
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_program"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._program = self._compiled()

    def _compiled(self) -> Program | AerProgram:
        if self.backend == "aer":
            return AerProgram(self.circuit, self.input_params, self.observables)
        return Program(self.circuit, self.input_params)

    def _reference(self, flat: Tensor) -> Tensor:
        values = dict(zip(self.input_params, flat.unbind(1), strict=True))
        values |= dict(zip(self.weight_params, self.weight.unbind(), strict=True))
        state = states(self.circuit, values, len(flat))
        # column k of the identity asks for observable k applied to the state
        one = torch.eye(len(self.observables), dtype=torch.float64, device=flat.device)[:, None].expand(-1, len(flat), -1)
        return torch.stack([(state.conj() * self.observables.applied(state, weights)).sum(1).real for weights in one], 1)


def _names(params: Iterable[Any], what: str) -> tuple[str, ...]:
    if isinstance(params, str):
        raise ValueError(f"{what} is the string {params!r}; give a list of names: [{params!r}]")
    names = tuple(getattr(param, "name", param) for param in params)
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{what} holds {name!r}; names or Qiskit's Parameters are needed")
        if names.count(name) > 1:
            raise ValueError(f"{what} names {name!r} twice; each may stand there once")
    return names
