"""The ladder of attention kernels in counts, tables and figures, for its notebook: what is predicted, quoted and recorded."""

from __future__ import annotations

import statistics
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kpt_lab import evidence, look, ratios, tables
from kpt_lab.core import Cost, Metric, Target, Technique, Trial, Trials, Workload, to_dtype
from kpt_lab.kernels import attention
from kpt_lab.measure import quote

if TYPE_CHECKING:
    import plotly.graph_objects as go

HOW = "`kpt-lab record kernels.attention --out notebooks/phase1/results/attention`"
PARTS = "`python benchmarks/flashlight_on_gpu.py --record FILE --part NAME`"
CAPACITY = Metric(80e9, "B", "quoted", source="NVIDIA H100 Tensor Core GPU data sheet, H100 SXM: 80 GB HBM3")
WORKLOADS = {w.name: w for w in (attention.forward, attention.backward)}

QUOTED_FROM = (
    "our own exploratory run on an NVIDIA H100 80GB HBM3 with torch 2.11.0+cu130 on 2026-11-22: medians of triton.testing.do_bench in "
    "one process, written down as rounded rates, no samples kept"
)
_QUOTED: tuple[tuple[Technique, Mapping[tuple[int, int, int, int], tuple[float, float]]], ...] = (
    (attention.eager, {(4, 16, 4096, 128): (16, 16), (4, 32, 4096, 64): (8, 8)}),
    (attention.compiled, {(4, 16, 4096, 128): (60, 60), (4, 32, 4096, 64): (29, 29)}),
    (attention.sdpa_flash, {(4, 16, 4096, 128): (290, 290), (1, 16, 16384, 128): (307, 307), (4, 32, 4096, 64): (272, 272)}),
    (attention.sdpa_cudnn, {(4, 16, 4096, 128): (493, 531), (1, 16, 16384, 128): (511, 576), (4, 32, 4096, 64): (399, 426)}),
    (attention.flex, {(4, 16, 4096, 128): (357, 357), (1, 16, 16384, 128): (368, 368), (4, 32, 4096, 64): (244, 244)}),
    (attention.fa3, {(4, 16, 4096, 128): (680, 680), (1, 16, 16384, 128): (666, 666), (4, 32, 4096, 64): (450, 450)}),
)
"""Lowest and highest TFLOP/s of the forward, causal, bfloat16, by (batch, heads, length, width)."""


# ---- recorded and quoted


def recorded(folder: str | Path = "results") -> Trials:
    """The Trials of attention, forward and backward, that were recorded on a GPU; none where nothing is recorded yet."""
    from kpt_lab.records import load

    files = sorted(Path(folder).glob("attention.*.jsonl"))
    return load(files).where(device="cuda") if files else Trials()


def quoted() -> Trials:
    """The exploratory rates as quoted Trials: a time is the FLOPs over the rate."""
    return Trials(_quoted(technique, *each) for technique, rates in _QUOTED for each in rates.items())


def _quoted(technique: Technique, shape: tuple[int, int, int, int], rates: tuple[float, float]) -> Trial:
    names = ("batch", "heads", "length", "width")
    sizes = {**dict(zip(names, shape, strict=True)), "groups": 1, "variant": "causal"}
    work = _flops(attention.forward.name, "bfloat16", sizes)
    low, high = (work / (1e12 * rate) for rate in reversed(rates))
    time = Metric(2e-12 * work / sum(rates), "s", "quoted", low=low, high=high, source=QUOTED_FROM)
    return quote(attention.forward, technique, "h100-sxm", {"time": time}, source=QUOTED_FROM, dtype="bfloat16", **sizes)


def _flops(workload: str, dtype: str, sizes: Mapping[str, Any]) -> float:
    cost = WORKLOADS[workload].cost
    assert cost is not None
    return sum(cost(dtype=dtype, **sizes).flops.values())


# ---- predicted: what plain attention reads, writes and keeps


class Operation(NamedTuple):
    """One operation: the bytes that it reads and writes, and those that are held when it ends, the inputs left out."""

    name: str
    read: int
    written: int
    held: int


class _Counter(TorchDispatchMode):
    """Writes down every operation below autograd; what returns memory that it was given is a view and moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.held: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), out))
        known = {x.untyped_storage()._cdata for x in given}
        fresh = [x for x in made if x.untyped_storage()._cdata not in known]
        for x in fresh:
            self._hold(x.untyped_storage())
        if fresh or func._schema.is_mutable:
            read, written = sum(map(_size, given)), sum(map(_size, made))
            self.operations.append(Operation(func.overloadpacket.__name__, read, written, sum(self.held.values())))
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.held:
            self.held[key] = storage.nbytes()
            weakref.finalize(storage, self.held.pop, key, None)


def _size(x: torch.Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())  # an expanded tensor is read once


def operations(workload: Workload, *, dtype: str = "bfloat16", **sizes: Any) -> list[Operation]:
    """Every operation of attention's plain step, in order, counted on tensors that have a shape and no memory.

    For variants that capture no tensor ("plain", "causal", "window", "prefix", "dilated", "softcap").
    """
    whole: dict[str, Any] = {"batch": 1, "groups": 1, "variant": "causal", **sizes}
    batch, heads, groups, length, width, variant = (
        whole[name] for name in ("batch", "heads", "groups", "length", "width", "variant")
    )
    query, key, value = (
        torch.empty(batch, length, count, width, dtype=to_dtype(dtype), device="meta")
        for count in (heads, heads // groups, heads // groups)
    )
    step: Callable[..., Any] = attention.SPECIFICATIONS[variant]
    if workload is attention.backward:
        step = attention.forward_and_backward(step, torch.empty_like(query))
    with _Counter() as counter:
        step(query, key, value)
    return counter.operations


def moved(counted: Iterable[Operation]) -> int:
    """Bytes that operations read and write."""
    return sum(one.read + one.written for one in counted)


def peak(counted: Iterable[Operation]) -> int:
    """The most bytes that are held at once, the inputs left out."""
    return max(one.held for one in counted)


def bound(workload: Workload, target: Target, counted: Sequence[Operation], *, dtype: str = "bfloat16", **sizes: Any) -> float:
    """The least time in s of the plain step: its bytes over the bandwidth, and its products, which leave out no pair, over the peak."""
    dense = {**sizes, "variant": "plain"}
    work = _flops(workload.name, dtype, dense) * (6 / 7 if workload is attention.backward else 1)  # plain recomputes no scores
    return target.bound(Cost({}, moved(counted))).value + target.bound(Cost({dtype: work}, 0.0)).value


def longest(workload: Workload, capacity: float = CAPACITY.value, *, dtype: str = "bfloat16", **sizes: Any) -> int:
    """The longest sequence, a power of two, whose plain step and inputs fit the memory; at most 2**24 tokens are tried."""

    def needed(length: int) -> int:
        heads, groups = sizes["heads"], sizes.get("groups", 1)
        inputs = sizes.get("batch", 1) * length * sizes["width"] * (heads + 2 * heads // groups) * to_dtype(dtype).itemsize
        return inputs + peak(operations(workload, dtype=dtype, **{**sizes, "length": length}))

    return max((2**k for k in range(7, 25) if needed(2**k) <= capacity), default=0)


# ---- tables


def rates(trials: Trials) -> Iterator[tuple[Trial, float, float, float]]:
    """Of each technique in each cell its first Trial and TFLOP/s of the work that the mask leaves: median, lowest, highest."""
    for by in ratios.cells(Trials(t for t in trials if "time" in t.metrics and t.status == "ok")).values():
        for label, found in by.items():
            if label != ratios.COPY:
                one, times = found[0], [t.metrics["time"] for t in found]
                ends = [m.value for m in times] if len(times) > 1 else [x for x in (times[0].low, times[0].high) if x]
                middle = statistics.median(m.value for m in times)
                work = _flops(one.workload, one.dtype, one.params) / 1e12
                yield one, work / middle, work / max([*ends, middle]), work / min([*ends, middle])


def winners(trials: Trials, technique: str = "flashlight") -> str:
    """Markdown: of each cell the fastest baseline, what it reaches, and the technique's ratio over it; a sentence where there is none."""
    found = {(one.workload, frozenset(one.params.items()), one.label): rate for one, rate, *_ in rates(trials)}
    rows = []
    for s in ratios.speedups(trials):
        if s.label == technique and s.ratio:
            first = s.over[0]
            rate = found[first.workload, frozenset(first.params.items()), first.label]
            told = ", ".join(f"{name} {value}" for name, value in first.params.items())
            verdict = s.ratio.verdict + evidence.stale((s.trials[0], first))
            rows.append((s.cell.workload, told, first.label, f"{rate:.0f} TFLOP/s", tables.span(s.ratio), verdict))
    if not rows:
        return f"None of these is recorded yet; {PARTS} records them, by part."
    return tables.markdown(("operation", "inputs", "fastest baseline", "it reaches", f"{technique} over it", "verdict"), rows)


def rate_table(trials: Trials) -> str:
    """Markdown: a row for each technique, a column for each shape, TFLOP/s in the cells."""
    found: dict[str, dict[str, str]] = {}
    for one, rate, low, high in rates(trials):
        shape = ", ".join(f"{name} {one.params[name]}" for name in ("batch", "heads", "length", "width"))
        measured = one.metrics["time"].provenance == "measured"
        told = f"{rate:.0f}" if measured or f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f} to {high:.0f}"
        found.setdefault(one.label, {})[shape] = told
    shapes = list(dict.fromkeys(shape for by in found.values() for shape in by))
    return tables.markdown(
        ("TFLOP/s", *shapes), [(label, *(by.get(shape, "") for shape in shapes)) for label, by in found.items()]
    )


def peaks(trials: Trials) -> str:
    """Markdown: a row for each technique, a column for each size, and in the cells the peak of memory, or why there is none."""
    names = ("length", "batch", "heads")
    sizes = sorted({tuple(t.params[name] for name in names) for t in trials})
    rows = []
    for label in dict.fromkeys(t.label for t in trials if t.label != ratios.COPY):
        cells = [trials.where(label=label, **dict(zip(names, size, strict=True))) for size in sizes]
        rows.append((label, *(_peak(found) for found in cells)))
    heads = (f"{length} tokens, batch {batch}, heads {count}" for length, batch, count in sizes)
    return tables.markdown(("peak beyond the inputs", *heads), rows)


def _peak(trials: Trials) -> str:
    known = [t.metrics["memory.peak"].value for t in trials if "memory.peak" in t.metrics]
    if known:
        return look.quantity(max(known), "B")
    return next((t.status.replace("_", " ") for t in trials if t.status != "ok"), "")


# ---- figures


def ladder(trials: Trials, target: Target) -> go.Figure:
    """TFLOP/s of each technique against the length, a panel for each width of head; intervals as whiskers, the peak as a line."""
    found = list(rates(trials))
    if not found:
        raise ValueError("trials hold no time of an attention workload; pass those of attention.forward or attention.backward")
    widths = sorted({one.params["width"] for one, *_ in found})
    kinds = " and ".join(sorted({one.metrics["time"].provenance for one, *_ in found}))
    kind = found[0][0].dtype
    variants = ", ".join(dict.fromkeys(one.params["variant"] for one, *_ in found))
    named = list(dict.fromkeys(one.label for one, *_ in found))
    roof = f"peak of {target.name} in {kind}"
    notes = [f"FLOPs of the pairs that the mask leaves, over the time. The {roof}: {target.source[kind]}."]
    notes += [
        f"Quoted from {source}."
        for source in dict.fromkeys(str(one.source.get("publication") or "") for one, *_ in found)
        if source
    ]
    figure = look.frame(
        f"{found[0][0].workload}, {variants}: what each kernel reaches", f"{kinds}, {kind}", [f"width {w}" for w in widths], notes,
        [*named, roof], columns=len(widths), shared_y=True,
    )  # fmt: skip
    styles = look.styles(named)
    for column, width in enumerate(widths, 1):
        lengths = sorted({one.params["length"] for one, *_ in found})
        ends = [lengths[0] / 1.2, lengths[-1] * 1.2]
        line = {"color": look.colors().ink, "dash": "dot", "width": 1.2}
        figure.add_scatter(x=ends, y=[target.peaks[kind] / 1e12] * 2, name=roof, mode="lines", line=line, legendgroup=roof, showlegend=column == 1, row=1, col=column)  # fmt: skip
        for label in named:
            points = sorted(
                (one.params["length"], *rest) for one, *rest in found if (one.label, one.params["width"]) == (label, width)
            )
            figure.add_trace(_curve(label, points, styles[label], column == 1), row=1, col=column)
        figure.update_xaxes(title="tokens", type="log", tickvals=lengths, ticktext=[f"{n}" for n in lengths], col=column)
    figure.update_yaxes(title="TFLOP/s", rangemode="tozero", col=1)
    return figure


def _curve(label: str, points: Sequence[tuple[float, ...]], style: look.Style, shown: bool) -> go.Scatter:
    import plotly.graph_objects as go

    xs, middles, lows, highs = (list(each) for each in zip(*points, strict=True)) if points else ([], [], [], [])
    whiskers = {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
        "array": [high - middle for high, middle in zip(highs, middles, strict=True)],
        "arrayminus": [middle - low for low, middle in zip(lows, middles, strict=True)],
    }  # fmt: skip
    return go.Scatter(
        x=xs, y=[look.six(y) for y in middles], name=label, legendgroup=label, showlegend=shown, mode="lines+markers",
        line={"color": style.color, "dash": style.dash}, marker={"symbol": style.symbol, "size": 8}, error_y=whiskers,
    )  # fmt: skip


def memory(steps: Mapping[str, Sequence[Operation]], heading: str) -> go.Figure:
    """What is held behind each operation, one curve for each step, by name."""
    note = "Counted on tensors without memory; inputs left out. The operation's name is in the point's text."
    figure = look.frame(heading, "modelled", [""], [note], steps)
    for name, style in look.styles(steps).items():
        counted = steps[name]
        figure.add_scatter(
            x=list(range(1, len(counted) + 1)), y=[one.held for one in counted], name=name, text=[one.name for one in counted],
            mode="lines+markers", line={"color": style.color, "dash": style.dash, "shape": "hv"},
            marker={"symbol": style.symbol, "size": 7}, hovertemplate="%{text}: %{y:.3s}B held",
        )  # fmt: skip
    figure.update_xaxes(title="operation, in order")
    return figure.update_yaxes(title="bytes held", tickformat="~s", ticksuffix="B", rangemode="tozero")
