"""Before its first use a lowered attention is run beside the original on made-up inputs; where they differ it isn't used.

Only the part of the graph between the operands and the output is run, with random operands, with masks that leave rows empty,
with infinite biases, and, where sizes are symbolic, at an odd length and at length 1. FlexAttention's operator runs here as its
definition, which shows that the score's and the mask's functions are right; its kernels have tests of their own.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import tracing

from kpt_lab.kernels.flashlight.bounds import Bounded
from kpt_lab.kernels.flashlight.capture import remove_dead
from kpt_lab.kernels.flashlight.expression import Apply, Attention, Load, Operand, Size, expressions
from kpt_lab.kernels.flashlight.made_up import Inputs, Unsuited, number
from kpt_lab.kernels.flashlight.nodes import name_of, value

LARGEST = 1 << 26  # scores of one check: 256 MiB in float32
LONGEST = 400  # nodes between operands and output
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
NO_WORSE = 2.0


class Differs(Exception):
    """The rewritten attention gives something else than the original; the message says on which inputs."""


Lower = Callable[[fx.GraphModule, Attention], Any]


def leaves(attention: Attention) -> list[fx.Node]:
    """The nodes that an attention reads, without views that stand before its operands."""
    found = [attention.value.node, *(x.node for p in attention.parts for x in (p.query, p.key))]
    bases = []
    for node in found:
        while name_of(node) in ("view", "expand", "unsqueeze", "select"):
            node = node.args[0]  # type: ignore[assignment]
        bases.append(node)
    for expression in expressions(attention):
        bases += [x.tensor if isinstance(x, Load) else x.node for x in expression.walk() if isinstance(x, (Load, Size))]
    return list(dict.fromkeys(bases))


class Region:
    """A copy of the graph between an attention's leaves and its output, once as it was and once lowered."""

    def __init__(self, gm: fx.GraphModule, attention: Attention, lower: Lower) -> None:
        self.attention = attention
        ends = [attention.output, attention.value.node, *(x.node for p in attention.parts for x in (p.query, p.key))]
        self.nodes = _between(gm.graph, leaves(attention), ends)
        self.original, _ = self._copy(gm)
        copy, new = self._copy(gm)
        mapped = _moved(attention, new)
        lower(copy, dataclasses.replace(mapped, dropout=0.0))
        remove_dead(copy)
        self.candidate = copy
        self.inputs = [node for node in self.nodes if node not in self.inner]

    def _copy(self, gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
        graph, new = fx.Graph(), {}
        stops = set(leaves(self.attention))
        self.inner = {n for n in self.nodes if n not in stops and n.op != "placeholder"}
        for node in self.nodes:
            if node not in self.inner:
                new[node] = graph.placeholder(node.name)
                new[node].meta = dict(node.meta)
        for node in self.nodes:
            if node in self.inner:
                new[node] = graph.node_copy(node, new.__getitem__)
                if name_of(node) == "dropout":
                    new[node].args = (new[node].args[0], new[node].args[1], False)
        graph.output(new[self.attention.output])
        return fx.GraphModule(gm, graph), new


def _between(graph: fx.Graph, stops: Sequence[fx.Node], ends: Iterable[fx.Node]) -> list[fx.Node]:
    seen, queue = set(stops), [node for node in ends if node not in stops]
    seen.update(queue)
    while queue:
        for parent in queue.pop().all_input_nodes:
            if parent not in seen:
                seen.add(parent)
                if parent.op != "placeholder":
                    queue.append(parent)
        if len(seen) > LONGEST:
            raise TooLarge(f"more than {LONGEST} operations lie between the operands and the output")
    return [node for node in graph.nodes if node in seen]


class TooLarge(Exception):
    """The check can't be run at these sizes; the message says why."""


def _moved(attention: Attention, new: dict[fx.Node, fx.Node]) -> Attention:
    """The attention in a copied graph."""

    def expression(e: Any) -> Any:
        match e:
            case Load(node, index):
                return Load(new[node], tuple(map(expression, index)))
            case Size(node):
                return Size(new[node])
            case Apply(op, arguments, dtype):
                return Apply(op, tuple(map(expression, arguments)), dtype)
        return e

    def operand(o: Operand) -> Operand:
        return Operand(new[o.node], o.dims)

    parts = tuple(
        dataclasses.replace(
            p, query=operand(p.query), key=operand(p.key), score=expression(p.score), scale=expression(p.scale),
            mask=expression(p.mask), coefficient=expression(p.coefficient),
        )
        for p in attention.parts
    )  # fmt: skip
    softmaxes = tuple(new.get(node, node) for node in attention.softmaxes)
    return dataclasses.replace(
        attention, parts=parts, value=operand(attention.value), softmaxes=softmaxes, output=new[attention.output]
    )


def check(gm: fx.GraphModule, attention: Attention, lower: Lower, *, training: bool, lenient: bool) -> str:
    """Run both and say in a few words what was compared; Differs where they differ, Unsupported where nothing lowers it."""
    region = Region(gm, attention, lower)
    symbols = _symbols(region.inputs)
    done: list[str] = []
    skipped: dict[str, None] = {}
    for name, sizes in _sizes(symbols):
        count = _scores(attention, sizes)
        if count is None or count > LARGEST:
            skipped[f"{name} not checked: {count or 'unknown'} scores are too many to hold"] = None
            continue
        for kind in ("random", "adversarial"):
            if kind == "adversarial" and lenient:
                continue
            try:
                inputs = Inputs(region, sizes, kind).tensors()
                _compare(region, inputs, f"{kind} inputs at {name}", training and kind == "random", bool(symbols))
            except Unsuited as error:
                skipped[f"{kind} at {name} not checked: {error}"] = None
            else:
                done.append(f"{kind} at {name}")
    return "; ".join([", ".join(done) or "nothing was compared", *skipped])


def _symbols(inputs: Sequence[fx.Node]) -> list[Any]:
    """The symbols of the inputs' sizes, each with its value at the call at hand, or 2 where that isn't known."""
    found: dict[Any, int] = {}
    for node in inputs:
        held = value(node)
        for size in (*held.shape, *held.stride()) if isinstance(held, torch.Tensor) else (held,):
            if isinstance(size, (torch.SymInt, torch.SymFloat)):
                for symbol in size.node.expr.free_symbols:
                    found.setdefault(symbol, 2)
                if isinstance(size, torch.SymInt) and size.node.expr in found:
                    found[size.node.expr] = int(size.node.hint or 2)
    return list(found.items())


def _sizes(symbols: list[tuple[Any, int]]) -> list[tuple[str, dict[Any, int]]]:
    """Which sizes to check at: those of the call; symbolic ones also small and odd, and 1."""
    if not symbols:
        return [("the sizes of the call", {})]
    # what is equal in the call may have to be: torch asks no equality of a table's extent and the indices into it
    apart, alike = list(range(len(symbols))), list(dict.fromkeys(size for _, size in symbols))
    equal = [alike.index(size) for _, size in symbols]
    found = [
        ("small sizes", {symbol: min(size, 37 + 2 * i) for i, (symbol, size) in zip(equal, symbols, strict=True)}),
        ("odd lengths", {symbol: 2 * i + 3 for i, (symbol, _) in zip(equal, symbols, strict=True)}),
        ("length 1", {s: 1 for s, _ in symbols}),
    ]
    if equal != apart:
        found.append(("unequal lengths", {symbol: 2 * i + 3 for i, (symbol, _) in zip(apart, symbols, strict=True)}))
    return found


def _scores(attention: Attention, sizes: dict[Any, int]) -> int | None:
    shape = value(attention.softmaxes[0]).shape
    count = 1
    try:
        for extent in shape:
            count *= number(extent, sizes)
    except TypeError:
        return None
    return count


def _compare(region: Region, inputs: list[Any], where: str, gradients: bool, sized: bool) -> None:
    """Differs where the two do; Unsuited where the original doesn't run, or the graph was not captured for such sizes."""
    floats = [x for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
    results = []
    for module in (region.original, region.candidate):
        for x in floats:
            x.requires_grad_(gradients)
        try:
            # Flex would trace its gradients in the compilation under way
            with tracing(None), torch.set_grad_enabled(gradients):
                bounded = module is region.original and any(x.is_cuda for x in inputs if isinstance(x, torch.Tensor))
                out = Bounded(module).run(*inputs) if bounded else module(*inputs)
                grads = torch.autograd.grad(out.float().square().sum(), floats, allow_unused=True) if gradients else ()
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            told = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
            if module is region.original:
                raise Unsuited(f"the original fails there ({told})") from error
            if sized and where.endswith("length 1"):  # Dynamo captures symbolic sizes for lengths of 2 and more
                raise Unsuited(f"the graph was not captured for it ({told})") from error
            raise Differs(f"the lowered one fails on {where}, where the original runs ({told})") from error
        results.append((out.detach(), *grads))
    tolerance = TOLERANCE.get(results[0][0].dtype, 4e-2)
    exact: tuple[torch.Tensor | None, ...] = ()
    for i, (wanted, given) in enumerate(zip(*results, strict=True)):
        if wanted is None or given is None:
            continue
        kept = wanted.isfinite() if i and given.shape == wanted.shape else ...
        if kept is not ...:  # on a row without keys eager's gradients are NaN, and flow where ours don't
            given, wanted = given[kept], wanted[kept]
        found = _error(given, wanted)
        if not found <= tolerance * (1 if i == 0 else 10):
            exact = exact or _exact(region, inputs, gradients)
            reference = exact[i] if exact else None
            if reference is not None and _no_worse(given, wanted, reference[kept]):
                continue
            what = "output" if i == 0 else f"gradient of {operator.getitem(region.inputs, 0).name} or another input"
            raise Differs(f"the {what} differs from the original by {found:.2g} of its largest element on {where}")


def _exact(region: Region, inputs: list[Any], gradients: bool) -> tuple[torch.Tensor | None, ...]:
    """What the original gives in float64 where it was asked in half precision; () where it doesn't run there."""
    if not any(isinstance(x, torch.Tensor) and x.dtype in (torch.float16, torch.bfloat16) for x in inputs):
        return ()
    wide = [x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    floats = [x.requires_grad_(gradients) for x in wide if isinstance(x, torch.Tensor) and x.is_floating_point()]
    try:
        with torch.set_grad_enabled(gradients):
            out = region.original(*wide)
        return out.detach(), *(torch.autograd.grad(out.square().sum(), floats, allow_unused=True) if gradients else ())
    except (RuntimeError, ValueError, TypeError):
        return ()


def _no_worse(given: torch.Tensor, wanted: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether the lowered one's error, as a norm, is at most NO_WORSE times the original's: both round, at other places."""
    if not given.shape == wanted.shape == exact.shape or given.dtype != wanted.dtype:
        return False
    finite = exact.isfinite()
    if not (torch.equal(finite, given.isfinite()) and torch.equal(finite, wanted.isfinite())) or not finite.any():
        return False
    mine, theirs = ((x.double() - exact)[finite] for x in (given, wanted))
    largest = (
        mine.abs().max() <= 2 * NO_WORSE * theirs.abs().max()
    )  # one element each, so by chance further apart than the whole
    return bool(largest and mine.norm() <= NO_WORSE * theirs.norm())


def _error(given: torch.Tensor, wanted: torch.Tensor) -> float:
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        return float("inf")
    if not torch.equal(given.isnan(), wanted.isnan()):
        return float("inf")
    wanted, given = wanted.double().nan_to_num(), given.double().nan_to_num()
    if not wanted.numel():
        return 0.0
    return float((given - wanted).abs().max() / wanted.abs().max().clamp(min=1e-2))
