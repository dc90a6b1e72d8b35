"""What FlashLight sees in a callable, for its notebooks: graphs, expressions, the blocks of a mask, and errors against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import blocks, explain, flashlight, functions, index, lower, match
from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead
from kpt_lab.kernels.flashlight.explain import pattern
from kpt_lab.kernels.flashlight.expression import (
    PLACES,
    Apply,
    Attention,
    Constant,
    Coordinate,
    Expression,
    Lowering,
    Part,
    Refusal,
    readable,
)
from kpt_lab.kernels.flashlight.gallery import Variant

LARGE = 6  # parts that an expression has at least before a letter stands for it


# ---- looking without running


@dataclass
class Seen:
    """One graph of a callable as FlashLight reads it.

    dynamo: what Dynamo captured; form: its functional form, from which nothing is removed; lowered: the graph with fused kernels.
    attentions, refusals: of `form`; lowerings: in the order of `attentions`; inputs: what the graph was called with.
    """

    dynamo: fx.GraphModule | None = None
    form: fx.GraphModule | None = None
    lowered: fx.GraphModule | None = None
    attentions: list[Attention] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    lowerings: list[Lowering] = field(default_factory=list)
    inputs: tuple[Any, ...] = ()

    @property
    def part(self) -> Part:
        """The first softmax of the first attention."""
        return self.attentions[0].parts[0]

    @property
    def pattern(self) -> str:
        """The first attention as mathematics, letters for what occurs more than once."""
        return lettered(self.attentions[0])


def look_at(fn: Callable[..., Any], args: Sequence[Any], **options: Any) -> Seen:
    """Capture `fn` and read its graph; neither it nor a kernel is run. `options` are `lower.Options`'."""
    seen = Seen()

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        seen.dynamo = graph_module
        seen.form, drafts, seen.refusals = _matched(graph_module, inputs)
        seen.attentions = [draft.build() for draft in drafts]
        seen.lowered, again, _ = _matched(graph_module, inputs)
        wanted = lower.Options(**{"measure": False, **options})
        seen.lowerings = [lower.replace(seen.lowered, draft.build(), options=wanted) for draft in again]
        remove_dead(seen.lowered)
        (outputs,) = next(node for node in graph_module.graph.nodes if node.op == "output").args

        def nothing(*given: Any) -> list[None]:
            seen.inputs = given
            return [None] * len(outputs)

        return nothing

    torch._dynamo.reset()
    torch.compile(fn, backend=backend, fullgraph=True, dynamic=False)(*args)
    torch._dynamo.reset()
    return seen


def _matched(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> tuple[fx.GraphModule, list[match.Draft], list[Refusal]]:
    graph = functional_form(graph_module, inputs)
    given = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    for node, named in zip((n for n in graph.graph.nodes if n.op == "placeholder"), given, strict=True):
        node._rename(named.name.lower().removeprefix("l_").removesuffix("_"))  # captured tensors bear the caller's names
    drafts, refusals = match.find(graph)
    return graph, drafts, refusals


# ---- in words


def lettered(attention: Attention) -> str:
    """The attention as one line of mathematics; what occurs more than once is written once, under a letter."""
    text = pattern(attention)
    found: list[str] = []
    parts = [e for p in attention.parts for e in (p.score, p.mask) if e is not None]
    seen: dict[str, int] = {}
    for part in (each for expression in parts for each in expression.walk()):
        if isinstance(part, Apply) and sum(1 for _ in part.walk()) >= LARGE:
            seen[readable(part)] = seen.get(readable(part), 0) + 1
    for one in sorted(seen, key=len, reverse=True):
        if text.count(one) > 1:
            letter = "abcdefg"[len(found)]
            text = text.replace(f"({one})", letter).replace(one, letter)
            found.append(f"{letter} = {one}")
    return "; ".join([text, *found])


def lines(graph_module: fx.GraphModule) -> list[str]:
    """A line for each node of a graph: its name, its operator, its arguments and its shape; block masks' parts are left out."""
    found = []
    for node in graph_module.graph.nodes:
        parts = node.op == "call_function" and isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module"
        if node.op in ("output", "get_attr") or parts:
            continue
        shape = _shape(node)
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        told = "input" if node.op == "placeholder" else f"{target.split('.')[0]}({', '.join(map(_short, node.args))})"
        found.append(f"{node.name:20s} {told} {list(shape) if shape else ''}".rstrip())
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    held = node.meta.get("val", node.meta.get("example_value"))
    return tuple(held.shape) if isinstance(held, Tensor) else ()


def pairs(graph_module: fx.GraphModule, queries: int, keys: int) -> list[str]:
    """The nodes of a graph, its inputs left out, whose tensors end in (queries, keys) or (keys, queries)."""
    ends = {(queries, keys), (keys, queries)}
    return [n.name for n in graph_module.graph.nodes if n.op != "placeholder" and _shape(n)[-2:] in ends]


def _short(argument: Any) -> str:
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(map(_short, argument))}]" if len(argument) < 9 else "[block mask]"
    if isinstance(argument, dict):
        return "options"
    if isinstance(argument, slice):
        return ":"
    return f"{argument:.6g}" if isinstance(argument, float) else str(argument).replace("torch.", "")


class Step(NamedTuple):
    """One step of reading an element: how deep, which node at which index, its operator, and what the element is."""

    depth: int
    element: str
    operator: str
    becomes: str


def reading(seen: Seen) -> list[Step]:
    """How one element of what the first softmax takes is read; b, h, q and k are its places. Each element is read once."""
    assert seen.form is not None
    start = seen.attentions[0].softmaxes[0].args[0]
    assert isinstance(start, fx.Node)
    at = tuple(Coordinate(place) for place in PLACES[-len(_shape(start)) :])
    found: dict[str, Step] = {}
    for step in _steps(index.Reader(seen.form.graph, module=seen.form), start, at, 0):
        found.setdefault(step.element, step)
    return list(found.values())


def _steps(reader: index.Reader, node: fx.Node, at: Sequence[Expression], depth: int) -> Iterator[Step]:
    """Views change the index, operations ask their operands, products and inputs end it."""
    where, name = f"{node.name}[{', '.join(map(str, at))}]", index.name_of(node) or "input"
    below = reader.source(node, tuple(at))
    if below is not None:
        yield Step(depth, where, name, f"{below[0].name}[{', '.join(map(str, below[1]))}]")
        yield from _steps(reader, *below, depth + 1)
        return
    element = reader.element(node, tuple(at))
    yield Step(depth, where, name, str(element))
    for operand in node.all_input_nodes if isinstance(element, Apply) else ():
        shape = reader.shape(operand)
        own = zip(at[len(at) - len(shape) :], shape, strict=True)
        yield from _steps(reader, operand, [Constant(0) if extent == Constant(1) else i for i, extent in own], depth + 1)


# ---- the blocks of a mask


class Blocks(NamedTuple):
    """Of the first row of a batch and its first head, (query blocks, key blocks): which are computed whole, and which in part.

    needed: the share of pairs that the mask leaves; computed: the share of pairs in blocks that are not skipped.
    """

    full: Tensor
    partial: Tensor
    needed: float
    computed: float


def blocks_of(seen: Seen) -> Blocks:
    """The blocks of the first attention's mask, by the analysis that the kernels' block masks come from."""
    part = seen.part
    batch, heads, queries, keys = sizes(part)
    if part.mask is None:
        full = torch.ones(-(-queries // blocks.BLOCK), -(-keys // blocks.BLOCK), dtype=torch.bool)
        return Blocks(full, torch.zeros_like(full), 1.0, 1.0)
    mask, nodes = blocks.slotted(part.mask)
    every, some = blocks.Builder(mask, torch.device("cpu")).decide(batch, heads, queries, keys, *captured(seen, nodes))
    places = [torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate((1, 1, queries, keys))]
    function = functions.mask_function(part.mask)
    whole = function.module(*places, *captured(seen, function.buffers)).expand(1, 1, queries, keys)[0, 0]
    areas = _areas(queries)[:, None] * _areas(keys)
    share = float((some[0, 0] * areas).sum() / areas.sum())
    return Blocks(every[0, 0], some[0, 0] & ~every[0, 0], whole.double().mean().item(), share)


def _areas(length: int) -> Tensor:
    return torch.full((-(-length // blocks.BLOCK),), float(blocks.BLOCK)).index_fill_(
        0, torch.tensor(-1 % -(-length // blocks.BLOCK)), float((length - 1) % blocks.BLOCK + 1)
    )


def sizes(part: Part) -> tuple[int, int, int, int]:
    """Batch, query heads, queries and keys."""

    def extent(operand: Any, place: int) -> int:
        return functools.reduce(lambda n, dim: n * int(operand.node.meta["val"].shape[dim]), operand.dims[place], 1)

    return extent(part.query, 0), extent(part.query, 1), extent(part.query, 2), extent(part.key, 2)


def captured(seen: Seen, nodes: Sequence[fx.Node]) -> list[Any]:
    """The values that captured nodes of the graph have for its inputs."""
    assert seen.form is not None
    given = (node for node in seen.form.graph.nodes if node.op == "placeholder")
    known: dict[fx.Node, Any] = dict(zip(given, seen.inputs, strict=True))

    def value(node: fx.Node) -> Any:
        if node not in known:
            args: Any = fx.map_arg(node.args, value)
            kwargs: Any = fx.map_arg(node.kwargs, value)
            target: Any = node.target
            known[node] = getattr(seen.form, target) if node.op == "get_attr" else target(*args, **kwargs)
        return known[node]

    with torch.no_grad():
        return [value(node) for node in nodes]


# ---- errors


class Errors(NamedTuple):
    """Largest error over float64's largest element: of the output and of the gradients, fused and eager; and what fused it."""

    output: float
    eager: float
    gradient: float
    eager_gradient: float
    lowering: Lowering


def errors(variant: Variant, length: int = 512) -> Errors:
    """Run a variant fused and as written, forward and backward, and compare both with float64."""
    made = flashlight.apply(variant.function, _wanting(variant, length, torch.float32))
    runs = [
        _run(fn, _wanting(variant, length, dtype))
        for fn, dtype in ((variant.function, torch.float64), (made, torch.float32), (variant.function, torch.float32))
    ]
    exact = runs[0]
    far = [[max(map(_far, found[part], exact[part])) for part in (slice(0, 1), slice(1, None))] for found in runs[1:]]
    lowering = explain(made).entries[0].lowering
    assert lowering is not None
    return Errors(far[0][0], far[1][0], far[0][1], far[1][1], lowering)


def _wanting(variant: Variant, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    given = (x.to(dtype) if x.is_floating_point() else x for x in variant.arguments(length))
    return tuple(x.requires_grad_() if x.is_floating_point() else x for x in given)


def _run(fn: Callable[..., Tensor], args: Sequence[Tensor]) -> list[Tensor]:
    out = fn(*args)
    floats = [x for x in args if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), floats)]


def _far(given: Tensor, exact: Tensor) -> float:
    return ((given.double() - exact).abs().max() / exact.abs().max()).item()


def reason(fn: Callable[..., Any], args: Sequence[Any]) -> str:
    """Why a callable is left as it is, in the words of its refusal; "" where it is fused."""
    try:
        flashlight.apply(fn, tuple(args))
    except Unsupported as error:
        return str(error).removeprefix("no attention was fused: ")
    return ""


__all__ = ["Blocks", "Errors", "Seen", "Step", "blocks_of", "errors", "lettered", "lines", "look_at", "pairs", "reading", "reason"]  # fmt: skip
