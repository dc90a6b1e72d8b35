"""Which plan computes a 2:4 product fastest here, and whether it beats the dense one: raced inside CUDA graphs, and remembered.

cuSPARSELt's own search times with a loop of its own and chose badly at a shape that we measured; so every plan runs here as it
will be used: inside a CUDA graph, on weights that are not in cache, in random order.

What was found is kept in a JSON file by device, torch and cuSPARSELt version, dtype and shape: in the folder that the environment
variable KPT_LAB_CACHE names, else in the platform's cache folder.
"""

from __future__ import annotations

import functools
import json
import random
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from kpt_lab import timer
from kpt_lab.core import dtype_name
from kpt_lab.files import atomically, cache_folder
from kpt_lab.sparsity import cusparselt
from kpt_lab.sparsity.cusparselt import Plan

FLUSH = 256 * 2**20  # bytes written before each timed replay: several times a last-level cache
FIRST, SECOND = 3, 12  # replays of every candidate, and then of those that are still near
NEAR = 1.15  # times the fastest after the first rounds
FEW = 1024  # tokens up to which splitting the inner dimension is tried: beyond, there are output tiles enough
SPLITS = tuple((parts, mode) for parts in (2, 4) for mode in (1, 2))
HIGHEST, GIVE_UP = (
    96,
    12,
)  # ids are tried up to the first, or until so many in a row are refused: torch doesn't say how many exist
_LAUNCH_NS = 60_000  # of a replay on the host
_WRONG = 0.02  # relative error above which a plan's numbers are not those of the product
SCHEMA = 1


# ---- racing -------------------------------------------------------------------------------------------------------------------


def captured(step: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A CUDA graph of `step`, after two calls outside it, and its output; what it reads must stay alive as long as the graph.

    pool: the memory of other graphs, to be shared with them; their outputs are then overwritten.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool), torch.no_grad():
        output = step()
    return graph, output


def race(steps: Mapping[Any, Callable[[], Any]], *, first: int = FIRST, second: int = SECOND) -> dict[Any, float]:
    """Median device time in seconds of each step that can be captured, each replay with a flushed cache, in random order.

    Steps slower than NEAR times the fastest after `first` rounds keep those rounds' median; the others go on for `second`.
    """
    graphs: dict[Any, torch.cuda.CUDAGraph] = {}
    pool = torch.cuda.graph_pool_handle()  # one for all: each with its own output would fill the device
    for name, step in steps.items():
        try:
            graphs[name] = captured(step, pool)[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # refused by the library
            torch.cuda.synchronize()
    if not graphs:
        return {}
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    dice, times = random.Random(0), {name: list[int]() for name in graphs}

    def rounds(names: list[Any], count: int) -> None:
        for _ in range(count):
            dice.shuffle(names)
            for name in names:
                flush.add_(1)
                times[name].append(timer.device_on_cuda(graphs[name].replay, (), _LAUNCH_NS)[0])

    rounds(list(graphs), 1)
    for taken in times.values():
        taken.clear()  # the first replay uploads the graph
    rounds(list(graphs), first)
    best = min(median(taken) for taken in times.values())
    rounds([name for name, taken in times.items() if median(taken) <= NEAR * best], second)
    return {name: median(taken) / 1e9 for name, taken in times.items()}


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


def cache_file() -> Path:
    """The file of found algorithms."""
    return cache_folder() / "sparse_24.json"


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
    return _read().get(name)


def remember(name: str, found: Mapping[str, Any]) -> None:
    """Keep `found` under this key; the file is replaced in one step, so that a reader never sees half of it."""
    path = cache_file()
    try:
        kept = {"schema": SCHEMA, "found": {**_read(warn=False), name: dict(found)}}
        atomically(path, lambda file: file.write(json.dumps(kept, indent=1, sort_keys=True).encode()))
    except OSError as error:
        warnings.warn(f"{path} can't be written ({error.strerror}), so the search is done again next time", stacklevel=2)


def _read(warn: bool = True) -> dict[str, Any]:
    path = cache_file()
    try:
        data = json.loads(path.read_text())
        found = data["found"] if data["schema"] == SCHEMA else None
        if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()):
            return found
        reason = "it was written by another version"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"it can't be read ({type(error).__name__})"
    if warn:
        warnings.warn(
            f"{path} is left aside: {reason}; algorithms are searched for again and the file is replaced", stacklevel=3
        )
    return {}
