"""Ring attention against torch's context_parallel, on the GPUs of one host, and how exact and repeatable it is.

    torchrun --standalone --nproc-per-node 2 benchmarks/ring_attention.py --record ring.h100.jsonl --seconds 540
    torchrun --standalone --nproc-per-node 2 benchmarks/ring_attention.py --device cpu --quick    # does it run at all

Parts, in this order unless --part names some: repeat (is the forward bitwise the same ten times), accuracy (error of output and
gradients against float64, beside the error of the same library kernel on one GPU), forward and backward (kpt_lab.measure with
the group: interleaved, the slowest rank counts), pieces (what the arithmetic, the transfer and the merge cost alone).
Prints one line of JSON per result, from rank 0. --record appends the Trials of the timed parts; cells that the file already has are
skipped, so that a second call goes on. No new cell starts after --seconds. Longest sequences and causal zig-zag come first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import kpt_lab as kpt
from kpt_lab import baselines, cell, ratios
from kpt_lab.core import Trials, to_dtype
from kpt_lab.kernels import blockwise, ring, ring_steps
from kpt_lab.records import load, record
from kpt_lab.testing import scaled_error

START = time.perf_counter()
PARTS = ("repeat", "accuracy", "forward", "backward", "pieces")
MASKS = ((True, "zigzag"), (False, "contiguous"), (True, "contiguous"))  # whether causal, and the layout
Cell = tuple[int, int, bool, str]  # tokens, key heads, causal, layout


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, a second a cell")
    parser.add_argument("--lengths", nargs="+", type=int, help="tokens on all ranks together")
    parser.add_argument("--groups", nargs="+", type=int, help="numbers of key heads")
    parser.add_argument("--heads", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--masks", nargs="+", type=int, choices=range(3), default=[0, 1, 2], help=f"numbers into {MASKS}")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--budget", type=float, help="seconds of timing a cell")
    parser.add_argument("--seconds", type=float, default=1e9, help="after which no new cell starts")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--high-priority", action="store_true", help="give NCCL's streams priority over the arithmetic")
    parser.add_argument("--oracle-heads", type=int, default=4, help="query heads that are compared with float64")
    chosen = parser.parse_args()
    quick = chosen.quick
    chosen.lengths = sorted(chosen.lengths or ([256, 128] if quick else [65536, 32768, 16384, 8192]), reverse=True)
    chosen.heads = chosen.heads or (4 if quick else 32)
    chosen.groups = chosen.groups or ([4, 2] if quick else [32, 8])
    chosen.width = chosen.width or (16 if quick else 128)
    chosen.budget = chosen.budget or (0.3 if quick else 10.0)
    chosen.dtype = chosen.dtype or ("float32" if chosen.device == "cpu" else "bfloat16")
    return chosen


def say(**fields: Any) -> None:
    """One line of JSON, from rank 0; what is not a number is null."""
    if dist.get_rank() == 0:
        fields = {name: finite(value) for name, value in fields.items()}
        print(json.dumps({**fields, "at_s": round(time.perf_counter() - START, 1)}), flush=True)


def finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON has not."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def agreed(choice: Any) -> Any:
    """Rank 0's choice."""
    box = [choice]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def cells(args: argparse.Namespace, part: str, done: set[Any]) -> Iterator[Cell]:
    """The cells of a part that are not recorded yet, as long as there is time."""
    for length, groups, mask in itertools.product(args.lengths, args.groups, args.masks):
        causal, layout = MASKS[mask]
        if (part, length, groups, causal, layout) in done:
            continue
        if agreed(time.perf_counter() - START > args.seconds):
            say(part=part, stopped=f"after {args.seconds} s", next=[length, groups, causal, layout])
            return
        yield length, groups, causal, layout


def tensors(args: argparse.Namespace, length: int, groups: int, seed: int = 0) -> list[torch.Tensor]:
    """q, k, v and an upstream gradient of the whole sequence, the same on every rank."""
    generator = torch.Generator(args.device).manual_seed(seed)
    return [
        torch.randn(1, n, length, args.width, generator=generator, device=args.device, dtype=to_dtype(args.dtype))
        for n in (args.heads, groups, groups, args.heads)
    ]


# ---- repeatable, exact


def repeat(args: argparse.Namespace, length: int, groups: int, causal: bool, layout: str) -> None:
    """Whether ten forward calls on every rank give the same bits."""
    q, k, v = (ring.shard(x, 2, None, layout) for x in tensors(args, length, groups)[:3])
    first = ring.attention(q, k, v, causal=causal, layout=layout)
    same = all(torch.equal(first, ring.attention(q, k, v, causal=causal, layout=layout)) for _ in range(9))
    flag = torch.tensor([int(same)], device=args.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    say(part="repeat", length=length, groups=groups, causal=causal, layout=layout, bitwise=bool(flag.item()), calls=10)


def accuracy(args: argparse.Namespace, length: int, groups: int, causal: bool, layout: str) -> None:
    """Scaled errors of output, dq, dk and dv against float64: the ring's, and those of its library kernel on one device."""
    whole = tensors(args, length, groups)
    shards = [ring.shard(x, 2, None, layout) for x in whole]
    step = ring.forward_and_backward(lambda q, k, v: ring.attention(q, k, v, causal=causal, layout=layout))
    mine = [ring.unshard(x, 2, None, layout) for x in step(*shards)]
    if dist.get_rank() == 0:
        q, k, v, dout = whole
        scale = args.width**-0.5
        forward, backward = (blockwise.choose(b, q, k, causal) for b in (False, True))
        out, lse = forward.forward(q, k, v, causal, scale)
        assert backward.backward is not None
        single = [out, *backward.backward(dout, q, k, v, out, lse, causal, scale)]
        few = max(1, args.oracle_heads * groups // args.heads)
        counts = [few * args.heads // groups, few, few, few * args.heads // groups]
        exact = oracle(*(x[:, :n].double() for x, n in zip(whole, counts, strict=True)), causal, scale)
        order = counts[0], counts[0], few, few
        errors = [
            [scaled_error(x[:, :n], wanted) for x, n, wanted in zip(found, order, exact, strict=True)]
            for found in (mine, single)
        ]
        names = ("out", "dq", "dk", "dv")
        say(
            part="accuracy", length=length, groups=groups, causal=causal, layout=layout, oracle_heads=counts[0],
            ring=dict(zip(names, errors[0], strict=True)), single=dict(zip(names, errors[1], strict=True)),
            worst_ratio=max(a / b for a, b in zip(*errors, strict=True)), kernels=[forward.name, backward.name],
        )  # fmt: skip
    dist.barrier()


def oracle(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dout: torch.Tensor, causal: bool, scale: float
) -> list[torch.Tensor]:
    """Output and gradients in float64."""
    out, lse = blockwise.plain_forward(q, k, v, causal, scale)
    return [out, *blockwise.plain_backward(dout, q, k, v, out, lse, causal, scale)]


# ---- how fast


def competitors(args: argparse.Namespace, part: str, groups: int, length: int) -> list[Any]:
    """context_parallel in its ways, and the ring; with one kernel for both where the ring would take another.

    On a CPU, where context_parallel has no ring, the specification stands for it.
    """
    peers = [ring.context_parallel(rotate=rotate) for rotate in ("allgather", "alltoall")]
    if groups != args.heads:
        peers += [peer(expand=True) for peer in peers[:1]]
    probe = [torch.empty(1, n, length // dist.get_world_size(), args.width, device=args.device, dtype=to_dtype(args.dtype)) for n in (args.heads, groups)]  # fmt: skip
    names = [blockwise.choose(backward, *probe, True).name for backward in (False, True)]
    say(part=part, local_kernels=dict(zip(("forward", "backward"), names, strict=True)))
    same = [ring.ring(kernel="cudnn")] if names[0] == "fa3" else []
    return [*peers, ring.ring, *same, *([baselines.eager] if args.device == "cpu" else [])]


def timed(args: argparse.Namespace, part: str, length: int, groups: int, causal: bool, layout: str) -> None:
    """One cell measured by the group; a line for each technique, with its ratio over the best context_parallel."""
    workload = getattr(ring, part)
    trials = kpt.measure(
        workload, competitors(args, part, groups, length), device=args.device, dtype=args.dtype, budget=args.budget, group=True,
        length=length, heads=args.heads, groups=groups, width=args.width, causal=causal, layout=layout,
    )  # fmt: skip
    if dist.get_rank() == 0 and args.record:
        record(trials, args.record)
    best = ratios.best_baseline(trials) if any(t.baseline for t in trials.ok) else Trials()
    for trial in trials:
        comparable = best and trial.status == "ok" and trial.technique in ("ring", "context_parallel")
        ratio = ratios.speedup(trial, over=best) if comparable and trial.label != best[0].label else None
        say(
            part=part, length=length, groups=groups, causal=causal, layout=layout, technique=trial.label, status=trial.status,
            advice=trial.advice, ms=1e3 * trial.time, error=getattr(trial.metrics.get("error"), "value", None),
            blocks=trial.chosen.get("blocks"),
            ratio=[ratio.value, *map(finite, (ratio.low, ratio.high)), ratio.verdict] if ratio else None,
            over=best[0].label if best else None,
        )  # fmt: skip


def milliseconds(args: argparse.Namespace, call: Callable[[], Any], count: int = 5) -> float:
    """Median time of a call in which all ranks start together."""
    found = []
    for _ in range(count + 1):
        dist.barrier()
        synchronize(args)
        start = time.perf_counter()
        call()
        synchronize(args)
        found.append(1e3 * (time.perf_counter() - start))
    return sorted(found[1:])[count // 2]


def synchronize(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def pieces(args: argparse.Namespace, length: int, groups: int, causal: bool, layout: str) -> None:
    """What the parts of a call cost alone, on rank 0, and the whole under other settings: to see what hides behind what."""
    q, k, v, dout = (ring.shard(x, 2, None, layout) for x in tensors(args, length, groups))
    rank, count, scale = dist.get_rank(), dist.get_world_size(), args.width**-0.5
    place = ring_steps.Ring(rank, count, None, layout, causal, scale, None)
    forward, backward = (blockwise.choose(b, q, k, causal) for b in (False, True))
    out, lse = forward.forward(q, k, v, causal, scale)
    whole = ring.forward_and_backward(lambda q, k, v: ring.attention(q, k, v, causal=causal, layout=layout))
    assert backward.backward is not None
    run, step = backward.backward, ring_steps

    def once() -> None:
        ring.attention(q, k, v, causal=causal, layout=layout)

    found = {
        "own block forward": milliseconds(args, lambda: forward.forward(q, k, v, causal, scale)),
        "own block backward": milliseconds(args, lambda: run(dout, q, k, v, out, lse, causal, scale)),
        "transfer": milliseconds(args, lambda: step._fetch(place, 1, k, v).wait()),
        "merge of whole": milliseconds(args, lambda: blockwise.merge(out, lse, out, lse)),
    }
    for cycles in (0, 20_000, 100_000):
        step.HEAD_START = cycles
        found[f"ring forward, HEAD_START {cycles}"] = milliseconds(args, once)
    step.HEAD_START = 0
    usual = step.PIECES
    for step.PIECES in (1, 2, 4, 8):
        found[f"ring both, PIECES {step.PIECES}"] = milliseconds(args, lambda: whole(q, k, v, dout))
    step.PIECES = usual
    names = [forward.name, backward.name]
    say(part="pieces", length=length, groups=groups, causal=causal, layout=layout, kernels=names, ms=found)


def recorded(path: Path | None) -> set[Any]:
    """What the file of records has already: (part, length, groups, causal, layout)."""
    if path is None or not path.exists():
        return set()
    names = {ring.forward.name: "forward", ring.backward.name: "backward"}
    return {
        (names[t.workload], *(t.params[name] for name in ("length", "groups", "causal", "layout")))
        for t in load(path)
        if t.workload in names and t.technique == "ring" and t.status == "ok"
    }


def main() -> None:
    args = arguments()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if args.device == "cuda":
        torch.cuda.set_device(local)
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=args.high_priority)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local), pg_options=options)
    else:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    cell._SLOW_ORACLE_NS = 0  # two input sets are checked on every rank, whichever rank's clock says what
    done = agreed(recorded(args.record))
    parts = {"repeat": repeat, "accuracy": accuracy, "pieces": pieces}
    for part in [name for name in PARTS if name in args.part]:
        for where in cells(args, part, done):
            if part in parts:
                parts[part](args, *where)
            else:
                timed(args, part, *where)
            if args.device == "cuda":
                torch.cuda.empty_cache()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
