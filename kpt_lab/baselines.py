"""The honest ladder: what a user gets without us, as techniques like any other.

A speedup is quoted over the best of these, and over eager only beside it. `max_autotune` leaves CUDA graphs out (mode
"max-autotune-no-cudagraphs") so that autotuned kernels and graphs are told apart; `cuda_graph` and `compiled >> cuda_graph`
add them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from kpt_lab.core import Technique, Unsupported


def _eager(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    return fn


def _compile(fn: Callable[..., Any], args: tuple, mode: str = "default") -> Callable[..., Any]:
    # dynamic=False: each cell has one shape, and a specialised kernel is what a careful user would deploy
    return torch.compile(fn, mode=mode, dynamic=False, fullgraph=False)


def _cuda_graph(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    """Capture `fn` once on static copies of its tensor inputs; a call copies its inputs in, replays and clones the outputs."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    if not tensors or any(not arg.is_cuda for arg in tensors):
        raise Unsupported("a CUDA graph needs every tensor input on a CUDA device; pass device='cuda'")
    if any(arg.requires_grad for arg in tensors):
        raise Unsupported("a CUDA graph of a step that needs input gradients is not captured here; time the forward workload")
    static = tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            fn(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        output = fn(*static)

    def replay(*inputs: Any) -> Any:
        for mine, given in zip(static, inputs, strict=True):
            if isinstance(mine, torch.Tensor):
                if mine.shape != given.shape or mine.dtype != given.dtype:
                    raise Unsupported(
                        f"captured for {tuple(mine.shape)} {mine.dtype}, called with {tuple(given.shape)} {given.dtype}"
                    )
                mine.copy_(given)
            elif mine != given:
                raise Unsupported(f"captured with the argument {mine!r}, called with {given!r}")
        graph.replay()
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, output)

    replay.reads = fn  # type: ignore[attr-defined]  # its weights must live as long as the graph, which knows their addresses only
    return replay


eager = Technique("eager", _eager, baseline=True)
compiled = Technique("torch.compile", _compile, stage="compile", baseline=True)
max_autotune = Technique(
    "torch.compile max-autotune",
    functools.partial(_compile, mode="max-autotune-no-cudagraphs"),
    stage="compile",
    baseline=True,
)
cuda_graph = Technique("CUDA graph", _cuda_graph, stage="graph", requires=("cuda",), baseline=True)

ladder = (eager, compiled, max_autotune)
"""What runs on every device; on CUDA, `cuda_graph` and `compiled >> cuda_graph` belong to it as well."""
