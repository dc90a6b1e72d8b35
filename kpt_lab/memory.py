"""Memory of one call, in a pass of its own that nothing times."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from kpt_lab.core import Technique


def peak_memory(call: Callable[[], Any], device: str) -> int | None:
    """Bytes that one call allocates at its peak beyond what was held before it.

    On CUDA by the allocator's own counter. On a CPU by summing the allocator's events, which see tensors and not a library's
    private scratch, and see a tensor freed only where they saw it made. So the call runs twice, and the second counts: what
    it frees of the first one's making (gradients, a state that is replaced) counts as freed. What is older counts as held
    throughout, so a call that frees such a tensor may need less than this says, never more. What the calls print to the
    process's streams appears after each. None where the profiler gives no memory events.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = call()
        torch.cuda.synchronize()
        del output
        return int(torch.cuda.max_memory_allocated() - before)
    _changes(call)
    changes = _changes(call)
    return max(0, *itertools.accumulate(changes)) if changes else None


def _changes(call: Callable[[], Any]) -> list[int]:
    """Bytes allocated (above 0) and freed (below 0) on the CPU during a call, in order."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    profile = torch.profiler.profile(
        activities=cpu, profile_memory=True, acc_events=True
    )  # torch 2.11 warns where it isn't said
    with _quiet():
        profile.start()
    try:
        with _quiet(but=_UNKNOWN):
            output = call()
    finally:
        with _quiet():
            profile.stop()
    del output
    results = getattr(profile.profiler, "kineto_results", None)
    return [event.nbytes() for event in results.events() if event.name() == "[memory]"] if results else []


_UNKNOWN = b"Memory block of unknown size was allocated before"  # the profiler's warning about what the docstring above says


@contextlib.contextmanager
def _quiet(but: bytes = b"") -> Iterator[None]:
    """Keep the profiler's own lines, which some builds write straight to the process's streams, out of notebooks.

    but: afterwards write what was kept to where it belonged, except lines that hold this text; else nothing of it.
    """
    streams = {1: sys.stdout, 2: sys.stderr}
    with contextlib.ExitStack() as stack:
        saved = {number: os.dup(number) for number in streams}
        kept = {number: stack.enter_context(tempfile.TemporaryFile()) for number in streams}
        try:
            for number, stream in streams.items():
                _flush(stream)
                os.dup2(kept[number].fileno(), number)
            yield
        finally:
            for number, stream in streams.items():
                _flush(stream)
                os.dup2(saved[number], number)
                os.close(saved[number])
                if but:
                    kept[number].seek(0)
                    for line in kept[number]:
                        if but not in line:
                            _write(number, line)


def _flush(stream: Any) -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):  # no stream at all, or a closed one
        stream.flush()


def _write(number: int, data: bytes) -> None:
    while data:
        data = data[os.write(number, data) :]


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
