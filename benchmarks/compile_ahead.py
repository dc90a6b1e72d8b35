"""Fill the compilers' caches for what flashlight_on_gpu.py and flashlight_transformers.py will measure; nothing is timed.

    for i in 0 1 2 3 4 5 6 7; do
        TORCHINDUCTOR_COMPILE_THREADS=1 PYTHONPATH=. python benchmarks/compile_ahead.py $i/8 --part rebuilt masks --seconds 150 &
    done; wait
    TORCHINDUCTOR_COMPILE_THREADS=2 PYTHONPATH=. python benchmarks/compile_ahead.py 0/1 --model gemma2 --memory 0.12

Compiling an attention takes longer than measuring it, on one core, while a GPU that is rented for minutes waits; several
processes, each with its share of the cells, do it at once. What kernels are raced meanwhile is thrown away: the device is shared.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flashlight_on_gpu as attentions
import flashlight_transformers as models
import torch
from resumable import elapsed

from kpt_lab import baselines, check
from kpt_lab.core import Technique, Unsupported, Workload
from kpt_lab.kernels import attention
from kpt_lab.measure import job_for
from kpt_lab.runner import Job, built, status_of

UNCOMPILED = (attention.eager, attention.fa3, baselines.eager, *attention.libraries)
LARGE = 4096  # tokens above which what holds the scores is left to the recording

Cell = tuple[Callable[[], Workload], list[Technique], dict[str, Any]]  # models are made when it is their turn


def cells(parts: list[str], names: list[str], modes: list[str], device: str) -> Iterator[Cell]:
    """All cells, with those of their techniques that compile something."""
    for part in parts:
        for workload, techniques, params in attentions.cells(part):
            chosen = [t for t in techniques if t not in UNCOMPILED]
            if params["length"] > LARGE:
                chosen = [t for t in chosen if t is not attention.compiled]
            yield partial(_same, workload), chosen, params
    for name in names:
        for mode in modes:
            yield partial(models.workload, name, models.CASES[name], mode, device), list(models.PARTS[1:]), {}


def _same(workload: Workload) -> Workload:
    return workload


def compiled(job: Job, technique: Technique) -> str:
    """Call a technique once, as a cell will; "" or its status and what happened."""
    torch._dynamo.reset()
    before = check.settings()
    try:
        problem = job.workload.make(**job.settings)
        built(job, technique, technique.parts or (technique,), problem, check.detach_inputs(problem.inputs[0]), setup=True)
    except torch.AcceleratorError:  # the device is lost: nothing can go on
        raise
    except (Unsupported, RuntimeError) as error:  # refused, not compiled, or out of this process's share of memory
        status, advice = status_of(error)
        return f"{status}: {advice}"
    finally:
        check.restore(before)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return ""


def main() -> int:
    """Compile this process's share, a line each; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("share", help="this process's part of the cells, such as 0/8")
    parser.add_argument("--part", nargs="*", default=[], choices=attentions.PARTS)
    parser.add_argument("--model", nargs="*", default=[], choices=tuple(models.CASES))
    parser.add_argument("--mode", nargs="*", default=list(models.MODES), choices=models.MODES)
    parser.add_argument("--memory", type=float, default=0.07, help="share of the device's memory that this process may take")
    parser.add_argument("--seconds", type=float, default=150.0, help="begin nothing after so many")
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    part, _, parts = asked.share.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        parser.error(f"share is {asked.share!r}; accepted is a process's number and their count, from 0/1 on, such as 3/8")
    if asked.device != "cpu":
        torch.cuda.set_per_process_memory_fraction(asked.memory)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KPT_LAB_CACHE"] = folder
        every = cells(asked.part, asked.model, asked.mode, asked.device)
        for make, techniques, params in itertools.islice(every, int(part), None, int(parts)):
            workload = make()
            for technique in techniques:
                if elapsed() > asked.seconds:
                    print(f"[{elapsed():4.0f}] out of time")
                    return int(bad > 0)
                dtype = "float32" if asked.device == "cpu" else attentions.DTYPE
                failed = compiled(job_for(workload, (technique,), params, device=asked.device, dtype=dtype), technique)
                bad += bool(failed)
                print(f"[{elapsed():4.0f}] {workload.name} {params} {technique.label} {failed}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
