"""From the graph that Dynamo hands to a backend to a functional one in ATen's operators, autograd still to come.

The operators are those before dispatch: matmul, einsum and softmax stay whole, so the graph trains as the original does;
views that may alias and writes in place are gone. Writes to the inputs become copies at the end of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from kpt_lab.core import Unsupported


def functional_form(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> fx.GraphModule:
    """The same function of the same inputs as a functional graph of ATen operators; Unsupported says why there is none."""
    # Dynamo enters a transform by calls that have nothing in common but the package that defines them; to ask torch for the
    # depth of transforms while the graph runs would be too late, since an error there leaves the transform entered
    if any("functorch" in getattr(node.target, "__module__", "") for node in graph_module.graph.nodes if callable(node.target)):
        raise Unsupported("the graph uses vmap or another transform of torch.func")
    mode = detect_fake_mode(inputs)
    if mode is None:
        raise Unsupported("the graph comes without fake tensors; capture it with torch.compile")
    with mode:
        fakes = [_stand_in(x) for x in _examples(graph_module, inputs)]
    written: list[tuple[int, Any]] = []

    def functional(*args: Any) -> Any:
        with FunctionalTensorMode(pre_dispatch=True, export=True):
            wrapped = [FunctionalTensor.to_functional(x) if isinstance(x, torch.Tensor) else x for x in args]
            outputs = fx.Interpreter(graph_module).run(*wrapped)
            changes = [(i, _plain(x)) for i, x in enumerate(wrapped) if _written(x, i)]
            written[:] = [(i, None) for i, _ in changes]
            return tree_map(_plain, outputs), tuple(change for _, change in changes)

    try:
        with mode, fx.traceback.preserve_node_meta():
            graph = make_fx(functional, pre_dispatch=True)(*fakes)
    except Unsupported:
        raise
    except Exception as error:  # whatever tracing raises, the original graph still runs
        reason = str(error).strip().splitlines()
        raise Unsupported(f"the graph has no functional form: {type(error).__name__}: {reason[0] if reason else ''}") from error
    _write_back(graph, [i for i, _ in written])
    _tidy(graph)
    placeholders = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, fake in zip(placeholders, fakes, strict=True):
        node.meta["val"] = fake  # what was traced with forgot whether it requires a gradient
    return graph


def _examples(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Fake inputs with symbolic sizes: Dynamo keeps them with the placeholders, and hands over real tensors beside them."""
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    return [node.meta.get("example_value", given) for node, given in zip(placeholders, inputs, strict=True)]


def _stand_in(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    if type(x).__name__ not in ("FakeTensor", "Tensor", "Parameter", "FakeTensorBase"):
        raise Unsupported(f"an input is a {type(x).__name__}; only plain tensors are understood")
    if x.layout != torch.strided:
        raise Unsupported(f"an input has the layout {x.layout}; only strided tensors are understood")
    made = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device, requires_grad=x.requires_grad)
    if (number := getattr(x, "item_memo", None)) is not None:  # the symbolic number that a tensor of one element stands for
        made.item_memo = number  # type: ignore[attr-defined]
    return made


def _plain(x: Any) -> Any:
    if not isinstance(x, FunctionalTensor):
        return x
    torch._sync(x)
    return torch._from_functional_tensor(x.elem)


def _written(x: Any, position: int) -> bool:
    if not isinstance(x, FunctionalTensor):
        return False
    torch._sync(x)
    if torch._functionalize_has_metadata_mutation(x.elem):
        raise Unsupported(f"input {position} changes its shape or strides in place")
    return torch._functionalize_has_data_mutation(x.elem)  # type: ignore[attr-defined]


def _write_back(graph_module: fx.GraphModule, written: list[int]) -> None:
    """Return the outputs alone, after copying the new values of written inputs into them."""
    graph = graph_module.graph
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    outputs, changes = output.args[0]
    if written:
        _no_aliases(outputs, [placeholders[i] for i in written], changes)
    with graph.inserting_before(output):
        for i, change in zip(written, changes, strict=True):
            copied = graph.call_function(torch.ops.aten.copy_.default, (placeholders[i], change))
            copied.meta["val"] = placeholders[i].meta["val"]
    output.args = (outputs,)
    # the pytree that make_fx noted is that of the pair; Dynamo's callers want the flat sequence
    graph.set_codegen(fx.graph.CodeGen())


def _no_aliases(outputs: Any, inputs: list[fx.Node], changes: Sequence[fx.Node]) -> None:
    """Refuse where an output would have shared memory with an input that is written to: the functional one doesn't."""
    bases = {_base(node) for node in (*inputs, *changes)}
    if any(isinstance(leaf, fx.Node) and _base(leaf) in bases for leaf in tree_leaves(outputs)):
        raise Unsupported("an output shares memory with an input that is written to in place")


def _base(node: fx.Node) -> fx.Node:
    """The node below all views."""
    while isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info for r in node.target._schema.returns):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _tidy(graph_module: fx.GraphModule) -> None:
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is torch.ops.aten.view.default:  # a kernel may lay its output out otherwise than the original did
            node.target = torch.ops.aten.reshape.default
    graph.eliminate_dead_code(_has_effect)
    graph.lint()
    graph_module.recompile()


RANDOM = getattr(torch.Tag, "nondeterministic_seeded", None)


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and RANDOM in target.tags


def _has_effect(node: fx.Node) -> bool:
    """Whether a node must stay though nothing reads it: inputs and outputs, writes, assertions, switches, random draws."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "get_attr":
        return False
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if target is torch.ops.aten.dropout.default:  # of an attention that a kernel took over, or in evaluation
            return False
        return target._schema.is_mutable or "assert" in target._schema.name or is_random(node)
    return getattr(target, "__module__", "") not in ("_operator", "math", "torch") or target is torch._C._set_grad_enabled


def remove_dead(graph_module: fx.GraphModule) -> None:
    """Remove what nothing reads any more, and write the module's code again."""
    graph_module.graph.eliminate_dead_code(_has_effect)
    graph_module.graph.lint()
    graph_module.recompile()
