"""Device times against an independent timer: replays of a CUDA graph that holds the call many times, host clock around them.

    python benchmarks/timers.py [--out FILE]

Three kernels over 100 us and three below, in bfloat16, with a warm cache (a graph replays on the same buffers; a cold cache is
measure's default, but nothing can be flushed between the calls inside one graph). Prints both times and their difference. Below
100 us an event pair and the start of a kernel (about 2 us) are no longer small, so the graph's figure per call is lower.
"""

from __future__ import annotations

import argparse
import json
from statistics import median

import torch

import kpt_lab as kpt
from kpt_lab import baselines, timer
from kpt_lab.kernels import softmax

SIZES = [(16384, 32768), (16384, 8192), (16384, 4096), (4096, 4096), (1024, 4096), (256, 1024)]


def graph_time(x: torch.Tensor, calls: int = 20, replays: int = 15) -> float:
    """Median seconds of one softmax inside a graph of `calls`, each into the same output buffer."""
    y = torch.empty_like(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.softmax(x, -1, out=y)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            torch.softmax(x, -1, out=y)
    graph.replay()
    return median(timer.wall_on_cuda(graph.replay, ())[0] for _ in range(replays)) / calls / 1e9


def main() -> None:
    """Print and write one row a size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    options = parser.parse_args()
    rows = []
    for shape in SIZES:
        ours = kpt.measure(
            softmax.forward, [baselines.eager], device="cuda", dtype="bfloat16", cache="warm", processes=0, budget=4,
            rows=shape[0], cols=shape[1],
        )[0]  # fmt: skip
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        other = graph_time(x)
        rows.append({"shape": shape, "measure_us": ours.time * 1e6, "graph_us": other * 1e6, "ratio": ours.time / other})
        print("{shape!s:16} measure {measure_us:9.2f} us   graph {graph_us:9.2f} us   ratio {ratio:.4f}".format(**rows[-1]))
    if options.out:
        with open(options.out, "w") as file:
            json.dump(rows, file)


if __name__ == "__main__":
    main()
