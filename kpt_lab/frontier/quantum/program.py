"""A circuit compiled for a batch of states: small dense matrices, maps of indices, and phases, each as few passes as may be.

Gates move back to the last block of their own role unless a block in between touches their qubits. One-qubit gates become
matrices on up to GROUP qubits; CX and its like one map of indices; diagonal gates one vector of phases. A state is (B, 2^n); the order
in which its index counts the qubits changes as the program runs, so that a matrix product needs no transposed copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kpt_lab.frontier.quantum.circuit import Circuit, Gate
from kpt_lab.frontier.quantum.gates import KINDS
from kpt_lab.frontier.quantum.matrices import Angles, Matrices, Place

GROUP = 4  # qubits that one matrix acts on: 16 x 16 complex numbers
LOOK_BACK = 64  # blocks that a gate may move past
SEGMENT = 2**13  # entries of all matrices that are built at once
TABLES = 4 * 2**20  # bytes of maps and tables kept from one run to the next
ROWS = 2**18  # entries of one table of generators


@dataclass(frozen=True)
class Step:
    """A gate and the columns of the angle table that it reads."""

    gate: Gate
    columns: tuple[int, ...]

    @property
    def key(self) -> tuple[str, tuple[int, ...]]:
        return self.gate.name, self.gate.qubits


@dataclass
class Block:
    """Gates of one role that are applied together."""

    role: str
    steps: list[Step]
    touched: set[int]


class Kept:
    """The tables used last, up to TABLES bytes in all."""

    def __init__(self) -> None:
        self._found: OrderedDict[Any, Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        made = make()
        size = made.numel() * made.element_size()
        if size <= TABLES:
            while self._bytes + size > TABLES:
                _, old = self._found.popitem(last=False)
                self._bytes -= old.numel() * old.element_size()
            self._found[key] = made
            self._bytes += size
        return made


def bits_of(qubits: int, order: Sequence[int], device: torch.device) -> list[Tensor]:
    """For each qubit its bit (2^n,) in every index, where `order` names the qubits from the highest bit to the lowest."""
    index = torch.arange(2**qubits, device=device)
    return [(index >> (qubits - 1 - order.index(q))) & 1 for q in range(qubits)]


@dataclass(frozen=True)
class Dense:
    """A matrix on the qubits that come first once the axes are permuted by `axes` (None: they are first already).

    Afterwards they come last.
    """

    place: Place
    size: int
    axes: tuple[int, ...] | None

    def apply(self, state: Tensor, matrices: Matrices) -> Tensor:
        matrix = matrices.at(self.place)
        out = torch.bmm(self._front(state).transpose(1, 2), _spread(matrix, len(state)).transpose(1, 2))
        return out.view(len(state), -1)

    def undo(self, pair: Tensor, matrices: Matrices, gradients: dict[Place, Tensor] | None) -> Tensor:
        """Both halves of `pair` (state and gradient, after) as they were before; adds the matrix's gradient."""
        matrix, after = matrices.at(self.place), pair.view(len(pair), -1, self.size)
        before = torch.bmm(_spread(matrix.mH.resolve_conj(), len(pair)), after.transpose(1, 2))
        if gradients is not None and matrices.wanted(self.place):
            half = len(pair) // 2
            found = torch.bmm(after[half:].transpose(1, 2), before[:half].mH)
            gradients[self.place] = found if len(matrix) > 1 or half == 1 else found.sum(0, keepdim=True)
        return self._back(before).reshape(len(pair), -1)

    def _front(self, state: Tensor) -> Tensor:
        if self.axes is not None:
            state = state.view(len(state), *[2] * len(self.axes)).permute(0, *(axis + 1 for axis in self.axes))
        return state.reshape(len(state), self.size, -1)

    def _back(self, state: Tensor) -> Tensor:
        if self.axes is None:
            return state
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return state.view(len(state), *[2] * len(self.axes)).permute(0, *(axis + 1 for axis in inverse))


def _spread(matrix: Tensor, batch: int) -> Tensor:
    """One matrix for all, or one for each sample, for a batch that may hold every sample twice."""
    if len(matrix) in (1, batch):
        return matrix.expand(batch, -1, -1)
    return matrix.repeat(batch // len(matrix), 1, 1)


@dataclass(frozen=True)
class Permutation:
    """new[index] = old[map[index]]; reads the index by `order` and leaves it in the standard order, qubit n-1 highest."""

    steps: tuple[Step, ...]
    qubits: int
    order: tuple[int, ...]
    kept: Kept

    def apply(self, state: Tensor, matrices: Matrices) -> Tensor:
        return self._moved(state, "forward")

    def undo(self, pair: Tensor, matrices: Matrices, gradients: dict[Place, Tensor] | None) -> Tensor:
        return self._moved(pair, "back")

    def _moved(self, state: Tensor, way: str) -> Tensor:
        key = (way, tuple(step.key for step in self.steps), self.order, state.device)
        index = self.kept.get(key, lambda: self._map(way, state.device))
        return state.gather(1, index.expand(len(state), -1))

    def _map(self, way: str, device: torch.device) -> Tensor:
        bits = bits_of(self.qubits, standard(self.qubits), device)
        for step in reversed(self.steps):  # where an amplitude came from: all but DCX are their own inverse
            moved = KINDS[step.gate.name].build([bits[q] for q in step.gate.qubits])
            for q, bit in zip(step.gate.qubits, moved, strict=True):
                bits[q] = bit
        index = torch.zeros_like(bits[0])
        for q in self.order:
            index = 2 * index + bits[q]
        return (
            index if way == "forward" else torch.empty_like(index).scatter_(0, index, torch.arange(len(index), device=device))
        )


@dataclass(frozen=True)
class Diagonal:
    """Multiplication by exp(i sum of angle times generator)."""

    steps: tuple[Step, ...]
    qubits: int
    order: tuple[int, ...]
    kept: Kept

    def apply(self, state: Tensor, matrices: Matrices) -> Tensor:
        return state * self._phases(state, matrices)

    def undo(self, pair: Tensor, matrices: Matrices, gradients: dict[Place, Tensor] | None) -> Tensor:
        if gradients is not None:
            half = len(pair) // 2
            slope = (pair[half:] * pair[:half].conj()).imag.double()
            for name, columns, rows in self._sides(matrices):
                if matrices.wants[name]:
                    found = slope @ self._table(pair.device)[rows].T
                    matrices.add_angles(name, columns, found)
        turns = self._phases(pair, matrices).conj()
        return pair * (turns if len(turns) in (1, len(pair)) else turns.repeat(2, 1))

    def _phases(self, state: Tensor, matrices: Matrices) -> Tensor:
        table = self._table(state.device)
        phase = sum(matrices.angles[name][:, columns] @ table[rows] for name, columns, rows in self._sides(matrices))
        assert isinstance(phase, Tensor)
        return torch.complex(phase.cos(), phase.sin()).to(state.dtype)

    def _sides(self, matrices: Matrices) -> list[tuple[str, list[int], list[int]]]:
        """For "shared" and "sample" angles: where they stand among their kind, and their rows of the table."""
        found: dict[str, tuple[list[int], list[int]]] = {}
        for row, column in enumerate(column for step in self.steps for column in step.columns):
            name, index = matrices.where[column]
            columns, rows = found.setdefault(name, ([], []))
            columns.append(index)
            rows.append(row)
        return [(name, *lists) for name, lists in found.items()]

    def _table(self, device: torch.device) -> Tensor:
        key = ("phases", tuple(step.key for step in self.steps), self.order, device)
        return self.kept.get(key, lambda: self._make(device))

    def _make(self, device: torch.device) -> Tensor:
        bits = bits_of(self.qubits, self.order, device)
        rows: list[Tensor] = []
        for step in self.steps:
            made = KINDS[step.gate.name].build([bits[q] for q in step.gate.qubits])
            rows += [row.to(device, torch.float64).expand(2**self.qubits) for row in made]
        return torch.stack(rows)


Operation = Dense | Permutation | Diagonal


@dataclass
class Segment:
    """Operations whose matrices are built together."""

    operations: list[Operation] = field(default_factory=list)
    runs: list[tuple[tuple[Step, ...], ...]] = field(default_factory=list)  # per local matrix: the gates on each of its qubits
    wide: list[Step] = field(default_factory=list)  # gates that are a matrix on several qubits
    entries: int = 0


def standard(qubits: int) -> tuple[int, ...]:
    """The order in which a state's index counts qubits: the highest first."""
    return tuple(range(qubits - 1, -1, -1))


class Program:
    """A compiled circuit; `batched` names the parameters that have a value for each sample."""

    def __init__(self, circuit: Circuit, batched: Iterable[str] = ()) -> None:
        self.circuit, self.kept = circuit, Kept()
        self.angles = Angles(circuit, batched)
        self.segments: list[Segment] = []
        self._order = standard(circuit.qubits)
        for block in _blocks(circuit):
            self._add(block)
        if self._order != standard(circuit.qubits):
            self._segment().operations.append(Permutation((), circuit.qubits, self._order, self.kept))
        del self._order

    def _segment(self, entries: int = 0) -> Segment:
        if not self.segments or (self.segments[-1].entries and self.segments[-1].entries + entries > SEGMENT):
            self.segments.append(Segment())
        self.segments[-1].entries += entries
        return self.segments[-1]

    def _add(self, block: Block) -> None:
        n, steps = self.circuit.qubits, tuple(block.steps)
        if block.role == "permutation":
            self._segment().operations.append(Permutation(steps, n, self._order, self.kept))
            self._order = standard(n)
        elif block.role == "diagonal":
            at_once = max(1, ROWS >> n)
            for start in range(0, len(steps), at_once):
                part = Diagonal(steps[start : start + at_once], n, self._order, self.kept)
                self._segment().operations.append(part)
        elif block.role == "dense":
            self._dense(tuple(reversed(steps[0].gate.qubits)), wide=steps[0])
        else:
            self._local(steps)

    def _local(self, steps: tuple[Step, ...]) -> None:
        runs: dict[int, list[Step]] = {}
        for step in steps:
            runs.setdefault(step.gate.qubits[0], []).append(step)
        active = [q for q in self._order if q in runs or 2 * len(runs) > len(self._order)]
        count = -(-len(active) // GROUP)
        for k in range(count):  # of nearly equal size
            group = tuple(active[len(active) * k // count : len(active) * (k + 1) // count])
            self._dense(group, runs=tuple(tuple(runs.get(q, ())) for q in group))

    def _dense(
        self, group: tuple[int, ...], *, wide: Step | None = None, runs: tuple[tuple[Step, ...], ...] | None = None
    ) -> None:
        segment, size = self._segment(4 ** len(group)), 2 ** len(group)
        rest = tuple(q for q in self._order if q not in group)
        first = self._order[: len(group)] == group
        axes = None if first else tuple(map(self._order.index, group + rest))
        if wide is not None:
            segment.wide.append(wide)
            place: Place = ("wide", len(segment.wide) - 1)
        else:
            assert runs is not None
            segment.runs.append(runs)
            place = ("local", len(segment.runs) - 1)
        segment.operations.append(Dense(place, size, axes))
        self._order = rest + group


def _blocks(circuit: Circuit) -> list[Block]:
    blocks: list[Block] = []
    column = 0
    for gate in circuit.gates:
        kind = KINDS.get(gate.name)
        role = kind.role if kind else "local" if len(gate.qubits) == 1 else "dense"
        count = len(gate.angles) + (len(kind.fixed) if kind else 0)
        step = Step(gate, tuple(range(column, column + count)))
        column += count
        block = _earlier(blocks, role, set(gate.qubits))
        if block is None:
            blocks.append(Block(role, [step], set(gate.qubits)))
        else:
            block.steps.append(step)
            block.touched.update(gate.qubits)
    return blocks


def _earlier(blocks: list[Block], role: str, qubits: set[int]) -> Block | None:
    """The last block of this role that a gate on these qubits may move back to."""
    if role == "dense":
        return None
    for block in blocks[: -LOOK_BACK - 1 : -1]:
        if block.role == role:
            return block
        if block.touched & qubits:
            return None
    return None
