"""The workload that the red team attacks: softmax over the rows of a scaled matrix product, heavy enough that cheating pays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kpt_lab.core import Cost, Problem, Workload, dtype_name, to_dtype

SIZES: Mapping[str, Mapping[str, int]] = {"cpu": {"rows": 256, "cols": 512}, "cuda": {"rows": 4096, "cols": 1024}}
"""Sizes at which one call takes some hundred microseconds: of 2 CPU cores, and of an H100 in float32."""


def scaled_softmax(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """softmax(x @ weight / sqrt(cols)) over the last dimension; x: rows x cols, weight: cols x cols."""
    return torch.softmax(x @ weight * weight.shape[0] ** -0.5, dim=-1)


def _make(*, device: str, dtype: torch.dtype, seed: int, rows: int = 256, cols: int = 512) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device, dtype)

    return Problem(scaled_softmax, tuple((draw(rows, cols), draw(cols, cols)) for _ in range(3)))


def _cost(*, dtype: torch.dtype | str, rows: int = 256, cols: int = 512) -> Cost:
    # product, then scale, maximum, difference, exponential, sum and division for each element
    flops, elements = rows * cols * (2.0 * cols + 6.0), cols * (2 * rows + cols)
    return Cost({dtype_name(dtype): flops}, float(to_dtype(dtype).itemsize * elements))


target = Workload("red team: scaled softmax", _make, cost=_cost, dtypes=("float32",))


# ---- what several techniques need --------------------------------------------------------------------------------------------


def copied(output: Any) -> Any:
    """The output with every tensor cloned."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, output)


def tensors(values: Any) -> list[torch.Tensor]:
    """All tensors among nested values."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def sample(values: Any, count: int = 64) -> tuple[float, ...]:
    """About `count` elements of each tensor at an even stride: a fingerprint that costs microseconds."""
    found: list[float] = []
    for tensor in tensors(values):
        flat = tensor.detach().reshape(-1)
        found.extend(flat[:: max(1, flat.numel() // count)].tolist())
    return tuple(found)


def empty_output(fn: Callable[..., Any], args: tuple) -> Callable[[], Any]:
    """A function that allocates an unwritten output of the shapes that `fn(*args)` has, learned from one call."""
    pattern = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), fn(*args))
    device = tensors(args)[0].device
    return lambda: pytree.tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device=device), pattern)
