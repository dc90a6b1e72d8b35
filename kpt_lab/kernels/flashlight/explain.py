"""What happened to each softmax of a callable, in words: matched, as which mathematics and lowered to what, or refused and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from kpt_lab.kernels.flashlight.expression import Attention, Expression, Lowering, Part, Score, readable, replace


@dataclass(frozen=True)
class Entry:
    """One softmax: the line of source that it comes from, and what became of it."""

    where: str
    matched: bool
    pattern: str = ""
    lowering: Lowering | None = None
    reason: str = ""

    def __str__(self) -> str:
        if not self.matched:
            seen = f"\n    seen as: {self.pattern}" if self.pattern else ""
            return f"left as it is: {self.where}{seen}\n    because: {self.reason}"
        assert self.lowering is not None
        lines = [f"fused: {self.where}", f"    {self.pattern}", f"    by {self.lowering.kernel}: {self.lowering.reason}"]
        if self.lowering.measured:
            ranked = sorted(self.lowering.measured.items(), key=lambda item: item[1])
            lines.append("    measured: " + ", ".join(f"{name} {seconds * 1e3:.4g} ms" for name, seconds in ranked))
        lines.append(f"    compared with the original: {self.lowering.checked}")
        return "\n".join(lines)


@dataclass
class Report:
    """One captured graph: an entry for each softmax, or the reason why the whole graph was left alone."""

    entries: list[Entry] = field(default_factory=list)
    refusal: str = ""


@dataclass(frozen=True)
class Explanation:
    """The entries of all graphs of a callable; printed, one paragraph for each softmax."""

    entries: tuple[Entry, ...]
    refusals: tuple[str, ...] = ()

    @property
    def matched(self) -> int:
        """How many softmaxes are fused."""
        return sum(entry.matched for entry in self.entries)

    def __str__(self) -> str:
        if not self.entries and not self.refusals:
            return "no graph with a softmax has been captured"
        whole = [f"a graph was left as it is\n    because: {reason}" for reason in self.refusals]
        return "\n".join([f"{self.matched} of {len(self.entries)} softmaxes fused", *whole, *map(str, self.entries)])

    __repr__ = __str__


def explain(candidate: Any) -> Explanation:
    """What flashlight did to a callable: the result of `flashlight.apply`, or a backend; TypeError for anything else."""
    backend = getattr(candidate, "backend", candidate)
    reports = getattr(backend, "reports", None) or getattr(backend, "before", None)
    if reports is None:
        raise TypeError(f"candidate is a {type(candidate).__name__}; accepted are what flashlight.apply gives and backends")
    entries = tuple(entry for report in reports for entry in report.entries)
    return Explanation(entries, tuple(report.refusal for report in reports if report.refusal))


def place(node: fx.Node) -> str:
    """The line of the user's source that a node comes from, or its name."""
    found, own = node.name, False
    for line in str(node.meta.get("stack_trace") or "").splitlines():
        if (line := line.strip()).startswith("File "):
            own = Path(__file__).parent.joinpath("rewrite.py").as_posix() in line  # the frame that calls the user's function
        elif line.strip("^~ ") and not own:
            found = line
    return found


def pattern(attention: Attention) -> str:
    """The attention as one line of mathematics, with s for query times key."""
    parts = [_part(part) for part in attention.parts]
    total = " + ".join(parts)
    dropped = f"dropout({total}, {attention.dropout:g})" if attention.dropout else total
    value = f"({dropped})" if len(parts) > 1 else dropped
    groups = attention.parts[0].groups
    shared = f", {groups} query heads to a key" if groups > 1 else ""
    return f"{value} · v{shared}"


def _part(part: Part) -> str:
    score: Expression = part.score
    text = readable(score)
    if part.scale != 1.0:
        scale = f"{part.scale:.6g}" if isinstance(part.scale, float) else readable(part.scale)
        text = f"s · {scale}" if isinstance(score, Score) else f"{text} with s · {scale} for s"
    where = f" where {readable(part.mask)}" if part.mask is not None else ""
    softmax = f"softmax over k of {text}{where}" if not where and text == "s" else f"softmax over k of [{text}{where}]"
    return softmax if part.coefficient is None else f"({readable(part.coefficient)}) · {softmax}"


__all__ = ["Entry", "Explanation", "Report", "explain", "pattern", "place", "replace"]
