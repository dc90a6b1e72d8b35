"""Where a rewritten graph runs eagerly: each FlexAttention call becomes a small compiled module of its own.

An uncompiled FlexAttention call computes and keeps the whole score matrix, so a graph with one in it must never run as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from kpt_lab.kernels.flashlight.prologue import Prologue, hoist

FLEX = torch.ops.higher_order.flex_attention


Compiler = Callable[[fx.GraphModule, list[Any]], Callable[..., Any]]


def finish(gm: fx.GraphModule, examples: Sequence[Any], compiler: Compiler | None = None) -> Finished:
    """A rewritten graph as a callable: block masks made beforehand and kept, the rest compiled whole or, without one, eager.

    examples: the graph's inputs as Dynamo gives them to a backend (fake tensors with symbolic sizes), or real ones.
    compiler: a Dynamo backend for the whole graph, `compile_fx` for example; it gets the block masks as inputs behind the others.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    # Dynamo hands real tensors over; what it traced with, with its symbolic sizes, is in the placeholders
    given = [n.meta.get("val", n.meta.get("example_value", x)) for n, x in zip(inputs, examples, strict=True)]
    fake_mode = detect_fake_mode(tuple(given)) or FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [fake_mode.from_tensor(x) if _is_real(x) else x for x in given]
    needs = [isinstance(x, torch.Tensor) and x.requires_grad for x in examples]
    fakes = [x.detach().requires_grad_() if need and not x.requires_grad else x for x, need in zip(fakes, needs, strict=True)]
    prologues, masks = hoist(gm, fakes, fake_mode, lambda module, given: compile_in(module, given, fake_mode))
    with tracing(TracingContext(fake_mode)):
        call = compiler(gm, [*fakes, *masks]) if compiler else alone(gm, [*fakes, *masks], fake_mode)
    return Finished(call, prologues)


class Finished:
    """Calls the graph's code with its inputs and its block masks; `prologues` say how often masks were built."""

    def __init__(self, call: Callable[..., Any], prologues: list[Prologue]) -> None:
        self.call, self.prologues = call, prologues

    def __call__(self, *inputs: Any) -> Any:
        return self.call(*inputs, *(mask for prologue in self.prologues for mask in prologue(inputs)))


def alone(gm: fx.GraphModule, examples: Sequence[Any], fake_mode: FakeTensorMode) -> fx.GraphModule:
    """The graph with each FlexAttention call replaced by a call of a compiled module; all else still runs eagerly.

    examples: the graph's inputs, fake tensors.
    """
    sites = [node for node in gm.graph.nodes if node.op == "call_function" and node.target is FLEX]
    if not sites:
        return gm
    values = _Values(gm, fake_mode)
    with fake_mode:
        values.run(*examples)
    for number, site in enumerate(sites):
        module, inputs = _region(gm, site)
        fakes = [values.known[node] for node in inputs]
        fakes = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in fakes]
        compiled = _Compiled(compile_in(module, fakes, fake_mode))
        name = f"flashlight_region_{number}"
        gm.add_submodule(name, compiled)
        with gm.graph.inserting_before(site):
            call = gm.graph.call_module(name, tuple(inputs))
        site.replace_all_uses_with(call)
        gm.graph.erase_node(site)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    return gm


def compile_in(module: fx.GraphModule, fakes: Sequence[Any], fake_mode: FakeTensorMode) -> Callable[..., Any]:
    """Inductor's code for a module on these fake inputs, in a tracing context of its own over the same symbolic sizes."""
    with tracing(TracingContext(fake_mode)):
        return compile_fx(module, list(fakes))  # type: ignore[return-value]


class _Compiled(torch.nn.Module):
    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Any) -> Any:
        return self.call(*inputs)


def _is_real(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and detect_fake_mode((x,)) is None


class _Values(fx.Interpreter):
    """Runs a graph on fake tensors and keeps every node's value, with whether it needs gradients."""

    def __init__(self, gm: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
        super().__init__(gm)
        self.known: dict[fx.Node, Any] = {}
        self.fake_mode = fake_mode

    def run_node(self, n: fx.Node) -> Any:
        # Flex by its shapes only: its autograd rule would trace the functions now
        found = self._flex(n) if n.op == "call_function" and n.target is FLEX else super().run_node(n)
        if n.op == "get_attr" and isinstance(found, torch.Tensor) and _is_real(found):
            found = self.fake_mode.from_tensor(found)
        self.known[n] = found
        return found

    def _flex(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        needs = any(isinstance(x, torch.Tensor) and x.requires_grad for x in (self.known[m] for m in n.all_input_nodes))
        with torch.no_grad():
            out, *rest = FLEX(*args, **kwargs)
        return (out.requires_grad_(needs and torch.is_grad_enabled()), *rest)


def _region(gm: fx.GraphModule, site: fx.Node) -> tuple[fx.GraphModule, list[fx.Node]]:
    """One call as a module of its own, and the nodes of `gm` that are its inputs."""
    graph, root = fx.Graph(), torch.nn.Module()
    inputs = [node for node in site.all_input_nodes if not _is_module(gm, node)]
    inner: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    for node in site.all_input_nodes:
        if node not in inner:
            name = str(node.target)
            root.add_module(name, getattr(gm, name))
            inner[node] = graph.get_attr(name)
    args = tree_map(lambda x: inner[x] if isinstance(x, fx.Node) else x, tuple(site.args))
    call = graph.call_function(FLEX, args)
    used = {user.args[1] for user in site.users}
    count = 1 + max((int(i) for i in used), default=0)  # type: ignore[arg-type]
    import operator

    graph.output(tuple(graph.call_function(operator.getitem, (call, i)) for i in range(count)))
    return fx.GraphModule(root, graph), inputs


def _is_module(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), torch.nn.Module)
