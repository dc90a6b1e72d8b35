"""Which of several ways to compute one thing is fastest here: each inside a CUDA graph, with a flushed cache, in random order."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from kpt_lab import timer

# kpt_lab.sparsity.search holds the same functions, which the hashes of its recorded Trials cover: it takes these when those
# Trials are recorded again, and not before, for a move alone would make them stale.

FLUSH = 256 * 2**20  # bytes written before each timed replay: several times a last-level cache
FIRST, SECOND = 5, 12  # replays of every candidate, and then of those that are still near
WARM_NS = 50_000_000  # of replays before any counts: a device that was idle clocks up in that time
NEAR = 1.15  # times the fastest after the first rounds
_LAUNCH_NS = 200_000  # of a replay on a slow host; the device waits for as long before it is timed


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

    Steps whose fastest of `first` replays took more than NEAR times the fastest of all keep those rounds' median; the others go on
    for `second`. The fastest decides, since a busy host only ever adds time.
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

    start = timer.now()
    rounds(list(graphs), 1)  # the first replay uploads the graph
    while timer.now() - start < WARM_NS:
        rounds(list(graphs), 1)
    for taken in times.values():
        taken.clear()
    rounds(list(graphs), first)
    best = min(min(taken) for taken in times.values())
    rounds([name for name, taken in times.items() if min(taken) <= NEAR * best], second)
    return {name: median(taken) / 1e9 for name, taken in times.items()}
