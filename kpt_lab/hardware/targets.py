"""Devices as data: peak rates and bandwidths, each with its source, and the CPU at hand, probed.

A Target's bound is the least time that a cost can take there, so its figures are ceilings: dense peak rates of the data
sheet, and for a CPU, which has no data sheet figure for its present clock and neighbours, the best that a probe reached.
"""

from __future__ import annotations

import contextlib
import functools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from kpt_lab import environment
from kpt_lab.core import Target, dtype_name
from kpt_lab.timer import best_time

_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture white paper, table of H100 SXM5 peak rates, dense (without sparsity)"
_H100_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, H100 SXM"
_H200_SHEET = "NVIDIA H200 Tensor Core GPU data sheet, H200 SXM"

# FLOP/s (int8: operations/s). The data sheet prints the tensor-core rates with 2:4 sparsity, twice these, rounded.
_HOPPER_PEAKS = {
    "bfloat16": 989.4e12,
    "float16": 989.4e12,
    "tf32": 494.7e12,
    "float32": 66.9e12,  # outside the tensor cores: a float32 matmul that runs as tf32 must say so in its cost
    "float64": 66.9e12,  # tensor cores; 33.5e12 outside them
    "float8_e4m3fn": 1978.9e12,
    "float8_e5m2": 1978.9e12,
    "int8": 1978.9e12,
}
_HOPPER_FEATURES = frozenset({"wgmma", "tma", "2:4", "fp8"})

h100_sxm = Target(
    "h100-sxm",
    peaks=_HOPPER_PEAKS,
    bandwidth=3.35e12,
    cache=50 * 2**20,
    features=_HOPPER_FEATURES,
    source={
        **dict.fromkeys(_HOPPER_PEAKS, _HOPPER),
        "bandwidth": f"{_H100_SHEET}: 80 GB HBM3, 3.35 TB/s",
        "cache": "NVIDIA H100 Tensor Core GPU Architecture white paper: 50 MB L2",
    },
)
"""NVIDIA H100 SXM5 80 GB. The tensor-core rates hold at the boost clock of 1.83 GHz; the clock can reach 1.98 GHz, at which
a short kernel could pass them by up to 8%. The bandwidth bounds traffic that misses the L2 cache only."""

h200_sxm = replace(
    h100_sxm,
    name="h200-sxm",
    bandwidth=4.8e12,
    cache=60 * 2**20,
    source={
        **dict.fromkeys(_HOPPER_PEAKS, f"{_HOPPER}; {_H200_SHEET} gives the H100's rates"),
        "bandwidth": f"{_H200_SHEET}: 141 GB HBM3e, 4.8 TB/s",
        "cache": "the whole GH100 die's 60 MB L2 (H100 white paper), taken as the upper limit; the H200 data sheet gives none",
    },
)
"""NVIDIA H200 SXM 141 GB: the H100's arithmetic with faster memory."""

_BY_DEVICE_NAME = {"NVIDIA H100 80GB HBM3": h100_sxm, "NVIDIA H200": h200_sxm}  # as torch.cuda.get_device_name gives them

_PROBED = (torch.float32, torch.float64, torch.bfloat16)
_SIZES = (256, 512, 1024)  # of square products, small first
_LONG_CALL = 0.05  # s: what takes longer is not tried again or at a larger size
_BUDGET = 0.015  # s for each thing probed in a round
_ROUNDS = 6
_BUFFER = (2**26, 2**28)  # bytes, fewest and most
_CACHES = "/sys/devices/system/cpu"


def find(device: str = "cpu", name: str | None = None) -> Target | None:
    """The Target that a torch device ("cpu", "cuda", "cuda:1") is, or None where no figures are known for it.

    A CPU is probed once in each process, which takes one to three seconds. `name` stands in for the CUDA device's own name.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return this_cpu()
    if kind != "cuda":
        return None
    if name is None:
        if not torch.cuda.is_available():
            raise ValueError(
                f"device is {device!r}, but torch finds no CUDA device here; pass device='cpu', or the device's name"
            )
        name = torch.cuda.get_device_name(device)
    return _BY_DEVICE_NAME.get(name)


def by_name(name: str) -> Target | None:
    """The Target of that name ("h100-sxm", "h200-sxm", "cpu" or this CPU's own name), or None where there is none."""
    known = {target.name: target for target in _BY_DEVICE_NAME.values()}
    if name in known:
        return known[name]
    return this_cpu() if name in ("cpu", _cpu_name()) else None


def this_cpu(*, again: bool = False) -> Target:
    """This machine's CPU with the ceilings that a probe of one to three seconds reached, kept for the process.

    Rates are the best square product's by dtype (for float64 at least half of float32's), bandwidth the best of a copy, a sum
    and a fill over a buffer well beyond the last-level cache. What a probe reached can be beaten: slightly by a better kernel
    or a faster clock, and by more where neighbours were using the memory meanwhile. So `again` probes once more and keeps the
    higher of each figure: do that before calling a time impossible.
    """
    threads = torch.get_num_threads()
    known = _known.get(threads)
    if known is None or again:
        new = _probe(threads)
        _known[threads] = _higher(known, new) if known else new
    return _known[threads]


_known: dict[int, Target] = {}  # by number of threads


def _higher(a: Target, b: Target) -> Target:
    """Target `a` with those figures of `b` that are higher, and their sources."""
    kinds = [kind for kind in b.peaks if b.peaks[kind] > a.peaks.get(kind, 0.0)]
    faster = ["bandwidth"] if b.bandwidth > a.bandwidth else []
    return replace(
        a,
        peaks={**a.peaks, **{kind: b.peaks[kind] for kind in kinds}},
        bandwidth=max(a.bandwidth, b.bandwidth),
        source={**a.source, **{figure: b.source[figure] for figure in (*kinds, *faster)}},
    )


def _cpu_name() -> str:
    return f"{environment.environment('cpu')['device_name']}, {torch.get_num_threads()} threads"


class _Candidate(NamedTuple):
    """One way to reach for a ceiling: `step` does `work` (FLOP or bytes) for the figure of that name."""

    figure: str
    way: str
    size: str
    work: float
    step: Callable[[], object]


def _probe(threads: int) -> Target:
    cache, cache_source = last_level_cache()
    traffic = list(_traffic(cache))
    found = _ceilings([*traffic, *_products(), *traffic])  # neighbours disturb memory most: tried twice in a round
    rates = {figure: rate for figure, (rate, _) in found.items()}
    source = {
        figure: f"measured on this machine by probe: best was {how}, {threads} threads" for figure, (_, how) in found.items()
    }
    if rates["float32"] / 2 > rates["float64"]:
        rates["float64"] = rates["float32"] / 2
        source["float64"] = f"half of float32's, as in vector units; float32: {source['float32']}"
    bandwidth = rates.pop("bandwidth")
    features = frozenset({torch.backends.cpu.get_cpu_capability().lower()})
    return Target(_cpu_name(), rates, bandwidth, {**source, "cache": cache_source}, features=features, cache=cache)


def _ceilings(candidates: list[_Candidate]) -> dict[str, tuple[float, str]]:
    """Best rate by figure, and how it was reached: in rounds, until one brings less than 2% (a busy machine needs several)."""
    found: dict[str, tuple[float, str]] = {}
    dropped: set[tuple[str, str]] = set()
    for _ in range(_ROUNDS):
        before = dict(found)
        for candidate in candidates:
            if (candidate.figure, candidate.way) in dropped:
                continue
            try:
                took = _lowest(candidate.step)
            except RuntimeError:  # oneDNN has no float64, an old build no bfloat16: no figure rather than a wrong one
                dropped.add((candidate.figure, candidate.way))
                continue
            if took > _LONG_CALL:
                dropped.add((candidate.figure, candidate.way))
            rate = candidate.work / took
            if rate > found.get(candidate.figure, (0.0, ""))[0]:
                found[candidate.figure] = rate, f"{candidate.way} of {candidate.size}"
        if before and all(rate <= 1.02 * before[figure][0] for figure, (rate, _) in found.items()):
            break
    return found


def _lowest(step: Callable[[], object]) -> float:
    """Lowest time in seconds of `step`, repeated for about _BUDGET seconds."""
    first = best_time(step, repeats=2, device="cpu")
    more = min(200, int(_BUDGET / first))
    return min(first, best_time(step, repeats=more, device="cpu")) if more > 2 else first


def _products() -> Iterator[_Candidate]:
    """Square products by dtype and library: which library is faster depends on the CPU's maker, by a factor of two."""
    for dtype in _PROBED:
        for n in _SIZES:
            a, b = (torch.rand(n, n).to(dtype) for _ in range(2))
            name, size, work = dtype_name(dtype), f"{n} x {n}", 2.0 * n**3
            yield _Candidate(name, "torch.matmul", size, work, functools.partial(torch.matmul, a, b, out=torch.empty_like(a)))
            if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
                # what torch.compile makes of a linear layer
                linear = functools.partial(torch.ops.mkldnn._linear_pointwise, a, b, None, "none", [], "")
                yield _Candidate(name, "oneDNN linear", size, work, linear)


def _traffic(cache: float) -> Iterator[_Candidate]:
    """Memory traffic over buffers well beyond the last-level cache."""
    n = int(min(max(4 * cache, _BUFFER[0]), _BUFFER[1]))
    a, b = torch.ones(n // 4), torch.ones(n // 4)
    size = f"{n // 2**20} MiB, " + (f"{n / cache:.3g} times the last-level cache" if cache else "the cache's size is unknown")
    yield _Candidate("bandwidth", "a copy", size, 2.0 * n, functools.partial(b.copy_, a))
    yield _Candidate("bandwidth", "a sum", size, n, functools.partial(torch.sum, a))
    yield _Candidate("bandwidth", "a fill", size, n, functools.partial(b.fill_, 1.0))


def last_level_cache() -> tuple[float, str]:
    """Bytes of this machine's last-level cache, all instances together, and where the figure is from; 0 where unknown."""
    if size := _linux_cache(Path(_CACHES)):
        return float(size), f"{_CACHES}/cpu*/cache, largest level, all instances"
    if sys.platform == "darwin":
        for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"):
            with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
                text = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10, check=True).stdout
                if int(text):
                    return float(text), f"sysctl {name}"
    return 0.0, "unknown: this system reports no cache sizes"


def _linux_cache(root: Path) -> int:
    """Bytes of the highest cache level under `root`, each instance counted once; 0 where nothing is readable."""
    sizes: dict[tuple[int, str], int] = {}
    for folder in root.glob("cpu[0-9]*/cache/index[0-9]*"):
        try:
            level, shared, size = ((folder / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
            kilo = {"K": 2**10, "M": 2**20}.get(size[-1:], 1)
            sizes[int(level), shared] = int(size.rstrip("KM")) * kilo
        except (OSError, ValueError):
            continue
    top = max((level for level, _ in sizes), default=-math.inf)
    return sum(size for (level, _), size in sizes.items() if level == top)
