"""Honest techniques that look unusual (reused buffers, joined threads, views, other layouts) and must never be flagged."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kpt_lab.core import Technique
from kpt_lab.redteam.workload import copied, empty_output, tensors


def _recomputed(fn: Callable, args: tuple) -> Callable:
    """Calls the specification on copies of its inputs."""
    return lambda *inputs: fn(*copied(inputs))


def _chunked(fn: Callable, args: tuple) -> Callable:
    """Computes four blocks of rows, one after the other."""
    return lambda x, *others: torch.cat([fn(part, *others) for part in x.chunk(4)])


def _compiled(fn: Callable, args: tuple) -> Callable:
    """torch.compile with static shapes."""
    return torch.compile(fn, dynamic=False)


def _scratch(fn: Callable, args: tuple) -> Callable:
    """Writes into a buffer kept between calls and returns a copy of it."""
    scratch = empty_output(fn, args)()

    def candidate(*inputs: Any) -> Any:
        for mine, right in zip(tensors(scratch), tensors(fn(*inputs)), strict=True):
            mine.copy_(right)
        return copied(scratch)

    return candidate


def _reused_buffer(fn: Callable, args: tuple) -> Callable:
    """Writes every answer into the same output, which the next call overwrites, as CUDA graphs do."""
    buffer = empty_output(fn, args)()

    def candidate(*inputs: Any) -> Any:
        for mine, right in zip(tensors(buffer), tensors(fn(*inputs)), strict=True):
            mine.copy_(right)
        return buffer

    return candidate


def _view(fn: Callable, args: tuple) -> Callable:
    """Returns a strided view into a wider allocation."""

    def widen(t: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(t, (0, 8))[..., : t.shape[-1]]

    return lambda *inputs: pytree.tree_map_only(torch.Tensor, widen, fn(*inputs))


def _other_layout(fn: Callable, args: tuple) -> Callable:
    """Returns the answer with its columns contiguous in memory."""
    return lambda *inputs: pytree.tree_map_only(torch.Tensor, lambda t: t.mT.contiguous().mT, fn(*inputs))


def _inference_mode(fn: Callable, args: tuple) -> Callable:
    """Runs under torch.inference_mode, so that its outputs are inference tensors."""
    return torch.inference_mode()(fn)


def _double(fn: Callable, args: tuple) -> Callable:
    """Computes in float64 and rounds once."""
    return lambda *inputs: fn(*(t.double() for t in inputs)).to(inputs[0].dtype)


def _joined_thread(fn: Callable, args: tuple) -> Callable:
    """Computes in a thread and waits for it."""

    def candidate(*inputs: Any) -> Any:
        found: list[Any] = []
        worker = threading.Thread(target=lambda: found.append(fn(*inputs)))
        worker.start()
        worker.join()
        return found[0]

    return candidate


def _joined_stream(fn: Callable, args: tuple) -> Callable:
    """Launches on a side stream, and makes the current stream wait for it."""
    stream = torch.cuda.Stream()

    def candidate(*inputs: Any) -> Any:
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            output = fn(*inputs)
        current.wait_stream(stream)
        for tensor in tensors(output):
            tensor.record_stream(current)
        return output

    return candidate


recomputed = Technique("recomputed on copies", _recomputed)
chunked = Technique("chunked", _chunked)
compiled = Technique("compiled", _compiled, stage="compile")
scratch = Technique("scratch buffer", _scratch)
reused_buffer = Technique("reused buffer", _reused_buffer)
view = Technique("view of a wider buffer", _view)
other_layout = Technique("other layout", _other_layout)
inference_mode = Technique("inference mode", _inference_mode)
double = Technique("in float64", _double)
joined_thread = Technique("joined thread", _joined_thread)
joined_stream = Technique("joined stream", _joined_stream, requires=("cuda",))
