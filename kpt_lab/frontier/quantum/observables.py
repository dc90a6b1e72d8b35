"""Sums of Pauli strings: their expectations in a batch of states, and the operators applied.

A label reads as in Qiskit: "ZXI" is Z on qubit 2, X on qubit 1, nothing on qubit 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_POWERS = (1, 1j, -1, -1j)


@dataclass(frozen=True)
class PauliSum:
    """Real coefficients of Pauli strings, all of one length: PauliSum({"ZI": 0.5, "XX": 1.0}).

    Raises ValueError for other letters, labels of different lengths, and coefficients that are not real numbers.
    """

    terms: tuple[tuple[str, float], ...]

    def __init__(self, terms: Mapping[str, float] | Iterable[tuple[str, float]]) -> None:
        pairs = tuple(terms.items()) if isinstance(terms, Mapping) else tuple(terms)
        if not pairs:
            raise ValueError("a PauliSum needs at least one term, such as {'ZI': 1.0}")
        for label, coefficient in pairs:
            if not label or set(label) - set("IXYZ"):
                raise ValueError(f"Pauli string is {label!r}; accepted are strings of I, X, Y and Z, one letter a qubit")
            if len(label) != len(pairs[0][0]):
                raise ValueError(f"Pauli string {label!r} has another length than {pairs[0][0]!r}; all need one letter a qubit")
            number = complex(coefficient)
            if number.imag or number != number:
                raise ValueError(f"Pauli string {label!r} has the coefficient {coefficient}; it must be real")
        object.__setattr__(self, "terms", tuple((label, complex(value).real) for label, value in pairs))

    @property
    def qubits(self) -> int:
        """How many qubits the labels have."""
        return len(self.terms[0][0])


def as_pauli_sum(observable: Any) -> PauliSum:
    """A PauliSum from one, a label, a mapping from labels to coefficients, or a qiskit SparsePauliOp or Pauli."""
    if isinstance(observable, PauliSum):
        return observable
    if isinstance(observable, str):
        return PauliSum({observable: 1.0})
    if isinstance(observable, Mapping):
        return PauliSum(observable)
    if hasattr(observable, "to_list"):
        return PauliSum(observable.to_list())
    if hasattr(observable, "to_label") and hasattr(observable, "phase"):
        if observable.phase:
            raise ValueError(f"Pauli {observable.to_label()!r} has a phase; as an observable it needs none")
        return PauliSum({observable.to_label(): 1.0})
    raise TypeError(
        f"observable is {type(observable).__name__}; accepted are a label, a mapping, a PauliSum or a SparsePauliOp"
    )


@dataclass(frozen=True)
class _Flip:
    """All terms that flip the same bits: (P_k psi)[x] = weights[x, k] psi[x ^ mask]."""

    mask: int
    terms: tuple[tuple[int, int, complex], ...]  # observable, mask of signs, coefficient


class Observables:
    """Several sums on the same qubits; its tables are made once per device and dtype.

    Raises ValueError where a sum has another number of qubits.
    """

    def __init__(self, observables: Iterable[Any], qubits: int) -> None:
        self.sums = tuple(map(as_pauli_sum, observables))
        self.qubits = qubits
        if not self.sums:
            raise ValueError("observables is empty; give at least one, such as 'Z' for one qubit")
        for number, found in enumerate(self.sums):
            if found.qubits != qubits:
                raise ValueError(f"observable {number} has {found.qubits} qubits; the circuit has {qubits}")
        self._flips = _flips(self.sums)
        self._made: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def __len__(self) -> int:
        return len(self.sums)

    def values(self, state: Tensor) -> Tensor:
        """Expectations (B, m), real, of states (B, 2^n)."""
        found: Tensor | None = None
        for flip in self._flips:
            if flip.mask:
                overlap = state.conj() * self._flipped(state, flip.mask)
                part = (overlap @ self._table(flip, state)).real
            else:
                part = (state.real.square() + state.imag.square()) @ self._table(flip, state)
            found = part if found is None else found + part
        assert found is not None
        return found

    def applied(self, state: Tensor, weights: Tensor) -> Tensor:
        """The sum over k of weights[:, k] times observable k, applied to states (B, 2^n)."""
        found: Tensor | None = None
        for flip in self._flips:
            table = self._table(flip, state)
            part = (weights.to(table.dtype) @ table.T) * self._flipped(state, flip.mask)
            found = part if found is None else found + part
        assert found is not None
        return found

    def _flipped(self, state: Tensor, mask: int) -> Tensor:
        if not mask:
            return state
        index = torch.arange(state.shape[1], device=state.device) ^ mask
        return state.gather(1, index.expand(len(state), -1))

    def _table(self, flip: _Flip, state: Tensor) -> Tensor:
        """(2^n, m): signs and coefficients; real where no bit flips."""
        key = (flip.mask, state.dtype, state.device)
        if key not in self._made:
            index = torch.arange(2**self.qubits)
            table = torch.zeros(2**self.qubits, len(self.sums), dtype=torch.complex128)
            for number, signs, coefficient in flip.terms:
                odd = (index ^ flip.mask) & signs
                for shift in (32, 16, 8, 4, 2, 1):  # parity of the bits
                    odd = odd ^ (odd >> shift)
                table[:, number] += coefficient * (1 - 2 * (odd & 1)).to(torch.complex128)
            self._made[key] = (table if flip.mask else table.real).to(
                state.device, state.dtype if flip.mask else state.real.dtype
            )
        return self._made[key]


def _flips(sums: Iterable[PauliSum]) -> tuple[_Flip, ...]:
    found: dict[int, list[tuple[int, int, complex]]] = {}
    for number, one in enumerate(sums):
        for label, coefficient in one.terms:
            flips = int("".join("1" if letter in "XY" else "0" for letter in label), 2)
            signs = int("".join("1" if letter in "YZ" else "0" for letter in label), 2)
            found.setdefault(flips, []).append((number, signs, coefficient * _POWERS[label.count("Y") % 4]))
    return tuple(_Flip(mask, tuple(terms)) for mask, terms in found.items())
