"""FlashLight: attention written plainly in PyTorch, understood, and lowered to the best kernel there is.

`flashlight` is a Technique of stage "rewrite": `flashlight.apply(fn, args)` gives a callable whose attentions are fused, and
`flashlight >> baselines.compiled` compiles the rest of its graph too. `backend()` is the same as a backend for torch.compile,
and `explain(candidate)` says for each softmax what was done, or why nothing was. On a CUDA device kernels are
raced on first use and remembered; `tune(fn, args)` races more of FlexAttention's block sizes, with gradients too.

    >>> import torch
    >>> from kpt_lab.kernels.attention_variants import causal
    >>> from kpt_lab.kernels.flashlight import flashlight
    >>> inputs = tuple(torch.randn(3, 1, 8, 2, 16))
    >>> flashlight.apply(causal, inputs)(*inputs).shape
    torch.Size([1, 8, 2, 16])
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kpt_lab import baselines
from kpt_lab.core import Technique
from kpt_lab.kernels.flashlight.explain import Explanation, explain
from kpt_lab.kernels.flashlight.rewrite import Backend, Rewritten, apply
from kpt_lab.kernels.flashlight.tune import tune


def backend(inner: str = "eager", mode: str | None = None, **options: Any) -> Backend:
    """A backend for torch.compile that fuses attentions; `inner` ("eager" or "inductor") runs the rest, options as `lower.Options`."""
    return Backend(inner, mode, **options)


def _apply(fn: Any, args: tuple, empty_rows: str = "eager", kernel: str = "auto", check: bool = True) -> Rewritten:
    return apply(fn, args, empty_rows=empty_rows, kernel=kernel, check=check)


def _apply_compiled(fn: Any, args: tuple, mode: str = "default", **knobs: Any) -> Rewritten:
    return _apply(fn, args, **knobs).compile_with(mode=mode, dynamic=False)


def _absorb(part: Technique) -> Callable[..., Rewritten] | None:
    """Inductor takes the rewritten graph itself: compiled around it, the rewrite would be lost."""
    inner = part.apply
    if isinstance(inner, functools.partial) and inner.func is baselines.compiled.apply:
        return functools.partial(_apply_compiled, **inner.keywords)
    return _apply_compiled if inner is baselines.compiled.apply else None


flashlight = Technique("flashlight", _apply, stage="rewrite", replaces=frozenset({"attention"}), absorb=_absorb)

__all__ = ["Backend", "Explanation", "Rewritten", "backend", "explain", "flashlight", "tune"]
