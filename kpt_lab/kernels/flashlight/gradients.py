"""Through which nodes of a graph gradients flow."""

from __future__ import annotations

import torch
from torch import fx

from kpt_lab.kernels.flashlight.nodes import is_tensor, name_of, value


def needs_gradient(graph: fx.Graph) -> set[fx.Node]:
    """The nodes through which a gradient may have to flow: floating, and below an input that requires one."""
    found: set[fx.Node] = set()
    enabled = torch.is_grad_enabled()
    if not enabled and not any(n.target is torch._C._set_grad_enabled and n.args[0] for n in graph.nodes):
        return found
    for node in graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
        held = value(node)
        if not isinstance(held, torch.Tensor):
            if any(parent in found for parent in node.all_input_nodes) and enabled:
                found.add(node)  # several outputs at once
            continue
        if not (held.dtype.is_floating_point or held.dtype.is_complex):
            continue
        own = node.op in ("placeholder", "get_attr") and held.requires_grad
        below = enabled and node.op == "call_function" and any(parent in found for parent in node.all_input_nodes)
        if own or (below and name_of(node) != "detach"):
            found.add(node)
    return found


def stopped_gradients(graph: fx.Graph) -> frozenset[fx.Node]:
    """Floating nodes at which a gradient ends (detach, no_grad): looking through them would let it pass."""
    through = needs_gradient(graph)
    return frozenset(
        node
        for node in graph.nodes
        if node.op == "call_function" and node not in through and is_tensor(node) and value(node).dtype.is_floating_point
        and any(parent in through for parent in node.all_input_nodes)
    )  # fmt: skip


def gradient_modes(graph: fx.Graph) -> dict[fx.Node, bool]:
    """For each node whether gradients are switched on where it stands."""
    enabled, found = True, {}
    for node in graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
        found[node] = enabled
    return found
