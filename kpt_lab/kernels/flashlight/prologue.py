"""Block masks are made before the graph runs, and only when what they are made of has changed.

`hoist` takes every builder of a block mask out of a graph, with the nodes that lead to it. What it makes is kept while the
graph's inputs that it reads are the same tensors at the same version, so that a fixed mask costs a look-up and a changing one is
built again. Tensors made in inference mode have no version: then it is built each time.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from kpt_lab.kernels.flashlight.blocks import NAMES, TRANSPOSED, Builder

KEPT = 8  # block masks of one builder, for as many lengths or batches as alternate
HEAVY = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "convolution", "conv", "softmax", "attention", "embedding")
RANDOM = ("rand", "bernoulli", "dropout", "multinomial", "normal")
Source = tuple[int, int | None]  # an input of the graph by position, or one of its sizes


class Prologue:
    """Makes one block mask from a graph's inputs, or gives the one that it made before."""

    def __init__(self, sources: Sequence[Source], make: Callable[..., Sequence[torch.Tensor]]) -> None:
        self.sources, self.make = sources, make
        self.made, self.found = 0, 0  # how often it was built, and how often a kept one was given
        self._kept: list[tuple[tuple[Any, ...], tuple[torch.Tensor, ...]]] = []

    def __call__(self, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        values = [inputs[i] if dim is None else inputs[i].shape[dim] for i, dim in self.sources]
        for position, (key, masks) in enumerate(self._kept):
            if all(map(_same, key, values)):
                if position:
                    self._kept.insert(0, self._kept.pop(position))
                self.found += 1
                return masks
        with torch.no_grad():
            masks = tuple(self.make(*values))
        self.made += 1
        if not any(isinstance(x, torch.Tensor) and x.is_inference() for x in values):
            key = tuple((weakref.ref(x), x._version) if isinstance(x, torch.Tensor) else x for x in values)
            self._kept = [(key, masks), *(kept for kept in self._kept if _alive(kept[0]))][:KEPT]
        return masks


def _same(kept: Any, value: Any) -> bool:
    if not isinstance(kept, tuple):
        return bool(kept == value)
    return kept[0]() is value and not value.is_inference() and kept[1] == value._version


def _alive(key: tuple[Any, ...]) -> bool:
    return all(not isinstance(part, tuple) or part[0]() is not None for part in key)


def hoist(
    gm: fx.GraphModule, examples: Sequence[Any], fake_mode: FakeTensorMode, compiler: Callable[..., Callable[..., Any]]
) -> tuple[list[Prologue], list[Any]]:
    """Take the builders out of `gm`; their results become inputs behind the others, whose fake values are given as well.

    compiler: `(module, fakes) -> callable`, for the modules that build. A builder that needs more than light arithmetic on the
    graph's inputs stays in the graph and is made there each time.
    """
    prologues: list[Prologue] = []
    fakes: list[Any] = []
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    sizes = _sizes(examples)
    for node in list(gm.graph.nodes):
        if node.op != "call_module" or not isinstance(gm.get_submodule(str(node.target)), Builder):
            continue
        cut = _cut(gm, node, inputs, examples, sizes)
        if cut is None:
            continue
        module, sources = cut
        given = [examples[i] if dim is None else examples[i].shape[dim] for i, dim in sources]
        given = [x.detach() if isinstance(x, torch.Tensor) else x for x in given]
        builder = gm.get_submodule(str(node.target))
        with fake_mode, torch.no_grad():
            made = module(*given)
        # a few small tensors on a CPU aren't worth a compiler's seconds; what is evaluated at every place is, for its memory
        small = builder.device.type == "cpu" and not builder.evaluated
        with torch.no_grad():
            prologues.append(Prologue(sources, module if small else compiler(module, given)))
        _hand_over(gm, node, made, len(fakes))
        fakes.extend(made)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return prologues, fakes


def _sizes(examples: Sequence[Any]) -> dict[str, Source]:
    """Where each symbolic integer can be read from the inputs, by its expression."""
    found: dict[str, Source] = {}
    for i, x in enumerate(examples):
        if isinstance(x, torch.SymInt):
            found[str(x.node.expr)] = (i, None)
    for i, x in enumerate(examples):
        for dim, size in enumerate(x.shape if isinstance(x, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt):
                found.setdefault(str(size.node.expr), (i, dim))
    return found


def _cut(
    gm: fx.GraphModule, builder: fx.Node, inputs: list[fx.Node], examples: Sequence[Any], sizes: dict[str, Source]
) -> tuple[fx.GraphModule, list[Source]] | None:
    """A module that makes one builder's result from inputs of the graph, and which those are; None where it can't be cut out."""
    graph, root = fx.Graph(), torch.nn.Module()
    sources: dict[Source, fx.Node] = {}
    inner: dict[fx.Node, fx.Node] = {}

    def source(of: Source) -> fx.Node:
        if of not in sources:
            sources[of] = graph.placeholder(f"input_{len(sources)}")
        return sources[of]

    wanted, needed = [builder], []
    while wanted:
        node = wanted.pop()
        if node in inner or node in needed:
            continue
        value = node.meta.get("val", node.meta.get("example_value"))
        if node.op == "placeholder":
            inner[node] = source((inputs.index(node), None))
        elif isinstance(value, torch.SymInt) and str(value.node.expr) in sizes:
            inner[node] = source(sizes[str(value.node.expr)])
        elif _is_size(node) and (at := _size_of_input(node, inputs)) is not None:
            inner[node] = source(at)
        elif node.op == "get_attr":
            return None  # a constant of the module: small, but its version is not an input's
        elif node is not builder and not _light(node):
            return None
        else:
            needed.append(node)
            wanted.extend(node.all_input_nodes)
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in sorted(needed, key=order.__getitem__):
        inner[node] = graph.node_copy(node, inner.__getitem__)
    root.add_module(str(builder.target), gm.get_submodule(str(builder.target)))
    # one by one, since Inductor takes flat outputs only
    count = len(NAMES) + (len(TRANSPOSED) if gm.get_submodule(str(builder.target)).transposed else 0)
    graph.output(tuple(graph.call_function(operator.getitem, (inner[builder], i)) for i in range(count)))
    return fx.GraphModule(root, graph), list(sources)


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (torch.ops.aten.sym_size.int,)


def _size_of_input(node: fx.Node, inputs: list[fx.Node]) -> Source | None:
    tensor, dim = node.args
    return (inputs.index(tensor), int(dim)) if tensor in inputs else None  # type: ignore[arg-type]


def _light(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    schema = getattr(node.target, "_schema", None)
    mutable = bool(schema is not None and schema.is_mutable)
    return not mutable and not any(name == heavy or name.startswith(heavy + "_") for heavy in HEAVY) and not any(
        name.startswith(word) for word in RANDOM
    )  # fmt: skip


def _hand_over(gm: fx.GraphModule, builder: fx.Node, made: Sequence[torch.Tensor], already: int) -> None:
    """Replace the builder's results by new inputs behind all others."""
    last = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    new = []
    for i, value in enumerate(made):
        with gm.graph.inserting_after(last):
            last = gm.graph.placeholder(f"flashlight_prologue_{already + i}")
        last.meta["val"] = value
        last._dynamo_source = None  # asked for where the others come from Dynamo
        new.append(last)
    for user in list(builder.users):
        if user.target is not operator.getitem:
            raise TypeError(f"{user.name!r} uses a block mask's builder otherwise than by getitem")
        user.replace_all_uses_with(new[user.args[1]])  # type: ignore[index]
        gm.graph.erase_node(user)
    gm.graph.erase_node(builder)
