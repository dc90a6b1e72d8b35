"""The search: measure the stacks beside the model as passed, choose by the lower end of an interval, and confirm on new values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kpt_lab import baselines
from kpt_lab.core import Incomparable, Ratio, Technique, Trial, Trials, Unsupported, Verdict, Workload, dtype_name
from kpt_lab.measure import measure
from kpt_lab.models import workload
from kpt_lab.optimize import stacks
from kpt_lab.optimize.calls import CALLS, free, queued, unseen
from kpt_lab.optimize.live import applied, parts_of, untouched
from kpt_lab.ratios import compare
from kpt_lab.runner import missing_requirement

GAIN = 1.02
"""The lower end of a stack's interval must lie above this: restarts of a process move a time by as much."""
LEADERS = 2
"""So many of the stacks that look fastest are measured again."""
ROUNDS = (1.0, 5.0)
"""Budgets of that second measurement: the longer one only where the shorter leaves the fastest's interval open."""
AS_PASSED = "as passed"

_SHARE = 0.6  # of the free memory that copies of the model may take; the rest is for activations
_WIN: dict[Verdict, Verdict] = {"FASTER": "SLOWER", "SLOWER": "FASTER", "SAME": "SAME", "UNCLEAR": "UNCLEAR"}
Quality = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Request:
    """What the caller asked for, checked."""

    workload_type: str
    performance_target: str
    budget: float
    quality: Quality | None = None
    loss_budget: float | None = None
    techniques: tuple[Technique, ...] | None = None

    @property
    def training(self) -> bool:
        """Whether forward and backward are timed, and calls keep their graph."""
        return self.workload_type == "training"


class Line(NamedTuple):
    """One line of the report: a stack, what it was set against in which step, the ratio if there is one, and what was said."""

    step: str
    label: str
    over: str
    ratio: Ratio | None
    said: str


@dataclass
class Found:
    """What a search ends with: the stack or None, the reason, and everything that was measured."""

    technique: Technique | None = None
    reason: str = ""
    lines: list[Line] = field(default_factory=list)
    trials: Trials = field(default_factory=Trials)
    limit: float | None = None


class _Winner(NamedTuple):
    """A stack that was confirmed, its Trial there, and its speedup over the model as passed."""

    technique: Technique
    trial: Trial
    over: Ratio


def search(
    model: nn.Module, inputs: tuple, request: Request, returned: Callable[[Technique | None, Request], Technique]
) -> Found:
    """Search the stacks for this model and these inputs; whatever goes wrong, the answer is "as passed" and why.

    returned: puts a stack into what the caller gets, so that winners are confirmed with what a call costs there.
    """
    if reason := not_measurable(model, inputs):
        return Found(reason=reason)
    before = None
    if request.quality is not None and not math.isfinite(before := _asked(request.quality, model, model)):
        raise ValueError(f"quality(model) gave {before} for the model as passed; a finite loss is needed")
    run = _Search(model, inputs, request, before, returned)
    try:
        run.run()
    except Exception as error:  # the promise is a model that works as before, whatever measuring a copy of it met
        run.found.technique = None
        run.found.reason = f"it could not be measured: {' '.join(str(error).split())[:400] or type(error).__name__}"
    return run.found


def not_measurable(model: nn.Module, inputs: tuple) -> str:
    """Why copies of this model would not stand for it, or ""."""
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    places = {p.device for p in model.parameters()}
    given = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor)]
    if len(places) > 1:
        return f"its parameters lie on several devices ({_names(places)}), and a cell is measured on one"
    if any(p.type == "cuda" and p.index != torch.cuda.current_device() for p in places):
        return f"it lies on {_names(places)}, and a cell is measured on the current device: torch.cuda.set_device changes it"
    if len(floats) > 1:
        return f"its parameters are of several dtypes ({_names(floats)}), and a cell is measured in one"
    if not given:
        return "the call has no tensor among its inputs"
    if others := {t.dtype for t in given if t.is_floating_point()} - floats:
        return f"its inputs are {_names(others)} and its parameters {_names(floats)}, and a cell is measured in one dtype"
    return ""


def _asked(quality: Quality, candidate: Any, model: nn.Module) -> float:
    """The loss of a candidate that shares the weights of `model`, whose buffers and modes stay; ValueError if weights change."""
    before = [(p, p._version) for p in model.parameters() if not p.is_inference()]
    with untouched(model):
        loss = float(quality(candidate))
    if any(p._version != version for p, version in before):
        raise ValueError("quality changed the model's weights; it must only evaluate, for the model's own weights are at stake")
    return loss


def _names(values: Any) -> str:
    return ", ".join(sorted(str(value).removeprefix("torch.") for value in values))


class _Search:
    """One search: its workload, and what was found so far."""

    def __init__(
        self, model: nn.Module, inputs: tuple, request: Request, loss: float | None, returned: Callable[..., Technique]
    ) -> None:
        self.model, self.inputs, self.request, self.loss, self.found = model, inputs, request, loss, Found()
        self.returned = returned
        first = next(p for p in model.parameters() if p.is_floating_point())
        self.device, self.dtype = first.device.type, first.dtype
        self.metric = "wall_time" if self.device == "cuda" else "time"

    def run(self) -> None:
        """Lossless stacks, lossy ones on top of the best of them, and the winners once more on new values."""
        given = self.request.techniques
        plain = stacks.lossless(self.model, self.request.workload_type, self.device) if given is None else given
        best = self._settled("lossless", [t for t in plain if t.contract != "lossy"])
        lossy = stacks.lossy(self.request.workload_type) if given is None else given
        allowed = self._within_budget([t for t in lossy if t.contract == "lossy"])
        changed = self._settled("lossy", stacks.over(best and best.technique, allowed), beside=best) if allowed else None
        if not (chosen := changed or best):
            self.found.reason = self.found.reason or self._why_none()
            return
        first = self.found.technique = chosen.technique
        self.found.reason = (
            f"{first.label} is {_span(chosen.over)} as fast as the model as passed, measured afresh on new values"
        )
        if first.contract == "same" and not self._workload(self.inputs).random:
            self.found.limit = 2 * float(chosen.trial.chosen["error_limit"])  # two results, each that near the oracle

    def _workload(self, inputs: tuple) -> Workload:
        mode = "backward" if self.request.training else "forward"
        work = replace(workload(self.model, *inputs), cost=None)  # the bound needs a run in float32 on the CPU; ratios don't
        if self.request.performance_target == "throughput" and self.device == "cuda":
            # a name of its own: a Trial of several calls must not be set against one of a single call
            work = replace(work, name=f"{work.name}, {CALLS} calls in a row", make=functools.partial(queued, work.make))
        return work(mode=mode)

    # -- one step -------------------------------------------------------------------------------------------------------------

    def _settled(self, step: str, techniques: Sequence[Technique], beside: _Winner | None = None) -> _Winner | None:
        """The fastest stack that keeps the rule over the model as passed, and over `beside` where given; None where none does.

        A first look at all of them says which could be the fastest. Those are measured again, on values that no call has seen
        and inside what the caller gets, which asks before each call whether the stack may be used; only that counts, and it goes
        on for longer where it leaves open what the fastest gains.
        """
        if not techniques:
            return None
        seed, other = 10 * (step == "lossy"), beside and beside.technique
        look = self._compared(step, self._workload(self.inputs), {t: t for t in techniques}, other, other, seed, 1.0)
        near = {t: over.value for t, (_, over, more) in look.items() if over.value > GAIN and (not more or more.value > GAIN)}
        leaders = sorted(near, key=lambda t: -near[t])[:LEADERS]
        ready = {t: self.returned(t, self.request) for t in leaders}
        shown = self.returned(other, self.request) if other and ready else None
        work = self._workload(unseen(self.inputs, seed=1))
        for round_, times in enumerate(ROUNDS):
            if not ready:
                return None
            found = self._compared("confirm", work, ready, shown, other, seed + 1 + round_, times)
            kept = {t: each for t, each in found.items() if min(each[1].low, each[2].low if each[2] else math.inf) > GAIN}
            best = max(kept, key=lambda t: kept[t][1].value, default=None)
            # another whose interval is open may be faster still
            least = kept[best][1].value if best else GAIN
            if not any(math.isinf(over.high) and over.value > least for t, (_, over, _) in found.items() if t not in kept):
                break
        if best is None:
            first = leaders[0]
            came = f"came to {_span(found[first][1])}" if first in found else f"failed ({self.found.lines[-1].said})"
            self.found.reason = (
                f"{first.label} won the search, but measured afresh on new values it {came}: {GAIN}x is asked for"
            )
            return None
        return _Winner(best, kept[best][0], kept[best][1])

    def _compared(
        self, step: str, work: Workload, ready: dict[Technique, Technique], shown: Technique | None, beside: Technique | None,
        seed: int, times: float,
    ) -> dict[Technique, tuple[Trial, Ratio, Ratio | None]]:  # fmt: skip
        """Of each stack that ran its Trial, its speedup over the model as passed, and that over `beside`, in `shown`'s form."""
        found: dict[Technique, tuple[Trial, Ratio, Ratio | None]] = {}
        cells = self._measured(work, list(ready.values()), seed, shown, times * self.request.budget)
        for technique, mine in ready.items():
            trial, eager, other = cells[mine]
            over, more = self._line(step, trial, eager, AS_PASSED, len(cells)), None
            if over is not None and other is not None and beside is not None:
                more = self._line(step, trial, other, beside.label, len(cells))
            if over is not None and (other is None or more is not None):
                found[technique] = trial, over, more
        return found

    def _line(self, step: str, trial: Trial, over: Trial, name: str, choices: int) -> Ratio | None:
        """The speedup of one Trial over another of its cell, as a line of the report."""
        ratio, said = None, trial.advice
        if trial.status == "ok":
            try:
                ratio = compare(over, trial, self.metric, choices=choices)
                ratio = replace(ratio, verdict=_WIN[ratio.verdict])  # compare judges `over` by its time
                said = ratio.verdict
            except Incomparable as error:
                said = str(error)
        self.found.lines.append(Line(step, trial.label, name, ratio, said or trial.status))
        return ratio

    def _measured(
        self, work: Workload, techniques: Sequence[Technique], seed: int, beside: Technique | None, budget: float
    ) -> dict[Technique, tuple[Trial, Trial, Trial | None]]:
        """For each technique its Trial, and those of eager and of `beside` in the same cell."""
        found: dict[Technique, tuple[Trial, Trial, Trial | None]] = {}
        always = [baselines.eager, *([beside] if beside else [])]
        size = self._stacks_a_cell(len(always))
        for start in range(0, len(techniques), size):
            chunk = techniques[start : start + size]
            trials = measure(
                work,
                [*always, *chunk],
                device=self.device,
                dtype=self.dtype,
                seed=seed,
                budget=budget,
                processes=0,
            )
            self.found.trials += trials
            by_label = {trial.label: trial for trial in trials}
            if (eager := by_label["eager"]).status != "ok":
                raise Unsupported(f"a copy of it {eager.status}: {eager.advice}")
            other = by_label[beside.label] if beside else None
            found |= {technique: (by_label[technique.label], eager, other) for technique in chunk}
        return found

    def _stacks_a_cell(self, always: int) -> int:
        """How many copies of the model fit beside the oracle's, the specification's and those that every cell has."""
        size = sum(t.nbytes for t in {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}.values())
        oracle = 8 / self.dtype.itemsize * size
        room = _SHARE * free(self.device) - oracle - (1 + always) * size
        if room < size:
            raise Unsupported(
                f"its copies need about {(oracle + (2 + always) * size) / 1e9:.1f} GB, more than {_SHARE:.0%} of what is free on "
                f"{self.device}; optimize a part of it, such as one block"
            )
        return int(min(room / max(size, 1), 64))

    # -- lossy ----------------------------------------------------------------------------------------------------------------

    def _within_budget(self, techniques: Sequence[Technique]) -> list[Technique]:
        """Those whose loss rises by no more than the budget; the others get a line, and are not timed."""
        budget, allowed = self.request.loss_budget, []
        for technique in techniques:
            if budget is None:
                said = "not tried: it changes the numbers, for which quality and loss_budget are needed"
                self.found.lines.append(Line("quality", technique.label, AS_PASSED, None, said))
                continue
            try:
                rise, said = self._rise(technique)
            except Exception as error:  # what fails here is a line, as it would be in measure
                rise, said = math.inf, str(error) or type(error).__name__
            if rise <= budget:
                allowed.append(technique)
            else:
                said = f"not tried: {said}"
            self.found.lines.append(Line("quality", technique.label, AS_PASSED, None, said))
        return allowed

    def _rise(self, technique: Technique) -> tuple[float, str]:
        """Relative rise of the loss under a lossy technique, without compiler and graph, and the sentence about it."""
        if missing := missing_requirement(technique, self.device):
            return math.inf, missing
        quality, before = self.request.quality, self.loss
        assert quality is not None
        assert before is not None
        parts = tuple(part for part in parts_of(technique) if part.stage not in ("compile", "graph"))
        after = _asked(quality, applied(parts, self.model, self.inputs), self.model)
        rise = (after - before) / abs(before) if before else math.inf * after if after else 0.0
        rise = math.inf if math.isnan(rise) else rise
        return (
            rise,
            f"loss {before:.6g} before, {after:.6g} after: a rise of {rise:.2%}, {self.request.loss_budget:.2%} allowed",
        )

    # -- the reason ----------------------------------------------------------------------------------------------------------------

    def _why_none(self) -> str:
        ratios = [line for line in self.found.lines if line.ratio and line.over == AS_PASSED]
        if not ratios:
            return "no stack ran here"
        top = max(ratios, key=lambda line: line.ratio.value if line.ratio else 0.0)
        assert top.ratio is not None
        open_ = top.ratio.verdict == "UNCLEAR" and (top.ratio.value > GAIN or math.isinf(top.ratio.high))
        more = f"; a budget above {self.request.budget:g} s may tell" if open_ else ""
        return f"no stack's interval lies above {GAIN}x: {top.label} came to {_span(top.ratio)}{more}"


def _span(ratio: Ratio) -> str:
    high = f"{ratio.high:.3f}" if math.isfinite(ratio.high) else "inf"
    return f"{ratio.value:.3f}x [{ratio.low:.3f}, {high}]"


def device_name(model: nn.Module) -> str:
    """Where a model's parameters lie and in what: "cpu, float32"."""
    found = {f"{p.device.type}, {dtype_name(p.dtype)}" for p in model.parameters() if p.is_floating_point()}
    return " and ".join(sorted(found))
