"""What a conversion accepts, and the sentences in which it refuses the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kpt_lab.core import Unsupported
from kpt_lab.frontier.spiking.neurons import Code

STRATEGIES: dict[str, tuple[Code, int]] = {"exact": ("count", 64), "temporal_coding": ("first_spike", 32)}
"""Strategy -> the code of its trains and its steps in a window unless told."""
TARGETS: dict[str, int | None] = {"simulation": None, "Intel_Loihi": 8}
"""Hardware target -> bits of its synaptic weights; Loihi's are of 1 to 9 bits with sign (Davies et al., IEEE Micro 38(1), 2018)."""
AGREEMENT = 1e-9
"""Largest relative difference, both in float64, between the model and its graph before anything is quantised."""


def check(model: Any, strategy: Any, target: Any, timesteps: Any, weight_bits: Any, input_range: Any) -> None:
    """TypeError or ValueError, in a sentence, unless SpikingTransformer can be made with these arguments."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"standard_transformer is {type(model).__name__}; an nn.Module is needed")
    if strategy not in STRATEGIES:
        raise ValueError(f"conversion_strategy is {strategy!r}; accepted are {', '.join(STRATEGIES)}")
    if target not in TARGETS:
        raise ValueError(f"hardware_target is {target!r}; accepted are {', '.join(TARGETS)}, both simulated on this machine")
    if timesteps is not None and (not isinstance(timesteps, int) or isinstance(timesteps, bool) or not 1 <= timesteps <= 4096):
        raise ValueError(f"timesteps is {timesteps!r}; a whole number of steps from 1 to 4096 is needed")
    if weight_bits is not None and (
        not isinstance(weight_bits, int) or isinstance(weight_bits, bool) or not 2 <= weight_bits <= 16
    ):
        raise ValueError(f"weight_bits is {weight_bits!r}; a whole number from 2 to 16 is needed, or None")
    if not isinstance(input_range, (int, float)) or not 0 < input_range < float("inf"):
        raise ValueError(f"input_range is {input_range!r}; a finite number above 0 is needed")


def what(value: Any) -> str:
    """A value in words: "a tensor of shape (2, 3)", or the name of its type."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def arrivals(name: str, events: Tensor) -> Tensor:
    """The ids (batch, ...) that arrived, one for each position."""
    if events.is_floating_point() or events.dtype == torch.bool:
        raise ValueError(
            f"temporal_input for {name} is {events.dtype}; token ids arrive as whole numbers, with -1 where none does"
        )
    if not bool(((events >= 0).sum(0) == 1).all()) or not bool((events >= -1).all()):
        raise ValueError(
            f"temporal_input for {name} must have one id at each position in one of its steps, and -1 in the others"
        )
    return events.max(0).values.long()


def agree(name: str, mine: Any, theirs: Any) -> None:
    """Unsupported unless the graph, not yet quantised, gives the model's own outputs."""
    ours, wanted = pytree.tree_leaves(mine), pytree.tree_leaves(theirs)
    if len(ours) != len(wanted):
        raise Unsupported(
            f"{name} gives {len(wanted)} outputs and its graph {len(ours)}: its structure depends on more than its inputs"
        )
    for a, b in zip(ours, wanted, strict=True):
        if not isinstance(b, Tensor):
            continue
        if a.shape != b.shape or not torch.allclose(
            a, b.to(a.dtype), rtol=AGREEMENT, atol=AGREEMENT * (1 + float(b.abs().max()))
        ):
            raise Unsupported(
                f"{name}'s graph does not give the model's own outputs on the calibration inputs: something in it (a hook, a value kept "
                "from an earlier call, a cast to a narrower dtype) is not in its structure"
            )
