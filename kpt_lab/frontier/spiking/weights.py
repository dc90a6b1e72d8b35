"""The weights of a network's linear steps, and their rounding to the bits of a synapse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kpt_lab.core import Unsupported
from kpt_lab.frontier.spiking.structure import place


def linear_weights(network: Any, bits: int) -> list[Tensor]:
    """The weights of every linear step, each once; Unsupported where one is computed and so can't be rounded."""
    found: dict[int, Tensor] = {}
    for node in network.graph.nodes:
        if place(node).step != "linear":
            continue
        if node.op == "call_module":
            weight = network.get_submodule(str(node.target)).weight
        else:
            source = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
            if source.op != "get_attr":
                raise Unsupported(f"{place(node).called} has computed weights, which can't be rounded to {bits} bits")
            owner, _, attribute = str(source.target).rpartition(".")
            weight = getattr(network.get_submodule(owner), attribute)
        found[id(weight)] = weight
    return list(found.values())


def round_weights(network: Any, bits: int) -> None:
    """Round the weights of every linear step to 2^(bits - 1) - 1 levels on either side of 0, one scale for each output."""
    most = 2 ** (bits - 1) - 1
    for weight in linear_weights(network, bits):
        scale = weight.detach().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny) / most
        weight.data = (weight.detach() / scale).round() * scale
