"""Which of FlexAttention's block sizes, or FlashAttention-3 in its place, is fastest for an attention on this device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import choose
from kpt_lab.kernels.flashlight.rewrite import Rewritten, UncompiledWarning, apply


def tune(fn: Callable[..., Any], args: tuple) -> dict[str, float]:
    """Time the ways to compute the attention of `fn` that FlexAttention would take, on `args`, and remember the seconds of each.

    Keys are FlexAttention's options as JSON, and "fa3" where FlashAttention-3 has such an attention. All attentions of one kind,
    dtype, width and grouping on this device use what was fastest from then on, at any length. Compiles each once: some seconds each.
    ValueError where `fn` holds none for FlexAttention, or of several kinds, or where `args` are on no CUDA device; Unsupported as
    from `flashlight.apply`.
    """
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    device = next((x.device for x in tensors if x.is_cuda), None)
    if device is None:
        raise ValueError("args hold no tensor on a CUDA device; tuning measures one")
    entries = [entry for report in apply(fn, args).backend.reports for entry in report.entries]
    asked = {shape.for_flex(): shape for entry in entries if entry.lowering for shape in entry.lowering.asked}
    if len(asked) != 1:
        kinds = ", ".join(sorted(shape.kind for shape in asked)) or "none"
        raise ValueError(f"fn holds attentions of these kinds for FlexAttention: {kinds}; exactly one is accepted at a time")
    (shape,) = asked.values()
    inputs = [x for x in tensors if x.requires_grad]

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
