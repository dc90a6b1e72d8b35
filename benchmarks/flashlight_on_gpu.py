"""FlashLight on a CUDA device: idiomatic attention, rewritten, against every kernel that one could have called by hand.

    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part plain     # plain and causal, 1k to 32k
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part masks     # against FlexAttention with a kept mask
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part rebuilt   # masks whose tensors change in every step
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part eager     # over plain PyTorch, with memory
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part memory    # 32k tokens
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part backward  # or several parts, one after the other
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --record FILE --part native    # FlashAttention-3's own forms against Flex
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --tune --only padding softcap  # block sizes, and FlashAttention-3's own forms
    PYTHONPATH=. python benchmarks/flashlight_on_gpu.py --summary FILE                 # the tables of a record, on any machine

What a file holds already of such a device and of the code as it is now is not measured again, so a part can be recorded in several
calls of a few minutes: --seconds ends one. Cells come in the order of what matters most. Choices are kept in
build/attention_cache, and copied to $OUT.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from resumable import best_of, elapsed, geomean, measured, ratio

from kpt_lab import ratios, records
from kpt_lab.core import Technique, Trials, Workload
from kpt_lab.kernels import attention
from kpt_lab.kernels import flashlight as flashlight_package
from kpt_lab.kernels.attention import backward, flashlight, flashlight_compiled, flashlight_rebuilt, flex, forward, libraries
from kpt_lab.kernels.flashlight import choose
from kpt_lab.measure import job_for
from kpt_lab.runner import Job

OUT = Path(os.environ.get("OUT", "."))
DEVICE, DTYPE, HEADS, TOKENS = "cuda", "bfloat16", 16, 16384
PARTS = ("plain", "masks", "rebuilt", "native", "eager", "memory", "backward")
MASKS = ("window", "prefix", "document", "dilated", "padding", "alibi", "softcap")
TUNED = ("padding", "softcap", "document", "window", "alibi")
NATIVE = flashlight(kernel="fa3")
OURS = (flashlight.label, flashlight_compiled.label, flashlight_rebuilt.label, NATIVE.label)
PLAIN = tuple(t.label for t in (attention.eager, attention.compiled, attention.max_autotune))
Cell = tuple[Workload, tuple[Technique, ...], dict[str, Any]]


def sized(length: int, width: int, groups: int, variant: str) -> dict[str, Any]:
    """Parameters of 16k tokens; above that with fewer heads, since the specification's own float32 scores must fit the device."""
    heads = HEADS if length <= TOKENS else 4
    batch, groups = max(1, TOKENS // length), min(groups, heads)
    return {"batch": batch, "heads": heads, "groups": groups, "length": length, "width": width, "variant": variant}


def cells(part: str) -> Iterator[Cell]:
    """The cells of one part, what matters most first."""
    ours = (flashlight, flashlight_compiled)
    if part == "plain":
        # Flex is compiled for each shape, which takes longer than to measure it: it is a peer at two lengths only
        few, every = ((128, 1), (64, 8)), ((128, 1), (128, 8), (64, 1), (64, 8))
        for length, sizes in ((16384, few), (1024, few), (32768, few), (8192, few), (2048, few), (4096, every)):
            for variant in ("causal", "plain"):
                for width, groups in sizes:
                    peers = (*libraries, flex) if length in (1024, 4096) else libraries
                    mine = ours if length == 4096 else (flashlight,)
                    yield forward, (*peers, *mine), sized(length, width, groups, variant)
    elif part == "masks":
        for length, variants in ((4096, MASKS), (1024, ("window", "document")), (8192, ("window", "document"))):
            for variant in variants:
                for width, groups in ((128, 1), (64, 8)):
                    yield forward, (flex, flashlight), sized(length, width, groups, variant) | {"kept": True}
    elif part == "rebuilt":
        for length in (8192, 2048):
            for variant in ("document", "padding"):
                for width, groups in ((128, 1), (64, 8)):
                    yield forward, (attention.flex_rebuilt, flashlight_rebuilt), sized(length, width, groups, variant)
    elif part == "native":
        for variant, length in (("padding", 8192), ("softcap", 4096), ("padding", 2048)):
            for width, groups in ((128, 1), (64, 8)):
                # a mask over keys alone costs the same however often it changes
                kept, peer = ({"kept": True}, flex) if variant == "softcap" else ({}, attention.flex_rebuilt)
                yield forward, (peer, NATIVE), sized(length, width, groups, variant) | kept
    elif part == "eager":
        for length in (4096, 1024, 16384):
            for variant in ("causal", "document", "softcap", "plain"):
                techniques = (attention.eager, attention.compiled, *ours)
                yield forward, techniques, sized(length, 128, 1, variant) | {"batch": max(1, 4096 // length), "kept": True}
    elif part == "memory":
        for variant, width in (("document", 128), ("softcap", 64), ("causal", 128), ("plain", 64)):
            peers = (attention.sdpa_cudnn, attention.fa3) if variant in ("causal", "plain") else (flex,)
            yield forward, (*peers, flashlight), sized(32768, width, 1, variant) | {"kept": True}
    else:
        for length, (width, groups) in itertools.product((4096, 16384, 1024), ((128, 1), (64, 8))):
            for variant in ("causal", "document", "alibi", "plain", "window"):
                peers = (
                    (attention.sdpa_flash, attention.sdpa_cudnn, attention.fa3) if variant in ("causal", "plain") else (flex,)
                )
                yield backward, (*peers, flashlight), sized(length, width, groups, variant) | {"kept": True}


def jobs(part: str, processes: int) -> Iterator[Job]:
    """The jobs of a part in the order of their processes, so that an early end leaves whole cells with fewer processes."""
    for process in range(processes):
        for workload, techniques, params in cells(part):
            job = job_for(workload, techniques, params, device=DEVICE, dtype=DTYPE, budget=BUDGET * len(techniques))
            yield replace(job, process=process)


def record(file: Path, parts: Sequence[str], seconds: float, processes: int) -> None:
    """Measure what `file` lacks of the parts on such a device, until done or out of time."""
    every = itertools.chain.from_iterable(jobs(part, processes) for part in parts)
    measured(every, file, device=DEVICE, seconds=seconds, limit=180.0)
    summary(file)


def tune(variants: Sequence[str], seconds: float) -> None:
    """Race FlexAttention's block sizes, and FlashAttention-3 in its own forms, for each variant and head width; remember them."""
    for variant, width, groups in itertools.product(variants, (128, 64), (1, 8)):
        if elapsed() > seconds:
            print("out of time")
            return
        workload = forward(**sized(4096, width, groups, variant))
        problem = workload.make(device=DEVICE, dtype=DTYPE, seed=0, **workload.complete({}))
        torch._dynamo.reset()
        found = flashlight_package.tune(problem.fn, problem.inputs[0])
        print(f"[{elapsed():4.0f}] {variant} width {width} groups {groups}:", flush=True)
        for options, took in sorted(found.items(), key=lambda item: item[1]):
            print(f"    {1e6 * took:8.1f} us  {options}", flush=True)


# ---- summary


def peak(trials: Trials) -> float:
    """Peak memory of a call in bytes, or NaN."""
    found = [t.metrics[name].value for t in trials.ok for name in ("memory.peak", "memory") if name in t.metrics]
    return max(found, default=math.nan)


def summary(file: Path) -> None:
    """For each cell each of ours over the best peer and over plain PyTorch, with memory; geometric means at the end."""
    means: dict[tuple[str, str], list[float]] = {}
    for cell, by_label in sorted(
        ratios.cells(records.load(file)).items(), key=lambda item: (item[0].workload, sorted(map(str, item[0].params)))
    ):
        size = dict(cell.params)
        what = f"{cell.workload} {size['variant']} {size['length']} width {size['width']} groups {size['groups']}"
        peers = [label for label in by_label if label not in (*OURS, *PLAIN, "copy")]
        base, plain = best_of(by_label, peers), best_of(by_label, [label for label in PLAIN if label in by_label])
        shown = []
        for ours in OURS:
            if ours not in by_label:
                continue
            text = f"{ours}:"
            for over in filter(None, (base, plain)):
                value = ratio(by_label, ours, over)
                text += f" {value:.3f}x over {over}"
                kind = "plain or causal" if size["variant"] in ("plain", "causal") else "masks"
                means.setdefault(
                    (f"{cell.workload}, {kind}, over {'plain PyTorch' if over in PLAIN else over}", ours), []
                ).append(value)
                text += f" (memory {peak(by_label[ours]) / peak(by_label[over]):.2f}x)"
            shown.append(text)
        print(f"{what}: " + "; ".join(shown))
    print("\ngeometric means, and the lowest:")
    for (what, ours), values in sorted(means.items()):
        kept = [v for v in values if v == v]
        if kept:
            print(f"  {ours}, {what}: {geomean(kept):.3f}x over {len(kept)} cells, lowest {min(kept):.3f}x")


BUDGET = 0.6  # seconds of timing a technique in a cell and process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE", type=Path)
    parser.add_argument("--summary", metavar="FILE", type=Path)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(TUNED), choices=TUNED, help="variants to tune")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=["plain"])
    parser.add_argument("--processes", type=int, default=1, help="6 make a headline")
    parser.add_argument("--seconds", type=float, default=350.0, help="end after so many")
    asked = parser.parse_args()
    os.environ.setdefault("KPT_LAB_CACHE", str(Path("build/attention_cache").resolve()))
    if asked.tune:
        tune(asked.only, asked.seconds)
    if asked.record:
        record(asked.record, asked.part, asked.seconds, asked.processes)
    if asked.summary:
        summary(asked.summary)
    if choose.STORE.path().exists():
        shutil.copy(choose.STORE.path(), OUT / choose.STORE.path().name)
    if not (asked.tune or asked.record or asked.summary):
        parser.print_help()


if __name__ == "__main__":
    main()
