"""Memory of one call, in a pass of its own that nothing times."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from kpt_lab.core import Technique


def peak_memory(call: Callable[[], Any], device: str) -> int | None:
    """Bytes that one call allocates at its peak beyond what was held before it.

    On CUDA by the allocator's own counter; on a CPU by summing the allocator's events, which see tensors and not a
    library's private scratch. None where the profiler gives no memory events.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = call()
        torch.cuda.synchronize()
        del output
        return int(torch.cuda.max_memory_allocated() - before)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        profile.start()
    output = call()
    with _quiet():
        profile.stop()
    del output
    results = getattr(profile.profiler, "kineto_results", None)
    changes = [event.nbytes() for event in results.events() if event.name() == "[memory]"] if results else []
    if not changes:
        return None
    total = peak = 0
    for change in changes:
        total += change
        peak = max(peak, total)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own lines, which some builds write straight to the process's streams, out of notebooks."""
    saved = [os.dup(number) for number in (1, 2)]
    with open(os.devnull, "wb") as nowhere:
        try:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            yield
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def held_memory(parts: Iterable[tuple[Technique, Callable[..., Any]]], buffers: Any) -> int:
    """Bytes of the parameters and buffers that the candidate's module holds between calls; 0 for a plain function."""
    seen: dict[int, int] = {}
    for _, reached in parts:
        module = reached if isinstance(reached, torch.nn.Module) else getattr(reached, "_orig_mod", None)
        if isinstance(module, torch.nn.Module):
            for tensor in (*module.parameters(), *module.buffers()):
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
