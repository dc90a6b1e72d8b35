"""The backend: a captured graph with its attentions replaced by fused kernels, and a report on each softmax."""

from __future__ import annotations

import dataclasses
import itertools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import differential, lower, match, regions, shorter
from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead
from kpt_lab.kernels.flashlight.explain import Entry, Report, pattern, place
from kpt_lab.kernels.flashlight.expression import Attention, expressions

INNER = ("eager", "inductor")
NOT_CHECKED = "not checked"
_LONG = 512  # a dimension from which on it may be a length that makes the scores too many


class UncompiledWarning(UserWarning):
    """A fused form could not be compiled, so that nothing was fused in its graph, or could not be raced with others."""


class Backend:
    """A backend for torch.compile that fuses attentions, then hands the graph to `inner`.

    inner: "eager" runs the rest as it is, "inductor" compiles it. mode: as torch.compile's, for inductor.
    check: run each lowered attention beside the original before its first use.
    `reports` holds what happened, one Report a graph, in the order of capture.
    """

    def __init__(self, inner: str = "eager", mode: str | None = None, *, check: bool = True, **options: Any) -> None:
        if inner not in INNER:
            raise ValueError(f"inner is {inner!r}; accepted are {', '.join(INNER)}")
        self.inner, self.mode, self.check = inner, mode, check
        self.options = lower.Options(**options)
        self.reports: list[Report] = []
        self.before: list[Report] = []  # of the backend that this one goes on from, until it has reports of its own
        self.checked: dict[str, str] = {}
        self.too_long: set[int] = set()  # lengths whose scores are too many to be compared

    def again(self, inner: str, mode: str | None) -> Backend:
        """One with the same options, that compares nothing again which was compared."""
        other = Backend(inner, mode, check=self.check, **dataclasses.asdict(self.options))
        other.checked, other.before, other.too_long = self.checked, self.reports, self.too_long
        return other

    def __call__(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        report = Report()
        self.reports.append(report)
        try:
            graph = functional_form(graph_module, inputs)
        except Unsupported as error:
            report.refusal = str(error)
            return self._finish(graph_module, inputs, rewritten=False)
        drafts, refusals = match.find(graph, self.options.empty_rows == "zero")
        for refusal in refusals:
            report.entries.append(Entry(place(refusal.softmax), False, reason=refusal.reason))
        replaced = [self._replace(graph, draft, report) for draft in drafts]
        if not any(replaced):
            return self._finish(graph_module, inputs, rewritten=False)
        remove_dead(graph)
        try:
            return self._finish(graph, inputs, rewritten=True)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # of torch, Triton or a C++ compiler, which share no class; told, and the graph runs as it was
            told = f"the fused form could not be compiled: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            report.entries = [
                dataclasses.replace(x, matched=False, lowering=None, reason=told) if x.matched else x for x in report.entries
            ]
            warnings.warn(f"flashlight: {told}; the graph runs as it was", UncompiledWarning, stacklevel=2)
            return self._finish(graph_module, inputs, rewritten=False)

    def _replace(self, graph: fx.GraphModule, draft: match.Draft, report: Report) -> bool:
        """Lower one attention in the graph, and say so in the report; False where it is refused."""
        where = [place(anchor) for anchor in draft.anchors]
        attention = draft.build()
        text = pattern(attention)
        try:
            checked = self._checked(graph, attention) if self.check else NOT_CHECKED
            done = lower.replace(graph, attention, options=_suited(self.options, attention))
        except (Unsupported, differential.Differs) as error:
            report.entries += [Entry(x, False, text, reason=str(error)) for x in where]
            return False
        done = dataclasses.replace(done, checked=checked)
        report.entries += [Entry(x, True, text, lowering=done) for x in where]
        return True

    def _checked(self, graph: fx.GraphModule, attention: Attention) -> str:
        """What the differential check compared; remembered for attentions that are alike."""
        key = _signature(attention)
        if key not in self.checked:
            self.checked[key] = self.compare(graph, attention)
        return self.checked[key]

    def compare(self, graph: fx.GraphModule, attention: Attention) -> str:
        """Run one attention of a graph as it was and lowered, and say on what; Differs where they differ."""
        training = torch.is_grad_enabled() and any(
            isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].requires_grad
            for node in graph.graph.nodes
            if node.op == "placeholder"
        )
        options = dataclasses.replace(_suited(self.options, attention), measure=False, training=training)

        def lowered(gm: fx.GraphModule, copied: Attention) -> Any:
            return lower.replace(gm, copied, options=options)

        lenient = self.options.empty_rows == "zero"
        try:
            found = differential.check(graph, attention, lowered, training=training, lenient=lenient)
        except differential.TooLarge as error:
            found = f"not checked: {error}"
        if NOT_CHECKED in found:
            shape = attention.softmaxes[0].meta["val"].shape
            self.too_long |= {size for size in shape if isinstance(size, int) and size >= _LONG}
        return found

    def shortened(self, fn: Callable[..., Any], args: Sequence[Any]) -> None:
        """Check at small lengths what was too large to be checked; a difference is a refusal of the whole callable."""
        try:
            found = shorter.check(fn, args, self.too_long, self)
        except differential.Differs as error:
            raise Unsupported(f"no attention was fused: {error}") from error
        for report in self.reports:
            report.entries = [
                dataclasses.replace(x, lowering=dataclasses.replace(x.lowering, checked=found))
                if x.lowering and NOT_CHECKED in x.lowering.checked
                else x
                for x in report.entries
            ]
        self.checked = {key: found if NOT_CHECKED in told else told for key, told in self.checked.items()}

    def _finish(self, graph: fx.GraphModule, inputs: Sequence[Any], rewritten: bool) -> Callable[..., Any]:
        compiler = _inductor(self.mode) if self.inner == "inductor" else None
        if rewritten:
            return regions.finish(graph, inputs, compiler)
        return compiler(graph, list(inputs)) if compiler else graph.forward


def _inductor(mode: str | None) -> Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]:
    """Inductor as a backend in one of torch.compile's modes."""
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    patches = list_mode_options(mode) if mode not in (None, "default") else {}
    return lambda gm, examples: compile_fx(gm, examples, config_patches=patches)  # type: ignore[return-value]


def _suited(options: lower.Options, attention: Attention) -> lower.Options:
    """The options for one attention: where the graph itself makes empty rows zero, that is what they give."""
    zero = any(p.fill == "zero" for p in attention.parts) and all(p.fill in ("zero", "none") for p in attention.parts)
    return dataclasses.replace(options, empty_rows="zero") if zero else options


def _signature(attention: Attention) -> str:
    """The same for attentions that the same check speaks for: pattern, shapes and dtypes."""
    nodes = [attention.value, *(x for p in attention.parts for x in (p.query, p.key))]
    shapes = [(str(tuple(x.node.meta["val"].shape)), str(x.node.meta["val"].dtype), x.dims) for x in nodes]
    loads = [
        (str(tuple(load.tensor.meta["val"].shape)), str(load.tensor.meta["val"].dtype))
        for expression in expressions(attention)
        for load in expression.walk()
        if isinstance(load, differential.Load)
    ]
    fills = [(p.fill, p.groups) for p in attention.parts]
    names = pattern(attention)
    for i, load in enumerate(x for e in expressions(attention) for x in e.walk()):
        if isinstance(load, differential.Load):
            names = names.replace(load.tensor.name, f"t{i}")
    return repr((names, shapes, loads, fills, attention.dims, attention.dropout))


class Rewritten:
    """A callable whose attentions are fused when it runs; everything else of the original is reached through it.

    Under torch.compile it stays a callable of its own (a graph break), since a nested compilation would lose the rewrite:
    `flashlight >> baselines.compiled` compiles the rest as well.
    """

    def __init__(self, fn: Callable[..., Any], backend: Backend, dynamic: bool | None = None) -> None:
        self.fn, self.backend, self.dynamic = fn, backend, dynamic
        self.call = torch.compile(_own_frame(fn), backend=backend, dynamic=dynamic)
        self.settled = 0  # graphs for which nothing is left to be raced

    @torch.compiler.disable(reason="flashlight's rewrite would be lost in another compilation; use flashlight >> torch.compile")
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.call(*args, **kwargs)
        if self.settled != len(self.backend.reports):
            self._settle(args, kwargs)
        return result

    def _settle(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Where a graph was captured that has an attention for two kernels: race them, and start anew with what is faster."""
        reports, self.settled = self.backend.reports[self.settled :], len(self.backend.reports)
        if not any(entry.lowering and entry.lowering.unraced for report in reports for entry in report.entries):
            return
        from kpt_lab.kernels.flashlight.tune import raced

        try:
            faster = raced(self, args, kwargs)
        except torch.AcceleratorError:  # the device is lost: nothing can go on
            raise
        except (
            Unsupported,
            RuntimeError,
        ) as error:  # a rival refused, or did not fit: what was captured goes on, and that is told
            told = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            warnings.warn(
                f"flashlight: kernels could not be raced, torch's own choice stays: {told}", UncompiledWarning, stacklevel=3
            )
            return
        if faster:
            self.backend = self.backend.again(self.backend.inner, self.backend.mode)
            self.call = torch.compile(_own_frame(self.fn), backend=self.backend, dynamic=self.dynamic)
            self.call(*map(copied, args), **{name: copied(x) for name, x in kwargs.items()})
            self.settled = len(self.backend.reports)

    def compile_with(self, mode: str | None = None, dynamic: bool | None = None) -> Rewritten:
        """The same with the rest of its graphs compiled by Inductor."""
        return Rewritten(self.fn, self.backend.again("inductor", mode), dynamic)

    def __getattr__(self, name: str) -> Any:
        if name in ("fn", "backend", "call", "dynamic", "settled"):
            raise AttributeError(name)
        return getattr(self.fn, name)

    def __repr__(self) -> str:
        return f"flashlight({getattr(self.fn, '__name__', type(self.fn).__name__)})"


_COUNT = itertools.count()


def _own_frame(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A call of `fn` whose code is its own: torch.compile counts compilations, and remembers sizes, by code, for all callers together."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    code = call.__code__.replace(co_name=f"flashlight_{next(_COUNT)}")
    return types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)


def apply(fn: Callable[..., Any], args: tuple, **options: Any) -> Rewritten:
    """`fn` with its attentions fused; Unsupported with the reasons where there is none that can be.

    It is run once on copies of `args`, so that what can't be rewritten is known now; buffers and random state are put back.
    """
    made = Rewritten(fn, Backend(**options))
    copies = [copied(x) for x in args]
    buffers = {name: buffer.clone() for name, buffer in fn.named_buffers()} if isinstance(fn, nn.Module) else {}
    devices = sorted({x.get_device() for x in args if isinstance(x, torch.Tensor) and x.is_cuda})
    with torch.random.fork_rng(devices=devices):
        made(*copies)
    if isinstance(fn, nn.Module):
        with torch.no_grad():
            for name, buffer in fn.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):  # written, it would void outputs of before
                    buffer.copy_(buffers[name])
    if made.backend.too_long:
        made.backend.shortened(fn, copies)
    entries = [entry for report in made.backend.reports for entry in report.entries]
    if not any(entry.matched for entry in entries):
        reasons = [r.refusal for r in made.backend.reports if r.refusal]
        reasons += [entry.reason for entry in entries]
        if not made.backend.reports:
            reasons = ["torch.compile captured no graph of it; TORCH_LOGS=graph_breaks says why"]
        raise Unsupported("no attention was fused: " + ("; ".join(dict.fromkeys(reasons)) or "there is no softmax"))
    return made


def copied(given: Any) -> Any:
    """A tensor with the same values and the very same strides, expanded dimensions too: other ones would compile anew."""
    if not isinstance(given, torch.Tensor):
        return given
    x = given.detach()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    values = x.as_strided((extent,), (1,), x.storage_offset()).clone()
    return values.as_strided(x.shape, x.stride()).requires_grad_(given.requires_grad)
