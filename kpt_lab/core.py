"""The nouns: what is timed, what makes it faster, and what came out of it.

Everything here is a frozen dataclass without behaviour of its own beyond checking its fields; `measure` is the only
module that reads a clock and the only one that makes measured Trials.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch

Provenance = Literal["measured", "simulated", "modelled", "quoted"]
Status = Literal["ok", "wrong", "rejected", "unsupported", "unavailable", "out_of_memory", "timeout", "failed", "cancelled"]
Contract = Literal["same", "lossy", "random"]
Stage = Literal["rewrite", "kernel", "sparsity", "precision", "parallel", "compile", "graph", "device"]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNCLEAR"]

STAGES: tuple[str, ...] = get_args(Stage)
CONTRACTS: tuple[str, ...] = get_args(Contract)  # from the strictest to the loosest


class FrozenDict(dict[str, Any]):
    """A dict that refuses changes, prints and pickles as a dict does, and can be hashed where its values can."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("this mapping is part of a frozen record; make a new one with dict(mapping)")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:
        return FrozenDict, (dict(self),)


NOTHING: Mapping[str, Any] = FrozenDict()


class Incomparable(ValueError):
    """Two Trials between which no ratio may be formed; the message says why and what can be compared."""


class Unsupported(RuntimeError):
    """Raised by a Technique's apply when it can't take this function, shape, dtype or device; the message says why."""


def _frozen(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping if isinstance(mapping, FrozenDict) else FrozenDict(mapping)


def dtype_name(dtype: torch.dtype | str) -> str:
    """Name of a torch dtype without the prefix, as Trials keep it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def to_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The torch dtype of that name; ValueError with the accepted names otherwise."""
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype_name(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype is {dtype!r}; accepted are torch dtypes or their names, such as 'float32' or 'bfloat16'")
    return found


@dataclass(frozen=True)
class Metric:
    """One number with its unit and where it comes from; a modelled or quoted one must name its source."""

    value: float
    unit: str
    provenance: Provenance
    low: float | None = None
    high: float | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.provenance not in get_args(Provenance):
            raise ValueError(f"provenance is {self.provenance!r}; accepted are {', '.join(get_args(Provenance))}")
        if self.provenance in ("modelled", "quoted") and not self.source:
            raise ValueError(f"a {self.provenance} Metric needs a source: say which formula or publication it comes from")


@dataclass(frozen=True)
class Cost:
    """Compulsory work and traffic of one call: FLOPs by arithmetic type ("bfloat16", "float32", ...), and bytes moved."""

    flops: Mapping[str, float]
    bytes: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "flops", _frozen(self.flops))

    def __add__(self, other: Cost) -> Cost:
        kinds = {**self.flops, **other.flops}
        return Cost({k: self.flops.get(k, 0.0) + other.flops.get(k, 0.0) for k in kinds}, self.bytes + other.bytes)


@dataclass(frozen=True)
class Target:
    """A device as data: peak rates (FLOP/s by arithmetic type), memory bandwidth (bytes/s), and where each figure is from.

    `source` maps a figure's name (an arithmetic type, "bandwidth", "cache") to its source. `energy` is in joules per
    operation by arithmetic type and per byte under "byte". `cache` is the last-level cache in bytes.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float
    source: Mapping[str, str]
    energy: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    features: frozenset[str] = frozenset()
    count: int = 1
    cache: float = 0.0

    def __post_init__(self) -> None:
        for name in ("peaks", "source", "energy"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        missing = [figure for figure in (*self.peaks, "bandwidth") if figure not in self.source]
        if missing:
            raise ValueError(f"target {self.name!r} gives no source for {', '.join(missing)}")

    def bound(self, cost: Cost) -> Metric:
        """The least time in seconds that `cost` can take here: the larger of the arithmetic's and the memory's."""
        unknown = [kind for kind, work in cost.flops.items() if work and kind not in self.peaks]
        if unknown:
            raise ValueError(
                f"target {self.name!r} has no peak for {', '.join(unknown)}; it knows {', '.join(self.peaks) or 'none'}"
            )
        arithmetic = sum(work / self.peaks[kind] for kind, work in cost.flops.items() if work) / self.count
        memory = cost.bytes / self.bandwidth / self.count
        side = "bytes over bandwidth" if memory >= arithmetic else "FLOPs over peak"
        figure = "bandwidth" if memory >= arithmetic else next(k for k, v in cost.flops.items() if v)
        return Metric(max(arithmetic, memory), "s", "modelled", source=f"{side} of {self.name} ({self.source[figure]})")


@dataclass(frozen=True)
class Problem:
    """A callable that a technique may replace, at least three sets of inputs, and `drive`: candidate -> the timed step.

    A step whose call changes state (an optimiser's) carries a `reset()` that puts the state back in place.
    """

    fn: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]]
    drive: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda candidate: candidate

    def __post_init__(self) -> None:
        if len(self.inputs) < 3:
            raise ValueError(f"inputs holds {len(self.inputs)} sets; at least 3 are needed, so that measure can rotate them")


def _bindable(fn: Callable[..., Any], skip: Iterable[str]) -> tuple[dict[str, Any], bool]:
    """Keyword parameters of `fn` with their defaults (inspect._empty where there is none), and whether it takes any."""
    found, anything = {}, False
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            anything = True
        elif parameter.name not in skip and parameter.kind is not parameter.VAR_POSITIONAL:
            found[parameter.name] = parameter.default
    return found, anything


@dataclass(frozen=True)
class Workload:
    """The plain PyTorch definition of what is timed.

    make:      `make(*, device, dtype, seed, **params) -> Problem`, called afresh for each technique.
    tolerance: error allowed, in unit roundoffs of the dtype, beyond four times the specification's own error.
    cost:      `cost(*, dtype, **params) -> Cost`.
    error:     `error(output, reference) -> float` for leaves where the elementwise scaled error does not fit.
    quality:   `quality(candidate) -> Metric`, for models: accuracy or loss on data of the workload's own.
    random:    the outputs are random (dropout): compared in distribution.
    dtypes:    names of the dtypes it can be made in; empty means any.
    params:    parameters already bound; `workload(rows=256)` binds more.
    """

    name: str
    make: Callable[..., Problem]
    tolerance: float = 16.0
    cost: Callable[..., Cost] | None = None
    error: Callable[[torch.Tensor, torch.Tensor], float] | None = None
    quality: Callable[[Callable[..., Any]], Metric] | None = None
    random: bool = False
    dtypes: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", _frozen(self.params))

    def parameters(self) -> dict[str, Any]:
        """The parameters that `make` takes beyond device, dtype and seed, with their defaults."""
        return _bindable(self.make, ("device", "dtype", "seed"))[0]

    def complete(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Bound and default parameters joined with `params`; ValueError names one that is unknown or missing."""
        known, anything = _bindable(self.make, ("device", "dtype", "seed"))
        unknown = [name for name in params if name not in known]
        if unknown and not anything:
            raise ValueError(f"workload {self.name!r} has no parameter {unknown[0]!r}; it takes {', '.join(known) or 'none'}")
        merged = {**known, **self.params, **params}
        missing = [name for name, value in merged.items() if value is inspect.Parameter.empty]
        if missing:
            raise ValueError(f"workload {self.name!r} needs a value for {', '.join(map(repr, missing))}")
        return merged

    def __call__(self, **params: Any) -> Workload:
        self.complete({**dict.fromkeys(self.parameters()), **params})
        return replace(self, params={**self.params, **params})

    def __repr__(self) -> str:
        return f"Workload({label(self.name, self.params)})"


@dataclass(frozen=True, eq=False)
class Technique:
    """Turns a callable (a function or an nn.Module) into a faster one.

    apply:      `apply(fn, args, **knobs) -> fn`; `args` is one set of inputs. Raises Unsupported with the reason.
    stage:      where it stands in a stack; on: "fn" replaces the callable, "step" wraps the whole timed step.
    knobs:      settings bound by call, `photonic(bits=6)`; part of a Trial's identity.
    replaces:   what it takes over ("attention", "softmax"); two parts of a stack must not replace the same thing.
    contract:   "same", "lossy" (then `definition(fn, args, **knobs) -> fn` gives the same mathematics slowly) or "random".
    report:     `report(candidate) -> {name: Metric}`; may not claim "measured" nor the name "time".
    cost:       maps the workload's Cost to the arithmetic that this technique really uses.
    simulates:  the Target's name that it simulates; its clock is then stored as simulation_time, never as time.
    requires:   "cuda" or names of modules to import; where one is missing the Trial says "unavailable" and what to do.
    baseline:   may be chosen as the best baseline.
    absorb:     `absorb(next) -> apply` of both together, or None: for a rewrite that a compiler around it would lose.
    """

    name: str
    apply: Callable[..., Callable[..., Any]]
    stage: Stage = "kernel"
    on: Literal["fn", "step"] = "fn"
    knobs: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    replaces: frozenset[str] = frozenset()
    contract: Contract = "same"
    definition: Callable[..., Callable[..., Any]] | None = None
    report: Callable[[Callable[..., Any]], Mapping[str, Metric]] | None = None
    cost: Callable[[Cost], Cost] | None = None
    simulates: str = ""
    requires: tuple[str, ...] = ()
    baseline: bool = False
    parts: tuple[Technique, ...] = ()
    absorb: Callable[[Technique], Callable[..., Callable[..., Any]] | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "knobs", _frozen(self.knobs))
        object.__setattr__(self, "replaces", frozenset(self.replaces))
        for name, value, accepted in (
            ("stage", self.stage, STAGES),
            ("on", self.on, ("fn", "step")),
            ("contract", self.contract, CONTRACTS),
        ):
            if value not in accepted:
                raise ValueError(f"{name} of technique {self.name!r} is {value!r}; accepted are {', '.join(accepted)}")
        if self.contract == "lossy" and self.definition is None:
            raise ValueError(f"technique {self.name!r} is lossy and needs a definition: its plain, slow form")

    @property
    def label(self) -> str:
        """Name with its knobs: "photonic(bits=6)"."""
        return label(self.name, self.knobs)

    def __call__(self, **knobs: Any) -> Technique:
        known, anything = _bindable(self.apply, ("fn", "args"))
        unknown = [name for name in knobs if name not in known]
        if unknown and not anything:
            raise ValueError(f"technique {self.name!r} has no knob {unknown[0]!r}; it takes {', '.join(known) or 'none'}")
        return replace(self, knobs={**self.knobs, **knobs})

    def __rshift__(self, other: Technique) -> Technique:
        return stack(*(self.parts or (self,)), *(other.parts or (other,)))

    def __repr__(self) -> str:
        return f"Technique({self.label})"


def label(name: str, settings: Mapping[str, Any]) -> str:
    """A name with its settings in parentheses, as figures and tables print it."""
    return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else name


def stack(*parts: Technique) -> Technique:
    """Several techniques as one, ordered by stage; ValueError where two of them replace the same thing."""
    ordered = tuple(sorted(parts, key=lambda part: STAGES.index(part.stage)))
    for i, a in enumerate(ordered):
        for b in ordered[i + 1 :]:
            if both := a.replaces & b.replaces:
                raise ValueError(f"{a.label!r} and {b.label!r} both replace {', '.join(sorted(both))}: stack one of them")
    applied: list[Technique] = []
    for part in ordered:
        both_apply = applied[-1].absorb(part) if applied and applied[-1].absorb else None
        applied[-1:] = [replace(applied[-1], apply=both_apply)] if both_apply else [*applied[-1:], part]
    kinds = {part.on for part in ordered}
    costs = tuple(part.cost for part in ordered if part.cost)
    return Technique(
        name=" >> ".join(part.label for part in ordered),
        apply=functools.partial(_apply_parts, parts=tuple(applied)),
        stage=ordered[-1].stage,
        on="fn" if kinds == {"fn"} else "step",
        replaces=frozenset().union(*(part.replaces for part in ordered)),
        contract=max((part.contract for part in ordered), key=CONTRACTS.index),
        definition=functools.partial(_define_parts, parts=ordered) if any(p.definition for p in ordered) else None,
        cost=functools.partial(_cost_parts, costs=costs) if costs else None,
        simulates=next((part.simulates for part in ordered if part.simulates), ""),
        requires=tuple(dict.fromkeys(name for part in ordered for name in part.requires)),
        baseline=all(part.baseline for part in ordered),
        parts=ordered,
    )


def _apply_parts(fn: Callable, args: tuple, parts: tuple[Technique, ...]) -> Callable:
    for part in parts:
        fn = part.apply(fn, args, **part.knobs)
    return fn


def _define_parts(fn: Callable, args: tuple, parts: tuple[Technique, ...]) -> Callable:
    for part in parts:
        if part.definition:
            fn = part.definition(fn, args, **part.knobs)
    return fn


def _cost_parts(cost: Cost, costs: tuple[Callable[[Cost], Cost], ...]) -> Cost:
    for change in costs:
        cost = change(cost)
    return cost


@dataclass(frozen=True)
class Trial:
    """What one technique did in one cell and one process: immutable, and with all that the rules need after load.

    status and advice say what happened and what to do; `metrics` holds "time" (seconds, with its interval) and more;
    `samples` holds integer nanoseconds, paired across the techniques of a cell and process by position.
    """

    workload: str
    technique: str
    params: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    knobs: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    contract: Contract = "same"
    baseline: bool = False
    simulates: str = ""
    target: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    at: str = ""
    status: Status = "ok"
    advice: str = ""
    metrics: Mapping[str, Metric] = field(default_factory=lambda: NOTHING)
    samples: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: NOTHING)
    cell: str = ""
    process: int = 0
    chosen: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    source: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    env: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"status is {self.status!r}; accepted are {', '.join(get_args(Status))}")
        if self.simulates and "time" in self.metrics:
            raise ValueError(
                f"technique {self.technique!r} simulates {self.simulates!r}: its clock is simulation_time, never time"
            )
        for name in ("params", "knobs", "metrics", "samples", "chosen", "source", "env"):
            object.__setattr__(self, name, _frozen(getattr(self, name)))

    @property
    def label(self) -> str:
        """The technique's name with its knobs."""
        return label(self.technique, self.knobs)

    @property
    def host(self) -> str:
        """Hashed id of the machine that it ran on, or "" for a modelled or quoted Trial."""
        return str(self.env.get("host", ""))

    @property
    def time(self) -> float:
        """Median time of a call in seconds; NaN where there is none."""
        return self.metrics["time"].value if "time" in self.metrics else math.nan

    def __repr__(self) -> str:
        what = f"{self.time * 1e6:.4g} us" if "time" in self.metrics else self.advice or "no time"
        return f"Trial({label(self.workload, self.params)} {self.dtype} {self.device}: {self.label} {self.status}, {what})"


class Trials(tuple[Trial, ...]):
    """An immutable sequence of Trials; `where` selects by field or parameter, `+` joins."""

    __slots__ = ()

    def where(self, **conditions: Any) -> Trials:
        """The Trials whose fields, parameters, or label (as `label=`) equal each given value or lie in a given set or list."""
        names = {f.name for f in fields(Trial)} | {"label", "host"}

        def holds(trial: Trial) -> bool:
            for name, wanted in conditions.items():
                value = getattr(trial, name) if name in names else trial.params.get(name)
                if not (value in wanted if isinstance(wanted, (set, list, tuple)) else value == wanted):
                    return False
            return True

        return Trials(trial for trial in self if holds(trial))

    @property
    def ok(self) -> Trials:
        """Those whose status is ok."""
        return self.where(status="ok")

    def __add__(self, other: Iterable[Trial]) -> Trials:  # type: ignore[override]
        return Trials((*self, *other))

    def __repr__(self) -> str:
        return "\n".join(map(repr, self)) or "Trials()"


@dataclass(frozen=True)
class Ratio:
    """A ratio of two Trials' metrics with its interval; `over` a baseline, above 1 is better for a speedup.

    processes says how many fresh processes stand behind it: 1 is exploratory, a headline needs 6. Unmeasured ratios have
    no interval (low and high equal value) and verdict UNCLEAR; `note` then says what they are.
    """

    value: float
    low: float
    high: float
    verdict: Verdict
    provenance: Provenance
    processes: int = 1
    blocks: int = 0
    note: str = ""

    def __repr__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}x ({self.provenance})"
        kind = f"{self.processes} processes" if self.processes > 1 else "one process, exploratory"
        return f"{self.value:.3f}x [{self.low:.3f}, {self.high:.3f}] {self.verdict} ({self.provenance}, {kind})"


@dataclass(frozen=True)
class Recording:
    """One line of a module's `record_grid`: what `kpt-lab record` measures, on which grid, in how many fresh processes.

    `techniques` is the module's own tuple unless given here; 6 processes or more make a headline.
    """

    workload: Workload
    grid: Mapping[str, Sequence[Any]]
    dtype: str = "float32"
    processes: int = 1
    device: str = "cuda"
    techniques: tuple[Technique, ...] = ()
