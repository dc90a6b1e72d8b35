"""Records: how fast 10,000 Trials load, and what killed and competing writers lose. Run: python benchmarks/records.py

Prints one line for each bar and ends with exit code 1 where one is missed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.records import load, record

TRIALS, SAMPLES, LOADS = 10_000, 30, 5
SECONDS = 1.0
WRITERS, LINES = 4, 500
KILLS = 20

WRITER = """
import sys
sys.path[:0] = sys.argv[4:]
from benchmarks_records import trials
from kpt_lab.records import record
seed, count, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for i, trial in enumerate(trials(count, seed)):
    record(trial, path)
    print(i, flush=True)
"""


def trials(count: int, seed: int = 0) -> Iterator[Trial]:
    """Trials such as a GPU sweep makes: two series of samples, five metrics, an environment with clocks. Made up."""
    dice = random.Random(seed)
    for i in range(count):
        times = [dice.randrange(100_000, 1_000_000) for _ in range(SAMPLES)]
        seconds = times[0] / 1e9
        yield Trial(
            "made.up", f"technique {i % 6}", {"rows": 4096, "cols": i // 36, "index": i}, baseline=i % 6 < 3, target="made up",
            device="cuda", dtype="bfloat16", seed=seed, at="2026-01-01T00:00:00Z", cell=f"{i // 36:08x}", process=i // 6 % 6,
            metrics={
                "time": Metric(seconds, "s", "measured", seconds * 0.99, seconds * 1.01),
                "wall_time": Metric(seconds * 1.1, "s", "measured", seconds, seconds * 1.2),
                "bound": Metric(1e-5, "s", "modelled", source="bytes over bandwidth of a made-up device"),
                "error": Metric(dice.random(), "1", "measured", source="against the float64 oracle"),
                "noise_floor": Metric(dice.random(), "1", "measured", 0.99, 1.01),
            },
            samples={"time": tuple(times), "wall_time": tuple(t + 3000 for t in times)},
            chosen={"cache": "cold", "blocks": SAMPLES, "flops": {"float32": 1e6}, "bytes": 1e7},
            source={"technique": "0" * 12, "workload": "1" * 12, "technique_at": "made:up", "workload_at": "made:up", "method": 1},
            env={"host": f"host {seed}", "torch": "2.11", "before": {"sm_mhz": 1980.0}, "after": {"sm_mhz": 1755.0 + i}},
        )  # fmt: skip


def loading(folder: Path) -> bool:
    """Time to load TRIALS Trials; the median of LOADS."""
    made = Trials(trials(TRIALS))
    path = folder / "many.jsonl"
    start = time.perf_counter()
    record(made, path)
    wrote = time.perf_counter() - start
    seconds = []
    for _ in range(LOADS):
        start = time.perf_counter()
        found = load(path)
        seconds.append(time.perf_counter() - start)
        assert found == made
        del found
    middle = sorted(seconds)[LOADS // 2]
    size = path.stat().st_size / 1e6
    print(
        f"load: {TRIALS} Trials x 2 series x {SAMPLES} samples, {size:.1f} MB: median {middle:.2f} s of {LOADS} "
        f"({min(seconds):.2f} to {max(seconds):.2f}); bar {SECONDS} s; written in {wrote:.2f} s"
    )
    return middle < SECONDS


def _writer(folder: Path, seed: int, count: int, path: Path) -> subprocess.Popen[str]:
    (folder / "benchmarks_records.py").write_text(Path(__file__).read_text())
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", WRITER, str(seed), str(count), str(path), str(folder), root]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def competing(folder: Path) -> bool:
    """WRITERS processes append LINES Trials each to one file at once."""
    path = folder / "competing.jsonl"
    children = [_writer(folder, seed, LINES, path) for seed in range(WRITERS)]
    for child in children:
        child.communicate()
    found, torn = _load(path)
    whole = all(list(found.where(seed=seed)) == list(trials(LINES, seed)) for seed in range(WRITERS))
    print(f"competing writers: {WRITERS} x {LINES} lines: {len(found)} read, {torn} torn, all equal: {whole}")
    return whole and torn == 0 and len(found) == WRITERS * LINES


def killing(folder: Path) -> bool:
    """A writer is killed at KILLS random moments: everything that it had said was written must be there."""
    dice, lost, torn, read = random.Random(1), 0, 0, 0
    for k in range(KILLS):
        path = folder / f"killed{k}.jsonl"
        child = _writer(folder, k, 10**6, path)
        assert child.stdout
        for _ in range(dice.randrange(1, 60)):
            child.stdout.readline()
        time.sleep(dice.random() / 100)
        os.kill(child.pid, signal.SIGKILL)
        rest = child.communicate()[0].split()
        found, damaged = _load(path)
        read, torn = read + len(found), torn + damaged
        written = int(rest[-1]) + 1 if rest else len(found)
        lost += written - min(written, len(found))
        lost += sum(t.params["index"] != i for i, t in enumerate(found))
    print(
        f"killed writers: {KILLS} kills, {read} Trials read, {lost} lost that had been written, {torn} unfinished lines skipped"
    )
    return lost == 0 and torn <= KILLS


def _load(path: Path) -> tuple[Trials, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return load(path), len(caught)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        passed = [check(Path(folder)) for check in (loading, competing, killing)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
