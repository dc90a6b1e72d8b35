"""Which of FlexAttention's block sizes, or FlashAttention-3 in its place, is fastest for an attention on this device."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import choose
from kpt_lab.kernels.flashlight.rewrite import Backend, Rewritten, UncompiledWarning, apply, copied


def tune(fn: Callable[..., Any], args: tuple) -> dict[str, float]:
    """Time the ways to compute the attention of `fn` that FlexAttention would take, on `args`, and remember the seconds of each.

    Keys are FlexAttention's options as JSON, and "fa3" where FlashAttention-3 has such an attention. All attentions of one kind,
    dtype, width and grouping on this device use what was fastest from then on, at any length. Compiles each once: some seconds each.
    ValueError where `fn` holds none for FlexAttention, or of several kinds, or where `args` are on no CUDA device; Unsupported as
    from `flashlight.apply`.
    """
    device = _device(args)
    if device is None:
        raise ValueError("args hold no tensor on a CUDA device; tuning measures one")
    asked = {shape.for_flex(): shape for shape in _shapes(apply(fn, args), "asked")}
    if len(asked) != 1:
        kinds = ", ".join(sorted(shape.kind for shape in asked)) or "none"
        raise ValueError(f"fn holds attentions of these kinds for FlexAttention: {kinds}; exactly one is accepted at a time")
    (shape,) = asked.values()
    inputs = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]

    def make(options: Mapping[str, Any]) -> Callable[[], Any]:
        with warnings.catch_warnings():  # refused as Unsupported all the same, and then left out
            warnings.simplefilter("ignore", UncompiledWarning)
            return step(apply(fn, args, kernel="flex", kernel_options=dict(options)))

    def step(fused: Rewritten) -> Callable[[], Any]:
        if not shape.training:
            return lambda: fused(*args)
        upstream = torch.randn_like(fused(*args))
        return lambda: torch.autograd.grad(fused(*args), inputs, upstream)

    try:
        native = step(apply(fn, args, kernel="fa3"))
    except Unsupported:
        native = None
    return choose.tune_flex(shape, device, make, native)


MOST = 8  # attentions in one race


def raced(made: Rewritten, args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Race FlexAttention with other block sizes, and with FlashAttention-3 where it has such an attention; whether torch's own choice lost.

    Whole calls are raced, once for each kind of attention on this device, and remembered. Nothing is raced for a module in training
    mode, whose buffers a call may change, nor for more than MOST attentions, each of which is compiled for each rival. Raises what
    a rival raises, torch.OutOfMemoryError for one.
    """
    device = _device((*args, *kwargs.values()))
    if device is None or torch.cuda.is_current_stream_capturing():
        return False
    found = [(shape, native) for shape, native in _shapes(made, "unraced") if not choose.raced(shape, device)]
    if not 0 < len(found) <= MOST:
        return False
    if isinstance(made.fn, nn.Module) and made.fn.training:
        return False
    given, named = [copied(x) for x in args], {name: copied(x) for name, x in kwargs.items()}

    def rival(kind: str, what: str) -> Rewritten:
        options = dataclasses.asdict(made.backend.options) | {"trial": (kind, what)}
        fused = Rewritten(made.fn, Backend(check=made.backend.check, **options))
        fused(*given, **named)
        return fused

    def step(fused: Rewritten) -> Callable[[], Any]:
        return lambda: fused(*given, **named)

    lost = False
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", UncompiledWarning)  # of a rival alone: there is nothing to do about it
        for shape, native in {shape.for_flex(): (shape, native) for shape, native in found}.values():
            tiles = choose.FIRST if shape.queries >= choose.SHORTEST else choose.FIRST[:1]
            names = [json.dumps(options, sort_keys=True) for options in tiles] + ["fa3"] * native
            rivals = {name: rival(shape.kind, name) for name in names}
            # where one was refused, attention as it was written would be raced
            steps = {name: step(fused) for name, fused in rivals.items() if _fused(fused) == _fused(rivals[choose.TORCHS])}
            lost |= choose.race_first(shape, device, steps) != choose.TORCHS
    return lost


def _fused(made: Rewritten) -> list[bool]:
    """Which of the softmaxes are fused."""
    return [entry.matched for report in made.backend.reports for entry in report.entries]


def _device(args: tuple) -> torch.device | None:
    """Of the first tensor on a CUDA device."""
    return next((x.device for x in args if isinstance(x, torch.Tensor) and x.is_cuda), None)


def _shapes(made: Rewritten, kind: str) -> list[Any]:
    """What the attentions of `made` "asked" FlexAttention's options for, or what of it is "unraced"."""
    entries = [entry for report in made.backend.reports for entry in report.entries]
    return [shape for entry in entries if entry.lowering for shape in getattr(entry.lowering, kind)]
