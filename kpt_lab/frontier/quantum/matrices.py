"""The small matrices of a program's segment, built from its angles all at once, differentiably."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from kpt_lab.frontier.quantum.circuit import Circuit
from kpt_lab.frontier.quantum.gates import DTYPE, KINDS

if TYPE_CHECKING:
    from kpt_lab.frontier.quantum.program import Segment, Step

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Place = tuple[str, int]  # "local" or "wide", and the number among those of its segment
Where = tuple[str, int]  # "shared" or "sample", and the column there


class Angles:
    """The table of all angles of a circuit: (1, shared) for those equal in all samples, (B, sample) for the others."""

    def __init__(self, circuit: Circuit, batched: Iterable[str]) -> None:
        batched = set(batched)
        self.where: list[Where] = []
        counts = {"shared": 0, "sample": 0}
        terms: list[tuple[str, str, int, int, float]] = []  # kind of column, kind of value, column, value, slope
        constants: dict[str, list[float]] = {"shared": [], "sample": []}
        index: dict[bool, dict[str, int]] = {True: {}, False: {}}
        for name in circuit.parameters:
            index[name in batched][name] = len(index[name in batched])
        for angle in circuit.columns:
            kind = "sample" if any(name in batched for name, _ in angle.terms) else "shared"
            for name, slope in angle.terms:
                own = name in batched
                terms.append((kind, "sample" if own else "shared", counts[kind], index[own][name], slope))
            self.where.append((kind, counts[kind]))
            constants[kind].append(angle.constant)
            counts[kind] += 1
        self.names = {"sample": tuple(index[True]), "shared": tuple(index[False])}
        self._constants = {kind: torch.tensor(values, dtype=torch.float64) for kind, values in constants.items()}
        self._terms = {
            (kind, source): _Terms([t for t in terms if t[:2] == (kind, source)]) for kind in counts for source in counts
        }

    def table(self, sample: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, batched parameters) and (other parameters,) -> angles (B, sample columns), (1, shared columns)."""
        sample, row = sample.double(), shared.double()[None]
        constants = {kind: values.to(sample.device) for kind, values in self._constants.items()}
        alone = self._terms["shared", "shared"].added(constants["shared"][None], row)
        mixed = self._terms["sample", "shared"].added(constants["sample"][None], row)
        return self._terms["sample", "sample"].added(mixed.expand(len(sample), -1), sample), alone


class _Terms:
    """Slope times value, added to columns."""

    def __init__(self, terms: Sequence[tuple[str, str, int, int, float]]) -> None:
        self.columns = torch.tensor([t[2] for t in terms], dtype=torch.int64)
        self.values = torch.tensor([t[3] for t in terms], dtype=torch.int64)
        self.slopes = torch.tensor([t[4] for t in terms], dtype=torch.float64)

    def added(self, columns: Tensor, values: Tensor) -> Tensor:
        if not len(self.columns):
            return columns
        device = values.device
        parts = values.index_select(1, self.values.to(device)) * self.slopes.to(device)
        return columns.index_add(1, self.columns.to(device), parts)


class Matrices:
    """The matrices of one segment for given angles; `gradients` takes those of the matrices back to the angles.

    wants: for "shared" and "sample", whether a gradient is asked for.
    """

    def __init__(
        self, segment: Segment, angles: dict[str, Tensor], where: Sequence[Where], dtype: torch.dtype, wants: dict[str, bool]
    ) -> None:
        self.where, self.wants, self._segment, self._dtype = where, wants, segment, dtype
        self.angles = angles
        self._sums: dict[str, Tensor] = {}
        if any(wants.values()):
            with torch.enable_grad():
                self.leaves = {kind: value.detach().requires_grad_(wants[kind]) for kind, value in angles.items()}
                self._build()
        else:
            self.leaves = angles
            self._build()

    def at(self, place: Place) -> Tensor:
        """The matrix there: (1 or B, d, d)."""
        bucket, index = self._places[place]
        return self._buckets[bucket].detach()[:, index]

    def wanted(self, place: Place) -> bool:
        """Whether its gradient is asked for."""
        return self._buckets[self._places[place][0]].requires_grad

    def add_angles(self, kind: str, columns: list[int], found: Tensor) -> None:
        """Add gradients (B, columns) of angles that are in no matrix."""
        sums = self._sums.setdefault(kind, torch.zeros_like(self.angles[kind]))
        index = torch.tensor(columns, device=found.device)
        sums.index_add_(1, index, found if len(sums) == len(found) else found.sum(0, keepdim=True))

    def gradients(self, found: dict[Place, Tensor]) -> dict[str, Tensor | None]:
        """Gradients of the angles from those of the matrices, and what `add_angles` was given."""
        rows: dict[int, dict[int, Tensor]] = {}
        for place, value in found.items():
            bucket, index = self._places[place]
            rows.setdefault(bucket, {})[index] = value
        outputs = [self._buckets[bucket] for bucket in rows]
        upstream = [torch.stack([row[k] for k in range(len(row))], 1) for row in rows.values()]
        kinds = [kind for kind, wanted in self.wants.items() if wanted]
        leaves = [self.leaves[kind] for kind in kinds]
        given = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True) if outputs else [None] * len(leaves)
        sums: dict[str, Tensor | None] = {}
        for kind, found_here in zip(kinds, given, strict=True):
            parts = [part for part in (found_here, self._sums.get(kind)) if part is not None]
            sums[kind] = sum(parts[1:], parts[0]) if parts else None
        return sums

    def _kind(self, steps: Iterable[Step]) -> str:
        sample = any(self.where[column][0] == "sample" for step in steps for column in step.columns)
        return "sample" if sample else "shared"

    def _build(self) -> None:
        self._buckets: list[Tensor] = []
        self._places: dict[Place, tuple[int, int]] = {}
        self._build_local()
        self._build_wide()

    def _bucket(self, made: Tensor, places: Sequence[Place]) -> None:
        self._places |= {place: (len(self._buckets), index) for index, place in enumerate(places)}
        self._buckets.append(made.to(self._dtype))

    def _made(self, steps: Sequence[Step], name: str, kind: str) -> Tensor:
        """The matrices (1 or B, steps, d, d) of gates of one name."""
        if name == "unitary":
            given = [step.gate.matrix for step in steps if step.gate.matrix is not None]
            return torch.stack(given)[None].to(self.angles["shared"].device)
        device = self.angles["shared"].device
        count = len(steps[0].columns)
        if not count:
            return KINDS[name].build(torch.empty(1, len(steps), 0, dtype=torch.float64, device=device))
        return KINDS[name].build(_read(self.leaves, steps, self.where, kind).unflatten(1, (len(steps), count)))

    def _pool(self, steps: Sequence[Step]) -> tuple[dict[str, Tensor], dict[Step, int]]:
        """One-qubit matrices: those equal in all samples, with the identity first, and the others; and where each stands."""
        parts: dict[str, list[Tensor]] = {
            "shared": [torch.eye(2, dtype=DTYPE, device=self.angles["shared"].device)[None, None]]
        }
        index: dict[Step, int] = {}
        sizes = {"shared": 1, "sample": 0}
        for (kind, name), named in _sorted(steps, lambda step: (self._kind([step]), step.gate.name)).items():
            parts.setdefault(kind, []).append(self._made(named, name, kind))
            index |= {step: sizes[kind] + k for k, step in enumerate(named)}
            sizes[kind] += len(named)
        return {kind: torch.cat(tensors, 1) for kind, tensors in parts.items()}, index

    def _build_local(self) -> None:
        groups = self._segment.runs
        if not groups:
            return
        runs = list(dict.fromkeys(run for group in groups for run in group))
        pool, index = self._pool([step for run in runs for step in run])
        shared_count = pool["shared"].shape[1]
        both = _joined(pool)
        done: dict[str, Tensor] = {}
        at: dict[tuple[Step, ...], int] = {}
        counted = {"shared": 0, "sample": 0}
        for kind, members in _sorted(runs, self._kind).items():
            source = both if kind == "sample" else pool["shared"]
            at |= {run: counted[kind] + k for k, run in enumerate(members)}
            counted[kind] = len(members)
            number = {s: k + (shared_count if self._kind([s]) == "sample" else 0) for s, k in index.items()}
            done[kind] = _product(source, [[number[step] for step in run] for run in members])
        self._group(groups, done, at)

    def _group(
        self, groups: Sequence[tuple[tuple[Step, ...], ...]], done: dict[str, Tensor], at: dict[tuple[Step, ...], int]
    ) -> None:
        """Tensor products of the runs on each group's qubits, the first qubit highest."""
        both = _joined(done)
        offset = done["shared"].shape[1] if "shared" in done else 0

        def kind_of(number: int) -> tuple[str, int]:
            return self._kind(step for run in groups[number] for step in run), len(groups[number])

        for (kind, size), numbers in _sorted(range(len(groups)), kind_of).items():
            source = both if kind == "sample" else done["shared"]
            made: Tensor | None = None
            for k in range(size):
                runs = [groups[number][k] for number in numbers]
                add = [offset if kind == "sample" and self._kind(run) == "sample" else 0 for run in runs]
                index = torch.tensor([at[run] + more for run, more in zip(runs, add, strict=True)], device=source.device)
                factor = source.index_select(1, index)
                made = factor if made is None else _tensor_product(made, factor)
            assert made is not None
            self._bucket(made, [("local", number) for number in numbers])

    def _build_wide(self) -> None:
        numbered = list(enumerate(self._segment.wide))

        def sort(item: tuple[int, Step]) -> tuple[str, str, int]:
            return self._kind([item[1]]), item[1].gate.name, len(item[1].gate.qubits)

        for (kind, name, _), items in _sorted(numbered, sort).items():
            made = self._made([step for _, step in items], name, kind)
            self._bucket(made, [("wide", number) for number, _ in items])


def _sorted(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _read(leaves: dict[str, Tensor], steps: Sequence[Step], where: Sequence[Where], kind: str) -> Tensor:
    """The angles (1 or B, steps * m) of these gates; a gate with one angle per sample may have others that all samples share."""
    columns = [column for step in steps for column in step.columns]
    if all(where[column][0] == kind for column in columns):
        return leaves[kind].index_select(1, torch.tensor([where[c][1] for c in columns], device=leaves[kind].device))
    offset = leaves["shared"].shape[1]
    index = [where[c][1] + (offset if where[c][0] == "sample" else 0) for c in columns]
    both = torch.cat([leaves["shared"].expand(len(leaves["sample"]), -1), leaves["sample"]], 1)
    return both.index_select(1, torch.tensor(index, device=both.device))


def _joined(parts: dict[str, Tensor]) -> Tensor:
    if len(parts) == 1:
        return next(iter(parts.values()))
    return torch.cat([parts["shared"].expand(len(parts["sample"]), -1, -1, -1), parts["sample"]], 1)


def _product(pool: Tensor, runs: Sequence[Sequence[int]]) -> Tensor:
    """For each run the product of its 2 x 2 matrices, the first one applied first; 0 stands for the identity."""
    longest = max(1, *map(len, runs)) if runs else 1
    table = torch.tensor([[*run, *[0] * (longest - len(run))] for run in runs], device=pool.device)
    made = pool.index_select(1, table[:, 0])
    for k in range(1, longest):
        left = pool.index_select(1, table[:, k])
        made = (left.unsqueeze(-1) * made.unsqueeze(-3)).sum(-2)
    return made


def _tensor_product(high: Tensor, low: Tensor) -> Tensor:
    d, e = high.shape[-1], low.shape[-1]
    return (high[..., :, None, :, None] * low[..., None, :, None, :]).reshape(*high.shape[:-2], d * e, d * e)
