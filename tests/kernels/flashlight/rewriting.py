"""Captures a callable as flashlight does, matches its graph under shuffled names and lets the float64 reference compute what matched."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import reference
import torch
from torch import fx

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import match
from kpt_lab.kernels.flashlight.capture import functional_form, remove_dead
from kpt_lab.kernels.flashlight.expression import Attention, Refusal


@dataclass
class Found:
    """What the matcher said about the graphs of one callable, and what the callable gave after the rewrite."""

    output: Any = None
    attentions: list[Attention] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    graphs: list[fx.GraphModule] = field(default_factory=list)

    @property
    def matched(self) -> int:
        """How many softmaxes are in an attention."""
        return len({node for attention in self.attentions for node in attention.softmaxes})


def shuffle_names(graph_module: fx.GraphModule, seed: int) -> None:
    """Give every node a name that says nothing, and none that it had."""
    draw = random.Random(seed)
    for node in graph_module.graph.nodes:
        if node.op != "output":
            node._rename("n" + "".join(draw.choices("abcdefghij", k=12)))
    graph_module.recompile()


def rewritten(
    fn: Callable, args: tuple = (), kwargs: dict | None = None, *, shuffle: int | None = None, seed: int = 1
) -> Found:
    """Run `fn` once with its attentions computed by the reference; nothing else of its graph is changed."""
    found = Found()

    def backend(graph_module: fx.GraphModule, inputs: list) -> Callable:
        try:
            functional = functional_form(graph_module, inputs)
        except Unsupported as error:
            found.unsupported.append(str(error))
            return graph_module
        if shuffle is not None:
            shuffle_names(functional, shuffle)
        drafts, refusals = match.find(functional)
        for draft in drafts:
            attention = draft.build()
            reference.insert(functional, attention)
            found.attentions.append(attention)
        if drafts:
            remove_dead(functional)
            functional.graph.lint()
            functional.recompile()
        found.refusals += refusals
        found.graphs.append(functional)
        return functional

    torch._dynamo.reset()
    compiled = torch.compile(fn, backend=backend, fullgraph=True)
    torch.manual_seed(seed)
    found.output = compiled(*args, **(kwargs or {}))
    return found
