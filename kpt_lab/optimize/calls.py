"""What is called in a search: the problem several times in a row, inputs with other values, and the room for copies."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kpt_lab.core import Problem

CALLS = 4
"""Calls that follow one another without waiting, where the target is throughput on a GPU."""


def queued(make: Callable[..., Problem], /, *, device: str, dtype: torch.dtype, seed: int, mode: str = "forward") -> Problem:
    """The same problem, its step called several times without waiting in between."""
    problem = make(device=device, dtype=dtype, seed=seed, mode=mode)
    return replace(problem, drive=functools.partial(_in_a_row, problem.drive))


def _in_a_row(drive: Callable[..., Any], candidate: Callable[..., Any]) -> Callable[..., Any]:
    step = drive(candidate)

    def calls(*inputs: Any) -> Any:
        for _ in range(CALLS - 1):
            step(*inputs)
        return step(*inputs)

    return calls


def free(device: str) -> float:
    """Bytes free for copies; infinite where the system does not say."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def unseen(inputs: tuple, seed: int) -> tuple:
    """Inputs of the same form with other values: rows in another order, floats scaled a little, integers rolled along the row."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[int, Tensor] = {}

    def other(tensor: Tensor) -> Tensor:
        given = tensor.detach().cpu()
        if not given.dim() or not given.numel():
            return given.clone()
        order = orders.setdefault(given.shape[0], torch.randperm(given.shape[0], generator=generator))
        given = given[order]
        if given.is_floating_point():  # a factor keeps signs, zeros and masks of -inf
            return given * (1 + 0.1 * torch.rand(given.shape, generator=generator, dtype=torch.float32)).to(given.dtype)
        return given.roll(1 + given.shape[-1] // 3, -1)

    return pytree.tree_map_only(Tensor, other, inputs)
