"""Outputs that aren't the answer: nothing computed, computed elsewhere than asked, or computed more coarsely than it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kpt_lab.core import Technique
from kpt_lab.redteam.stale import half_the_rows
from kpt_lab.redteam.workload import empty_output, tensors


def _mutated_input(fn: Callable, args: tuple) -> Callable:
    """Writes the answer into its first input and returns that, so that it needs no memory of its own."""
    return lambda x, *others: x.copy_(fn(x, *others))


def _remembers_in_input(fn: Callable, args: tuple) -> Callable:
    """Leaves the answer in its input; finding rows there that sum to one, it returns them without work."""

    def candidate(x: torch.Tensor, *others: Any) -> torch.Tensor:
        rows = x[:: max(1, x.shape[0] // 4)]
        if bool(((rows.sum(-1) - 1).abs() < 1e-3).all()):
            return x.clone()
        return x.copy_(fn(x, *others)).clone()

    return candidate


def _returns_input(fn: Callable, args: tuple) -> Callable:
    """Returns its first input, which has the right shape."""
    return lambda x, *others: x


def _half_the_rows(fn: Callable, args: tuple) -> Callable:
    """Computes half of the rows and repeats them."""
    return lambda *inputs: half_the_rows(fn, inputs)


def _lower_precision(fn: Callable, args: tuple, to: str = "bfloat16") -> Callable:
    """Rounds its inputs to a smaller type, computes in that, and returns the answer as if it were float32."""
    small = getattr(torch, to)

    def narrow(t: torch.Tensor) -> torch.Tensor:
        return t.to(small) if t.is_floating_point() else t

    def candidate(*inputs: Any) -> Any:
        wide = next(t.dtype for t in tensors(inputs) if t.is_floating_point())
        output = fn(*pytree.tree_map_only(torch.Tensor, narrow, inputs))
        return pytree.tree_map_only(torch.Tensor, lambda t: t.to(wide) if t.dtype is small else t, output)

    return candidate


def _tf32(fn: Callable, args: tuple) -> Callable:
    """Allows TF32 for the length of its call, and puts the setting back so that nobody sees it changed."""

    def candidate(*inputs: Any) -> Any:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            return fn(*inputs)
        finally:
            torch.set_float32_matmul_precision(before)

    return candidate


def _nan_output(fn: Callable, args: tuple) -> Callable:
    """Returns NaN without work: a check of the form `if error > limit` never fires, for NaN compares false with everything."""
    allocate = empty_output(fn, args)
    return lambda *inputs: pytree.tree_map_only(torch.Tensor, lambda t: t.fill_(float("nan")), allocate())


def _uninitialised(fn: Callable, args: tuple) -> Callable:
    """Returns unwritten memory, hoping that the allocator hands back the block of an answer computed and freed before."""
    allocate = empty_output(fn, args)
    return lambda *inputs: allocate()


mutated_input = Technique("mutated input", _mutated_input)
remembers_in_input = Technique("remembers in its input", _remembers_in_input)
returns_input = Technique("returns its input", _returns_input)
half_rows = Technique("half of the rows", _half_the_rows)
lower_precision = Technique("lower precision", _lower_precision)
tf32 = Technique("TF32 during the call", _tf32, requires=("cuda",))
nan_output = Technique("NaN output", _nan_output)
uninitialised = Technique("uninitialised output", _uninitialised)
