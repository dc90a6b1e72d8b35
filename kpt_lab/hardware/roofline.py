"""The roofline of an operation, of each module of a model, and of the whole: the least time that the hardware allows, and the time taken.

    print(roofline(model, x))                       # bound and measured time on the device that the model is on
    print(roofline(model, x, target="a100-sxm4-80gb"))  # what another device could at best do: modelled

A module's parts are timed one by one, each alone on the inputs that it saw in the model: a part inside the model may be faster (its
inputs are still in cache) or fused with its neighbours. So the parts' times need not add up to the whole's, which is timed too.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kpt_lab import baselines
from kpt_lab.core import Cost, Metric, Target, Trials, Workload, dtype_name, to_dtype
from kpt_lab.hardware import devices, targets
from kpt_lab.hardware.counted import DTYPES, WHOLE, Call, Part, cost_of, parts_of, tensors_of
from kpt_lab.hardware.probe import probe, quantity
from kpt_lab.measure import check_device, measure, predict
from kpt_lab.tables import markdown
from kpt_lab.terminal import columns

HEADER = ("part", "kind", "calls", "FLOP", "bytes", "FLOP/B", "bound", "by", "time", "of the bound", "remark")
_COUNTED = "torch's formulas for matrix products, convolutions and attention"
_CACHED = "in cache"
_INSIDE = "between the modules that it calls: not timed alone"


@dataclass(frozen=True)
class Row:
    """One part, or equal ones: cost and bound of a call, and the time that a call took where one was measured.

    side: "memory" or "arithmetic", whichever the bound is from. remark: why there is no time, or what to know about it.
    """

    name: str
    kind: str
    calls: int
    cost: Cost
    bound: Metric
    side: str
    time: Metric | None = None
    remark: str = ""

    @property
    def work(self) -> float:
        """FLOPs of a call, of all arithmetic types."""
        return sum(self.cost.flops.values())

    @property
    def intensity(self) -> Metric | None:
        """FLOP per byte; None where no bytes are known or nothing is multiplied."""
        if not (self.work and self.cost.bytes):
            return None
        return Metric(self.work / self.cost.bytes, "FLOP/B", "modelled", source=f"{_COUNTED}; compulsory bytes")

    @property
    def rate(self) -> Metric | None:
        """FLOP/s: counted work over the measured time, else over the bound, which nothing exceeds."""
        if not self.work:
            return None
        if self.time is None:
            return Metric(self.work / self.bound.value, "FLOP/s", "modelled", source=f"at the bound: {self.bound.source}")
        low, high = (self.work / end if end else None for end in (self.time.high, self.time.low))
        return Metric(self.work / self.time.value, "FLOP/s", "measured", low, high, f"{_COUNTED}, over the measured time")

    @property
    def share(self) -> Metric | None:
        """The bound over the measured time: 1 is as fast as the hardware allows."""
        if self.time is None:
            return None
        return Metric(self.bound.value / self.time.value, "1", "modelled", source=f"measured time; {self.bound.source}")


@dataclass(frozen=True)
class Roofline:
    """Bounds of a whole and of its parts on `target`, with measured times where `device` is named; `trials` holds them as Trials.

    Printed as a table; `figure()` draws it, and `kpt_lab.figures.roofline(it.trials)` and the widget take the measured Trials.
    """

    target: Target
    device: str
    dtype: str
    whole: Row
    parts: tuple[Row, ...]
    trials: Trials

    @property
    def one_by_one(self) -> Metric:
        """The sum of the parts' bounds in seconds: the least time unless neighbours are fused."""
        total = sum(row.calls * row.bound.value for row in self.parts)
        return Metric(total, "s", "modelled", source=f"the sum of the parts' bounds on {self.target.name}")

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows as text: the parts in the order of their first call, then the whole."""
        return [_text(row) for row in (*self.parts, self.whole)]

    def table(self) -> str:
        """The table in Markdown."""
        return markdown(HEADER, self.rows())

    def notes(self) -> list[str]:
        """What to know about the table: the roof, what was counted, and how the parts relate to the whole."""
        kinds = dict.fromkeys(kind for row in (self.whole, *self.parts) for kind in row.cost.flops)
        figures = [("bandwidth", self.target.bandwidth, "B/s"), *((k, self.target.peaks[k], "FLOP/s") for k in kinds)]
        roof = "; ".join(f"{n} {quantity(Metric(v, u, 'measured'))} ({self.target.source[n]})" for n, v, u in figures)
        found = [f"Roof of {self.target.name}: {roof}.", f"FLOPs: {_COUNTED}; elementwise work counts as none."]
        if self.parts:
            found.append(f"Parts one by one: bound {quantity(self.one_by_one)}{self._alone()}.")
        if any(row.remark == _CACHED for row in (*self.parts, self.whole)):
            found.append(
                f"{_CACHED.capitalize()}: so small that it may stay in a cache, and then memory's bound need not hold."
            )
        return found if self.device else [*found, "Nothing was measured: all times are bounds, modelled."]

    def _alone(self) -> str:
        times = [row.calls * row.time.value for row in self.parts if row.time]
        if not times:
            return ""
        left = (
            f", {len(self.parts) - len(times)} of {len(self.parts)} rows without a time" if len(times) < len(self.parts) else ""
        )
        return f", measured {quantity(Metric(sum(times), 's', 'measured'))}, each alone{left}"

    def __repr__(self) -> str:
        where = f"measured on {self.device}" if self.device else "modelled"
        lines = [f"Roofline of {self.whole.name}, {self.dtype}, on {self.target.name}, {where}"]
        return "\n".join([*lines, *columns([HEADER, *self.rows()]), *self.notes()])

    def figure(self) -> Any:
        """A Plotly figure: the roof, and a point for each part and the whole that has FLOPs and bytes."""
        from kpt_lab.hardware.drawn import figure  # Plotly, only where something is drawn

        return figure(self)


def roofline(
    what: torch.nn.Module | Workload | Callable[..., Any],
    *inputs: Any,
    target: Target | str | None = None,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    budget: float = 0.3,
    **params: Any,
) -> Roofline:
    """The roofline of a function, of a module with each module that it calls, or of a Workload as a whole (its forward).

    inputs: one set of example inputs; a single mapping is passed by keyword; a Workload takes none, but its parameters by keyword.
    target: a Target, or a device's or driver's name of the table, for a prediction without any measuring; without it, times are
    measured on `device` ("cpu" or "cuda", by default where the tensors are) for about `budget` seconds each, against the data
    sheet's figures where they are known, else against probed ones. dtype: of all floats, by default their own.
    Raises ValueError in one sentence for what can't be counted, an unknown target, or a device that is not here.
    """
    chosen = _target(target)
    if target is not None and device is not None:
        raise ValueError(f"device is {device!r} and target is {target!r}; accepted is one of them: a target is predicted for")
    if not budget > 0:
        raise ValueError(f"budget is {budget}; accepted are seconds above 0")
    if isinstance(what, Workload):
        return _of_workload(what, inputs, chosen, device or "cpu", dtype, budget, params)
    if params:
        raise ValueError(f"{next(iter(params))!r} is no argument of roofline; only a Workload takes parameters by keyword")
    call = _call(what, inputs)
    tensors = [*tensors_of((call.args, dict(call.kwargs))), *(what.parameters() if isinstance(what, torch.nn.Module) else ())]
    own = _own_dtype(tensors)
    wanted = _dtype(dtype) if dtype is not None else own
    where = "" if chosen else device or str(tensors[0].device)
    if where:
        check_device(where)
    changed = wanted if wanted != own else None
    name = str(getattr(what, "__name__", type(what).__name__))
    whole = Part(name, WHOLE, (name,), cost_of(call, changed), call)
    inside = parts_of(what, call.args, call.kwargs, changed) if isinstance(what, torch.nn.Module) else []
    inside = [part for part in inside if part.cost.bytes or any(part.cost.flops.values())]
    if [part.name for part in inside] == [""]:  # a module that calls no other
        inside = []
    everything = (whole, *inside)
    if chosen:
        taken = [_predicted(part, chosen, wanted) for part in everything]
    else:
        with _short_collections():
            taken = [_timed(part, where, wanted, budget) for part in everything]
    roof = chosen or _roof(where, {kind for part in everything for kind in part.cost.flops})
    rows = [_joined(part, roof, trials, remark) for part, (trials, remark) in zip(everything, taken, strict=True)]
    return Roofline(roof, where, wanted, rows[0], tuple(rows[1:]), Trials(trial for trials, _ in taken for trial in trials))


def _of_workload(
    work: Workload, inputs: Any, target: Target | None, device: str, dtype: Any, budget: float, params: Mapping[str, Any]
) -> Roofline:
    """A Workload as a whole, at the cost that it states."""
    if inputs:
        raise ValueError("inputs are given beside a Workload, which makes its own; accepted are its parameters by keyword")
    if work.cost is None:
        raise ValueError(f"workload {work.name!r} states no cost, so it has no roofline")
    name = _dtype(dtype or "float32")
    given = work.complete(params)
    cost = work.cost(dtype=name, **given)
    if target is not None:
        trials = Trials([predict(work, baselines.eager, target, dtype=name, **params)])
    else:
        trials = measure(work, [baselines.eager], device=device, dtype=name, budget=budget, processes=0, **params)
    roof = target or _roof(device, set(cost.flops))
    row = _joined(Part(work.name, WHOLE, (work.name,), cost, None), roof, trials)
    return Roofline(roof, "" if target else device, name, row, (), trials)


# ---- what is asked


def _target(target: Target | str | None) -> Target | None:
    if target is None or isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise ValueError(f"target is a {type(target).__name__}; accepted are a Target, or a device's name such as 'h100-sxm'")
    return devices.target(target)


def _dtype(dtype: torch.dtype | str) -> str:
    name = dtype_name(to_dtype(dtype))
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; accepted are {', '.join(DTYPES)}")
    return name


def _call(what: Any, inputs: tuple[Any, ...]) -> Call:
    if not callable(what):
        raise ValueError(f"what is {type(what).__name__}; accepted are a function, an nn.Module or a Workload")
    if not tensors_of(inputs):
        raise ValueError("inputs holds no tensor; pass one set of example inputs: roofline(model, x)")
    by_keyword = len(inputs) == 1 and isinstance(inputs[0], Mapping)
    return Call(what, () if by_keyword else inputs, dict(inputs[0]) if by_keyword else {})


def _own_dtype(tensors: Iterable[torch.Tensor]) -> str:
    """The dtype of the first float that a call computes in."""
    names = [dtype_name(t.dtype) for t in tensors if t.is_floating_point()]
    return next((name for name in names if name in DTYPES), "float32")


def _roof(device: str, kinds: set[str]) -> Target:
    """What bounds Trials on this device where that has all `kinds`, else the device table's, else what a probe reaches."""
    found = targets.find(device)
    if found is None and device.startswith("cuda"):
        try:
            memory = torch.cuda.get_device_properties(device).total_memory
            found = devices.target(torch.cuda.get_device_name(device), memory)
        except ValueError:
            found = None
    return found if found is not None and kinds <= set(found.peaks) else probe(device.split(":")[0]).target()


# ---- rows


def _predicted(part: Part, target: Target, dtype: str) -> tuple[Trials, str]:
    """The part's modelled Trial."""
    return Trials([predict(part.unmade(), baselines.eager, target, dtype=dtype)]), ""


@contextmanager
def _short_collections() -> Iterator[None]:
    """Every cell collects garbage three times, which costs more than timing a small part: what is there already is left out."""
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def _timed(part: Part, device: str, dtype: str, budget: float) -> tuple[Trials, str]:
    """The part's measured Trials, or none and the reason."""
    if part.call is None:
        return Trials(), _INSIDE
    try:
        return measure(part.workload(), [baselines.eager], device=device, dtype=dtype, budget=budget, processes=0), ""
    except Exception as error:  # one part that can't be timed must not cost the others' rows
        return Trials(), f"not timed: {' '.join(str(error).split())[:160]}"


def _joined(part: Part, target: Target, trials: Trials, remark: str = "") -> Row:
    bound = target.bound(part.cost)
    side = "memory" if bound.source.startswith("bytes") else "arithmetic"
    trial = next(iter(trials.where(technique="eager")), None)
    time = trial.metrics.get("time") if trial else None
    if trial and trial.status != "ok":
        remark = f"{trial.status}: {trial.advice}"
    elif time and trial and side == "memory" and trial.chosen.get("cache") == "warm" and part.cost.bytes <= target.cache:
        remark = _CACHED
    return Row(part.name or part.kind, part.kind, len(part.names), part.cost, bound, side, time, remark)


def _text(row: Row) -> tuple[str, ...]:
    share = row.share
    return (
        row.name,
        row.kind,
        str(row.calls),
        quantity(Metric(row.work, "", "measured")) if row.work else "",
        quantity(Metric(row.cost.bytes, "B", "measured")) if row.cost.bytes else "",
        f"{row.intensity.value:.3g}" if row.intensity else "",
        quantity(row.bound),
        row.side,
        quantity(row.time) if row.time else "",
        f"{share.value:.0%}" if share else "",
        row.remark,
    )
