"""The only module that reads a clock. Everything here is bound at import, so that replacing a function later changes nothing.

Times are integer nanoseconds of a monotonic clock (the host's) or of CUDA events (the device's).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

_clock = time.perf_counter_ns
_sleep = time.sleep
_record, _elapsed, wait = torch.cuda.Event.record, torch.cuda.Event.elapsed_time, torch.cuda.synchronize

_STRAY_NS = 200_000  # a device that is busy this long after the current stream is idle ran something elsewhere
_CYCLES = 2  # of the busy-wait kernel per nanosecond of the host's launching; an H100 makes about two


def now() -> int:
    """Nanoseconds of the host's monotonic clock."""
    return _clock()


def pause(nanoseconds: int) -> None:
    """Let other threads run for that long."""
    _sleep(nanoseconds / 1e9)


def call_on_cpu(step: Callable[..., Any], buffers: Any) -> tuple[int, Any]:
    """Wall time of one call, and its output."""
    clock = _clock
    start = clock()
    output = step(*buffers)
    return clock() - start, output


def wall_on_cuda(step: Callable[..., Any], buffers: Any) -> tuple[int, Any]:
    """Wall time of one call from an idle device until every stream is idle again, and its output."""
    clock = _clock
    wait()
    start = clock()
    output = step(*buffers)
    wait()
    return clock() - start, output


def device_on_cuda(step: Callable[..., Any], buffers: Any, host_ns: int) -> tuple[int, int, Any]:
    """Device time of one call by events, nanoseconds for which other streams stayed busy after it, and its output.

    A busy-wait kernel stands before the first event, longer than the host needs for launching (`host_ns`), so that the
    device never waits for the host between the events.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(min(_CYCLES * host_ns + 20_000, 8_000_000))
    _record(begin)
    output = step(*buffers)
    _record(end)
    torch.cuda.current_stream().synchronize()
    idle = _clock()
    wait()
    stray = _clock() - idle
    return round(_elapsed(begin, end) * 1e6), stray if stray > _STRAY_NS else 0, output


def best_time(step: Callable[[], Any], *, repeats: int = 5, device: str = "cpu") -> float:
    """Lowest wall time in seconds of `repeats` calls of `step`, for probing a device's ceilings."""
    best = math.inf
    for _ in range(repeats + 1):  # the first call pays for setting up
        elapsed, _ = wall_on_cuda(step, ()) if device.startswith("cuda") else call_on_cpu(step, ())
        best = min(best, elapsed)
    return best / 1e9
