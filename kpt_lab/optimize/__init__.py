"""One call for a model: search the stacks that exist here, keep one only where it is measurably faster, and say why.

    from kpt_lab.optimize import optimize

    model = optimize(model, workload_type="inference", performance_target="latency", inputs=batch)
    print(model.report())

Everything is measured by `kpt.measure` on copies of the model, each checked against a float64 oracle and timed beside the model
as passed in the same blocks. This stands above the packages; `CustomHardwareAdapter.optimize_model` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from kpt_lab.core import Technique
from kpt_lab.measure import check_device
from kpt_lab.optimize.optimised import Optimised
from kpt_lab.optimize.search import GAIN, Request

__all__ = ["GAIN", "Optimised", "optimize"]

WORKLOADS = ("inference", "training")
TARGETS = ("latency", "throughput")


def optimize(
    model: nn.Module,
    *,
    workload_type: str = "inference",
    performance_target: str = "latency",
    inputs: Any = None,
    quality: Callable[[nn.Module], float] | None = None,
    loss_budget: float | None = None,
    device: str | torch.device | None = None,
    budget: float = 10.0,
    techniques: Sequence[Technique] | None = None,
) -> Optimised:
    """Search the stacks that exist for `model`, and return it with the fastest that is surely faster, else unchanged.

    workload_type: "inference" times forward without gradients; "training" forward and backward, in the mode (train or eval) in
    which the model is. performance_target: "latency" times one call, from an idle device until it is idle again;
    "throughput" calls that follow one another without waiting, where launching may overlap with computing; on a CPU both are
    the same. The batch is that of `inputs` in both: a larger one is the caller's to choose, and to pass here.
    inputs: one tensor, a tuple or list of positional inputs, or a mapping passed by name, as the model is called; without them
    it is tuned on its first call. quality: `quality(model) -> loss`, lower is better; with loss_budget, the relative rise of
    that loss (0 to 1) up to which stacks that change the numbers are tried: FP8, and for inference 2:4. device: where the model
    must already be, "cpu" or "cuda". budget: seconds of timing for each of up to three measurements, setting up not counted.
    techniques: what to try instead of the stacks that exist, lossy ones by their contract.

    A stack is kept only where the lower end of its interval over the model as passed lies above GAIN, a lossy one only where
    it also does over the best lossless one, the level corrected for the number of stacks; and where both hold again in a fresh
    measurement on values that were not searched with. Compiled functions of this process are compiled anew afterwards.
    ValueError names the argument that can't be used. Returns an Optimised.
    """
    _check_model(model, workload_type)
    for name, value, accepted in (
        ("workload_type", workload_type, WORKLOADS),
        ("performance_target", performance_target, TARGETS),
    ):
        if value not in accepted:
            raise ValueError(f"{name} is {value!r}; accepted are {', '.join(map(repr, accepted))}")
    _check_quality(quality, loss_budget)
    if not (isinstance(budget, int | float) and math.isfinite(budget) and budget > 0):
        raise ValueError(f"budget is {budget!r}; accepted are seconds above 0")
    given = None if techniques is None else _checked(techniques)
    _check_place(model, device)
    call = None if inputs is None else _inputs(inputs, model)
    request = Request(workload_type, performance_target, float(budget), quality, loss_budget, given)
    found = Optimised(model, request)
    return found if call is None else found.tune(call)


def _check_model(model: Any, workload_type: str) -> None:
    if isinstance(model, Optimised):
        raise ValueError("model is optimised already; pass its .model to search again")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}; an nn.Module is needed")
    parameters = list(model.parameters())
    if not any(p.is_floating_point() for p in parameters):
        kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "none at all"
        raise ValueError(f"model has no floating-point parameters (it has {kinds}); stacks are searched for float models")
    if workload_type == "training" and not any(p.requires_grad for p in parameters):
        raise ValueError("model has no parameter that requires a gradient, so there is no training step; use 'inference'")


def _check_quality(quality: Any, loss_budget: Any) -> None:
    if (quality is None) != (loss_budget is None):
        there, missing = ("loss_budget", "quality") if quality is None else ("quality", "loss_budget")
        raise ValueError(f"{there} is given without {missing}; lossy stacks need quality(model) -> loss and a loss_budget")
    if quality is not None and not callable(quality):
        raise ValueError(f"quality is {type(quality).__name__}; a function quality(model) -> loss is needed")
    if loss_budget is not None and not (
        isinstance(loss_budget, int | float) and not isinstance(loss_budget, bool) and 0 <= loss_budget <= 1
    ):
        raise ValueError(f"loss_budget is {loss_budget!r}; accepted are numbers from 0 to 1: the relative rise of the loss")


def _checked(techniques: Any) -> tuple[Technique, ...]:
    found = (techniques,) if isinstance(techniques, Technique) else tuple(techniques)
    if wrong := [t for t in found if not isinstance(t, Technique)]:
        raise ValueError(f"techniques holds a {type(wrong[0]).__name__}; Techniques are needed")
    if steps := [t.label for t in found if t.on != "fn"]:
        raise ValueError(f"techniques holds {steps[0]!r}, which wraps a whole timed step; a model needs techniques on its call")
    labels = ["eager", *(t.label for t in found)]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"techniques holds {twice[0]!r}, which is there already: labels must differ, and from 'eager'")
    return found


def _check_place(model: nn.Module, device: str | torch.device | None) -> None:
    here = next(model.parameters()).device
    wanted = here if device is None else device
    check_device(str(wanted))
    asked = torch.device(wanted)
    if asked.type != here.type or asked.index not in (None, here.index or 0):
        raise ValueError(
            f"device is {str(wanted)!r}, but the model is on {str(here)!r}; move it first: model.to({str(wanted)!r})"
        )


def _inputs(inputs: Any, model: nn.Module) -> tuple:
    """The inputs as kpt.workload takes them, every tensor without its graph."""
    if isinstance(inputs, Mapping):
        if unnamed := [name for name in inputs if not isinstance(name, str)]:
            raise ValueError(f"inputs has the key {unnamed[0]!r}; a mapping is passed by name, so its keys must be strings")
        call: tuple = (dict(sorted(inputs.items())),)
    elif isinstance(inputs, torch.Tensor):
        call = (inputs,)
    elif isinstance(inputs, tuple | list):
        call = tuple(inputs)
    else:
        raise ValueError(
            f"inputs is {type(inputs).__name__}; a tensor, a tuple of positional inputs or a mapping by name is needed"
        )
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise ValueError("inputs holds no tensor; pass them as the model is called, for example inputs=(x,) or inputs=batch")
    if len(call) == 1 and isinstance(call[0], Mapping) and not isinstance(inputs, Mapping):
        raise ValueError("inputs holds one mapping in a sequence; pass the mapping itself, which is given to the model by name")
    here = next(model.parameters()).device
    if away := [t.device for t in tensors if t.device != here]:
        raise ValueError(f"inputs holds a tensor on {str(away[0])!r}, and the model is on {str(here)!r}; move them together")
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, call)
