"""A training run's receipt: what each layer was computed in and why, what it was predicted to gain, and what happened to its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kpt_lab import tables
from kpt_lab.core import Ratio
from kpt_lab.precision.decisions import Decision, aligned
from kpt_lab.precision.linear import TENSORS

if TYPE_CHECKING:
    from kpt_lab.precision.trainer import FP8Trainer

HEADER = ("layer", "weight", "recipe", "why", "predicted", "error, dB (low tokens)", "flushed", "not finite", "clipped")


@dataclass(frozen=True)
class Line:
    """One layer: what was decided, and over all steps the largest share flushed of a tensor, and values not finite and clipped."""

    decision: Decision
    flushed: float = 0.0
    nonfinite: int = 0
    clipped: int = 0


@dataclass(frozen=True)
class Receipt:
    """Steps applied and tried, bad ones by outcome and kind, the whole step's ratio predicted and measured, and the layers."""

    steps: int
    tried: int
    bad: dict[str, int]
    last_bad: str
    layers: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    measured: Ratio | None = None
    predicted: Ratio | None = None
    unwatched: bool = field(default=False)

    @property
    def skipped(self) -> int:
        return sum(count for name, count in self.bad.items() if name.startswith("skipped"))

    @property
    def repaired(self) -> int:
        return sum(count for name, count in self.bad.items() if name.startswith("repaired"))

    def head(self) -> list[str]:
        """What stands above the table, a sentence each."""
        counts = "; ".join(f"{count} {name}" for name, count in sorted(self.bad.items())) or "none bad"
        found = [f"{self.steps} of {self.tried} steps applied; {counts}"]
        if self.last_bad:
            found.append(f"last: {self.last_bad}")
        if self.measured:
            expected = f"predicted {tables.span(self.predicted)}, " if self.predicted else ""
            found.append(f"whole step over bfloat16: {expected}measured {tables.span(self.measured)} {self.measured.verdict}")
        return [*found, *self.notes]

    def rows(self) -> list[Sequence[str]]:
        """The table's rows, under HEADER."""
        found: list[Sequence[str]] = []
        for line in self.layers:
            x = line.decision
            told = ("", "", "") if self.unwatched else (f"{line.flushed:.2g}", str(line.nonfinite), str(line.clipped))
            ratio = tables.span(x.predicted) if x.predicted else ""
            found.append((x.name or "(the model)", x.shape, str(x.recipe), x.reason, ratio, x.error, *told))
        return found

    def __str__(self) -> str:
        return "\n".join([*self.head(), aligned(HEADER, self.rows())])

    def _repr_markdown_(self) -> str:
        return "\n\n".join(["; ".join(self.head()), tables.markdown(HEADER, self.rows())])


def receipt(trainer: FP8Trainer) -> Receipt:
    """The receipt of a trainer as it stands."""
    shares = trainer.watch.shares()
    lines, notes = [], []
    for decision in trainer.decisions.layers if trainer.decisions else ():
        seen = shares.get(decision.name, dict.fromkeys(TENSORS, (0.0, 0, 0))).values()
        lines.append(Line(decision, max(s for s, _, _ in seen), sum(n for _, n, _ in seen), sum(c for _, _, c in seen)))
    if trainer.decisions is None:
        notes.append("nothing is decided yet: the first step does")
    else:
        notes.append(trainer.decisions.title)
    if trainer.other_shapes:
        notes.append(f"{trainer.other_shapes} batches had other shapes than the one that was decided on")
    return Receipt(
        trainer.steps, trainer.tried, dict(trainer.bad), trainer.last_bad, tuple(lines), tuple(notes), trainer.measured,
        trainer.predicted, unwatched=not trainer.watched,
    )  # fmt: skip
