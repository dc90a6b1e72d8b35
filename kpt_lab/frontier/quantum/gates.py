"""Gates as data: what each name takes, its matrix, map of bits or phases, and its rule for parameter shifts.

Matrices follow Qiskit's convention: entry (r, c) counts the gate's first qubit as the lowest bit of r and c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Role = Literal["local", "dense", "permutation", "diagonal"]
DTYPE = torch.complex128  # matrices are built in double precision whatever the state's


@dataclass(frozen=True)
class Kind:
    """What a gate name stands for.

    role:    "local" (2 x 2), "dense" (a matrix on several qubits), "permutation" (a map of bits) or "diagonal" (phases).
    qubits:  how many it acts on; 0 means any number from 1 on (from 0 on for the global phase).
    build:   local and dense: `build(angles (..., m)) -> (..., d, d)`; permutation: `build(bits) -> bits`;
             diagonal: `build(bits) -> [generator per angle]`, so that the phase is the sum of angle times generator.
    shifts:  per angle (unit, count): an expectation holds the frequencies unit, 2 unit, ..., count unit.
    fixed:   a diagonal gate's own angles, for gates that take none.
    """

    role: Role
    qubits: int
    build: Callable[..., Any]
    shifts: tuple[tuple[float, int], ...] = ()
    fixed: tuple[float, ...] = ()

    @property
    def angles(self) -> int:
        """How many angles it takes."""
        return len(self.shifts)


def _matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    flat = torch.stack([entry.to(DTYPE) for row in rows for entry in row], -1)
    return flat.unflatten(-1, (len(rows), len(rows)))


def _constant(rows: Sequence[Sequence[complex]]) -> Callable[[Tensor], Tensor]:
    table = torch.tensor(rows, dtype=DTYPE)

    def build(angles: Tensor) -> Tensor:
        return table.to(angles.device).expand(*angles.shape[:-1], *table.shape)

    return build


def _turn(angle: Tensor) -> Tensor:
    """exp(i angle)."""
    return torch.complex(angle.cos(), angle.sin())


def _half(angles: Tensor) -> tuple[Tensor, Tensor]:
    half = angles[..., 0] / 2
    return half.cos(), half.sin()


def _rx(angles: Tensor) -> Tensor:
    c, s = _half(angles)
    return _matrix([[c, -1j * s], [-1j * s, c]])


def _ry(angles: Tensor) -> Tensor:
    c, s = _half(angles)
    return _matrix([[c, -s], [s, c]])


def _rz(angles: Tensor) -> Tensor:
    turn = _turn(angles[..., 0] / 2)
    zero = torch.zeros_like(turn)
    return _matrix([[turn.conj(), zero], [zero, turn]])


def _p(angles: Tensor) -> Tensor:
    turn = _turn(angles[..., 0])
    return _matrix([[torch.ones_like(turn), torch.zeros_like(turn)], [torch.zeros_like(turn), turn]])


def _u(angles: Tensor) -> Tensor:
    (c, s), phi, lam = _half(angles), angles[..., 1], angles[..., 2]
    return _matrix([[c, -_turn(lam) * s], [_turn(phi) * s, _turn(phi + lam) * c]])


def _u2(angles: Tensor) -> Tensor:
    quarter = torch.full_like(angles[..., :1], math.pi / 2)
    return _u(torch.cat([quarter, angles], -1))


def _r(angles: Tensor) -> Tensor:
    (c, s), turn = _half(angles), _turn(angles[..., 1])
    return _matrix([[c, -1j * turn.conj() * s], [-1j * turn * s, c]])


def _controlled(build: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The gate on the second qubit where the first is 1: indices 1 and 3 of 4."""

    def controlled(angles: Tensor) -> Tensor:
        inner = build(angles)
        one, zero = torch.ones_like(inner[..., 0, 0]), torch.zeros_like(inner[..., 0, 0])
        a, b, c, d = inner[..., 0, 0], inner[..., 0, 1], inner[..., 1, 0], inner[..., 1, 1]
        return _matrix([[one, zero, zero, zero], [zero, a, zero, b], [zero, zero, one, zero], [zero, c, zero, d]])

    return controlled


def _cu_inner(angles: Tensor) -> Tensor:
    return _turn(angles[..., 3])[..., None, None] * _u(angles)


def _pair(generator: Sequence[Sequence[complex]]) -> Callable[[Tensor], Tensor]:
    """exp(-i angle/2 G) of a generator whose square is the identity."""
    table, eye = torch.tensor(generator, dtype=DTYPE), torch.eye(4, dtype=DTYPE)

    def build(angles: Tensor) -> Tensor:
        c, s = (part.to(DTYPE)[..., None, None] for part in _half(angles))
        return c * eye.to(angles.device) - 1j * s * table.to(angles.device)

    return build


def _exchange(low: int) -> Callable[[Tensor], Tensor]:
    """XX+YY between the indices 1 and 2, XX-YY between 0 and 3: a rotation by the first angle, its axis by the second."""

    def build(angles: Tensor) -> Tensor:
        (c, s), turn = _half(angles), _turn(angles[..., 1])
        one, zero = torch.ones_like(turn), torch.zeros_like(turn)
        rows = [[one if i == j else zero for j in range(4)] for i in range(4)]
        high = 3 - low
        rows[low][low] = rows[high][high] = c.to(DTYPE)
        rows[low][high] = -1j * turn.conj() * s
        rows[high][low] = -1j * turn * s
        return _matrix(rows)

    return build


def _kron(high: Any, low: Any) -> list[list[complex]]:
    return torch.kron(torch.tensor(high, dtype=DTYPE), torch.tensor(low, dtype=DTYPE)).tolist()


def _flip_last(bits: list[Tensor]) -> list[Tensor]:
    """NOT on the last bit where all others are 1."""
    together = bits[0]
    for bit in bits[1:-1]:
        together = together & bit
    return [*bits[:-1], bits[-1] ^ together]


def _swap(bits: list[Tensor]) -> list[Tensor]:
    return [bits[1], bits[0]]


def _cswap(bits: list[Tensor]) -> list[Tensor]:
    control, a, b = bits
    moved = control & (a ^ b)
    return [control, a ^ moved, b ^ moved]


def _undone_dcx(bits: list[Tensor]) -> list[Tensor]:
    """The inverse of DCX, which is CX from the first to the second, then from the second to the first."""
    a, b = bits
    a = a ^ b
    return [a, b ^ a]


def _all(bits: list[Tensor]) -> list[Tensor]:
    """The phase where all bits are 1."""
    together = bits[0]
    for bit in bits[1:]:
        together = together & bit
    return [together.double()]


def _rzz(bits: list[Tensor]) -> list[Tensor]:
    return [(bits[0] ^ bits[1]).double() - 0.5]


def _crz(bits: list[Tensor]) -> list[Tensor]:
    return [bits[0] * (bits[1] - 0.5)]


X, Y, Z = [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]
_H = 1 / math.sqrt(2)
H, SX, SXDG = (
    [[_H, _H], [_H, -_H]],
    [[0.5 + 0.5j, 0.5 - 0.5j], [0.5 - 0.5j, 0.5 + 0.5j]],
    [[0.5 - 0.5j, 0.5 + 0.5j], [0.5 + 0.5j, 0.5 - 0.5j]],
)
_T = complex(_H, _H)
TWO, FOUR = (1.0, 1), (0.5, 2)  # two-term; four-term, of controlled rotations
TWICE = (1.0, 2)  # an angle that turns the axis stands on both sides of the rotation


def _fixed_local(rows: Any) -> Kind:
    return Kind("local", 1, _constant(rows))


KINDS: dict[str, Kind] = {
    **{name: _fixed_local(rows) for name, rows in {"x": X, "y": Y, "z": Z, "h": H, "sx": SX, "sxdg": SXDG}.items()},
    **{name: _fixed_local([[1, 0], [0, d]]) for name, d in {"s": 1j, "sdg": -1j, "t": _T, "tdg": _T.conjugate()}.items()},
    "rx": Kind("local", 1, _rx, (TWO,)),
    "ry": Kind("local", 1, _ry, (TWO,)),
    "rz": Kind("local", 1, _rz, (TWO,)),
    "p": Kind("local", 1, _p, (TWO,)),
    "u1": Kind("local", 1, _p, (TWO,)),
    "u2": Kind("local", 1, _u2, (TWO, TWO)),
    "u3": Kind("local", 1, _u, (TWO, TWO, TWO)),
    "u": Kind("local", 1, _u, (TWO, TWO, TWO)),
    "r": Kind("local", 1, _r, (TWO, TWICE)),
    "cx": Kind("permutation", 2, _flip_last),
    "ccx": Kind("permutation", 3, _flip_last),
    "mcx": Kind("permutation", 0, _flip_last),
    "swap": Kind("permutation", 2, _swap),
    "cswap": Kind("permutation", 3, _cswap),
    "dcx": Kind("permutation", 2, _undone_dcx),
    "cz": Kind("diagonal", 2, _all, fixed=(math.pi,)),
    "ccz": Kind("diagonal", 3, _all, fixed=(math.pi,)),
    "cs": Kind("diagonal", 2, _all, fixed=(math.pi / 2,)),
    "csdg": Kind("diagonal", 2, _all, fixed=(-math.pi / 2,)),
    "cp": Kind("diagonal", 2, _all, (TWO,)),
    "cu1": Kind("diagonal", 2, _all, (TWO,)),
    "mcphase": Kind("diagonal", 0, _all, (TWO,)),
    "crz": Kind("diagonal", 2, _crz, (FOUR,)),
    "rzz": Kind("diagonal", 2, _rzz, (TWO,)),
    "global_phase": Kind("diagonal", 0, lambda bits: [torch.ones(())], (TWO,)),
    "ch": Kind("dense", 2, _controlled(_constant(H))),
    "cy": Kind("dense", 2, _controlled(_constant(Y))),
    "csx": Kind("dense", 2, _controlled(_constant(SX))),
    "crx": Kind("dense", 2, _controlled(_rx), (FOUR,)),
    "cry": Kind("dense", 2, _controlled(_ry), (FOUR,)),
    "cu3": Kind("dense", 2, _controlled(_u), (FOUR, TWO, TWO)),
    "cu": Kind("dense", 2, _controlled(_cu_inner), (FOUR, TWO, TWO, TWO)),
    "rxx": Kind("dense", 2, _pair(_kron(X, X)), (TWO,)),
    "ryy": Kind("dense", 2, _pair(_kron(Y, Y)), (TWO,)),
    "rzx": Kind("dense", 2, _pair(_kron(X, Z)), (TWO,)),
    "xx_plus_yy": Kind("dense", 2, _exchange(1), (FOUR, TWICE)),
    "xx_minus_yy": Kind("dense", 2, _exchange(0), (FOUR, TWICE)),
    "iswap": Kind("dense", 2, _constant([[1, 0, 0, 0], [0, 0, 1j, 0], [0, 1j, 0, 0], [0, 0, 0, 1]])),
    "ecr": Kind("dense", 2, _constant([[0, _H, 0, 1j * _H], [_H, 0, -1j * _H, 0], [0, 1j * _H, 0, _H], [-1j * _H, 0, _H, 0]])),
}  # fmt: skip
EXTRA = ("unitary",)  # any matrix: its own entry in the circuit
NAMES = (*KINDS, *EXTRA)


def shift_rule(unit: float, count: int) -> list[tuple[float, float]]:
    """(shift, weight) pairs whose weighted sum of shifted values is the exact derivative (Wierichs et al., Quantum 6, 677, 2022).

    It holds for a function that is a trigonometric polynomial with the frequencies unit, 2 unit, ..., count unit.
    """
    found = []
    for k in range(1, 2 * count + 1):
        x = (2 * k - 1) * math.pi / (2 * count)
        found.append((x / unit, unit * (-1) ** (k - 1) / (4 * count * math.sin(x / 2) ** 2)))
    return found
