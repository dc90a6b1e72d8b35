"""Which plan computes a 2:4 product fastest here, and whether it beats the dense one: raced inside CUDA graphs, and remembered.

cuSPARSELt's own search times with a loop of its own and chose badly at a shape that we measured; so every plan runs here as it
will be used: inside a CUDA graph, on weights that are not in cache, in random order.

What was found is kept in a JSON file by device, torch and cuSPARSELt version, dtype and shape: in the folder that the environment
variable KPT_LAB_CACHE names, else in the platform's cache folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kpt_lab.core import dtype_name
from kpt_lab.race import captured, race
from kpt_lab.remembered import Store
from kpt_lab.sparsity import cusparselt
from kpt_lab.sparsity.cusparselt import Plan

FEW = 1024  # tokens up to which splitting the inner dimension is tried: beyond, there are output tiles enough
SPLITS = tuple((parts, mode) for parts in (2, 4) for mode in (1, 2))
HIGHEST, GIVE_UP = (
    96,
    12,
)  # ids are tried up to the first, or until so many in a row are refused: torch doesn't say how many exist
_WRONG = 0.02  # relative error above which a plan's numbers are not those of the product


__all__ = ["best_plan", "bucket", "cache_file", "captured", "key", "race", "recall", "remember"]


# ---- searching ----------------------------------------------------------------------------------------------------------------


def best_plan(
    run: Callable[[Plan], Tensor], wanted: Tensor, tokens: int, outcomes: dict[Plan, str] | None = None
) -> dict[Plan, float]:
    """Median seconds by plan of `run(plan)`, fastest first, of those that give `wanted` (tokens, out) to rounding.

    outcomes: filled with "right", "wrong" or "refused" by plan.
    """
    found = outcomes if outcomes is not None else {}
    refused = 0
    for plan in map(Plan, range(HIGHEST)):
        found[plan] = _tried(run, plan, wanted)
        refused = refused + 1 if found[plan] == "refused" else 0
        if refused >= GIVE_UP:
            break
    known = [plan for plan, outcome in found.items() if outcome == "right"]
    times = race({plan: functools.partial(run, plan) for plan in known})
    if tokens <= FEW and times:
        leaders = sorted(times, key=times.__getitem__)[:3]
        split = [Plan(plan.algorithm, parts, mode) for plan in leaders for parts, mode in SPLITS]
        split = [plan for plan in split if _tried(run, plan, wanted) == "right"]
        if split:  # together with the best whole one, so that both are timed at the same clocks
            times |= race({plan: functools.partial(run, plan) for plan in (*split, leaders[0])})
    return dict(sorted(times.items(), key=lambda item: item[1]))


def _tried(run: Callable[[Plan], Tensor], plan: Plan, wanted: Tensor) -> str:
    """ "right", "wrong" or "refused"."""
    try:
        found = run(plan)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return "refused"
    error = float((found - wanted).float().norm()) / max(float(wanted.float().norm()), 1e-30)
    return "right" if error <= _WRONG else "wrong"


# ---- remembering --------------------------------------------------------------------------------------------------------------


_STORE = Store("sparse_24.json", "algorithms are searched for again")


def cache_file() -> Path:
    """The file of found algorithms."""
    return _STORE.path()


def bucket(tokens: int) -> int:
    """The power of two, 16 or more, up to which token counts share one search."""
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; 1 or more is accepted")
    return max(16, 1 << (tokens - 1).bit_length())


def key(device_name: str, dtype: torch.dtype, tokens: int, out_features: int, in_features: int) -> str:
    """What a search's result is kept under."""
    return " | ".join(
        [
            device_name, f"torch {torch.__version__}", f"cuSPARSELt {cusparselt.version()}", dtype_name(dtype),
            f"tokens <= {bucket(tokens)}", f"out {out_features}", f"in {in_features}",
        ]
    )  # fmt: skip


def recall(name: str) -> dict[str, Any] | None:
    """What was remembered under this key, or None; a file that can't be read is reported once and searched for anew."""
    return _STORE.recall(name)


def remember(name: str, found: Mapping[str, Any]) -> None:
    """Keep `found` under this key; the file is replaced in one step, so that a reader never sees half of it."""
    _STORE.remember(name, found)
