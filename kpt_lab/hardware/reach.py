"""How a probe reaches for a device's ceilings: copies and reads over sizes, square products by arithmetic type, launches.

Every figure is the best of several short runs of torch's own operations, with the operation and size that reached it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from kpt_lab import timer
from kpt_lab.core import Metric
from kpt_lab.hardware import devices, targets

_CPU_SIZES = (256, 512, 1024)  # of square products
_CUDA_SIZES = (2048, 4096, 8192)
_CPU_TRAFFIC = tuple(2**power for power in range(18, 29))  # bytes touched, 256 KiB to 256 MiB
_CUDA_TRAFFIC = tuple(2**power for power in range(22, 32))  # 4 MiB to 2 GiB
_BUDGET = {"cpu": 0.015, "cuda": 0.08}  # s for each thing tried
_LONG = 0.05  # s: what takes longer is not tried at a larger size
_FEWEST, _MOST = 6, 200  # calls
_ROUNDS = 2  # over all sizes of memory traffic
_LAUNCHES = 200  # small operations in a row
_FP8 = (8, 9)  # the compute capability from which products of 8-bit floats exist


class _Try(NamedTuple):
    """One way to reach for a figure: `make` gives a step that does `work` FLOP or bytes."""

    figure: str
    way: str
    size: str
    work: float
    make: Callable[[], Callable[[], object]]
    unit: str = "FLOP/s"


def on_cpu(again: bool = False) -> dict[str, Any]:
    """The fields of Ceilings that a CPU reaches, what Trials are bounded by (targets.this_cpu) included."""
    known = targets.this_cpu(again=again)
    figures = {}
    for name in (*known.peaks, "bandwidth"):
        value, unit = (known.bandwidth, "B/s") if name == "bandwidth" else (known.peaks[name], "FLOP/s")
        derived = known.source[name].startswith("half of")  # of a vector unit's float32: not measured
        how = known.source[name].removeprefix("measured on this machine by probe: best was ")
        figures[name] = Metric(value, unit, "modelled" if derived else "measured", source=how)
    found, absent = _best([*_products("cpu", torch.float16, _CPU_SIZES), *_integers("cpu", _CPU_SIZES)], "cpu")
    figures |= found
    sizes = [size for size in _CPU_TRAFFIC if size <= max(4 * known.cache, _CPU_TRAFFIC[-2])]
    traffic = _traffic("cpu", sizes)
    largest = {f"bandwidth {name}": of[max(of)] for name, of in traffic.items()}
    figures["bandwidth"] = max(figures["bandwidth"], *largest.values(), key=lambda metric: metric.value)
    figures |= {**largest, "launch": _launch("cpu")}
    absent |= {
        "tf32": "a CPU has no such arithmetic",
        "float8_e4m3fn": "torch multiplies 8-bit floats on a CPU by converting them, which is no ceiling of anything",
    }
    return {
        "figures": figures,
        "traffic": traffic,
        "absent": absent,
        "cache": known.cache,
        "features": known.features,
    }


def on_cuda(device: str) -> dict[str, Any]:
    """The fields of Ceilings that an NVIDIA GPU reaches, by device time."""
    properties, capability = torch.cuda.get_device_properties(device), torch.cuda.get_device_capability(device)
    tries = [t for dtype in (torch.float32, torch.float64, torch.float16) for t in _products(device, dtype, _CUDA_SIZES)]
    absent: dict[str, str] = {}
    if capability >= (8, 0):
        tries += [*_products(device, torch.bfloat16, _CUDA_SIZES), *_products(device, torch.float32, _CUDA_SIZES, "tf32")]
    else:
        absent |= dict.fromkeys(("bfloat16", "tf32"), f"compute capability {capability} has no such tensor cores")
    if capability >= _FP8:
        tries += [*_eighths(device, _CUDA_SIZES)]
    else:
        absent |= dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), f"compute capability {capability} has none; {_FP8} has")
    tries += [*_integers(device, _CUDA_SIZES)]
    with torch.cuda.device(device):
        figures, refused = _best(tries, device)
        traffic = _traffic(device, [size for size in _CUDA_TRAFFIC if 2 * size <= torch.cuda.mem_get_info()[0]])
        largest = {f"bandwidth {name}": of[max(of)] for name, of in traffic.items()}
        figures |= {"bandwidth": max(largest.values(), key=lambda metric: metric.value), **largest}
        figures["launch"] = _launch(device)
        figures["launch in a graph"] = _graph_launch()
        torch.cuda.empty_cache()
    try:
        features = devices.target(torch.cuda.get_device_name(device), properties.total_memory).features
    except ValueError:
        features = frozenset()
    return {
        "figures": figures,
        "traffic": traffic,
        "absent": absent | refused,
        "cache": float(properties.L2_cache_size),
        "memory": float(properties.total_memory),
        "features": features,
    }


# ---- timing


def _least(step: Callable[[], object], device: str) -> float:
    """The shortest of several calls in seconds: wall time on a CPU, device time on a GPU."""
    if not device.startswith("cuda"):
        first = timer.best_time(step, repeats=1)
        more = min(_MOST, max(_FEWEST, int(_BUDGET["cpu"] / first)))  # a call may have waited for a thread to wake
        return min(first, timer.best_time(step, repeats=more)) if first < _LONG else first
    host = min(timer.wall_on_cuda(step, ())[0] for _ in range(2))
    first = max(1, timer.device_on_cuda(step, (), host)[0]) / 1e9
    more = max(2, min(_MOST, int(_BUDGET["cuda"] / first)))
    return min(first, *(max(1, timer.device_on_cuda(step, (), host)[0]) / 1e9 for _ in range(more)))


def _best(tries: list[_Try], device: str) -> tuple[dict[str, Metric], dict[str, str]]:
    """The best rate of each figure, and why some have none; what is slow already is not tried larger."""
    found: dict[str, Metric] = {}
    refused: dict[str, str] = {}
    slow: set[tuple[str, str]] = set()
    for each in tries:
        if (each.figure, each.way) in slow:
            continue
        try:
            took = _least(each.make(), device)
        except (RuntimeError, NotImplementedError) as error:
            refused[each.figure] = f"{each.way} refused: {' '.join(str(error).split())[:120]}"
            slow.add((each.figure, each.way))
            continue
        if took > _LONG:
            slow.add((each.figure, each.way))
        if each.figure not in found or each.work / took > found[each.figure].value:
            found[each.figure] = Metric(each.work / took, each.unit, "measured", source=f"{each.way} of {each.size}")
    return found, {name: why for name, why in refused.items() if name not in found}


# ---- products


def _products(device: str, dtype: torch.dtype, sizes: tuple[int, ...], kind: str = "") -> Iterator[_Try]:
    name = kind or str(dtype).removeprefix("torch.")
    for n in sizes:
        make = functools.partial(_product, device, dtype, n, name == "tf32")
        yield _Try(name, "torch.matmul", f"{n} x {n}", 2.0 * n**3, make)


def _product(device: str, dtype: torch.dtype, n: int, tf32: bool) -> Callable[[], object]:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    plain = functools.partial(torch.matmul, a, b, out=out)
    if dtype is not torch.float32 or not device.startswith("cuda"):
        return plain

    def step() -> None:
        with _float32_as(tf32):
            plain()

    return step


@contextlib.contextmanager
def _float32_as(tf32: bool) -> Iterator[None]:
    """CUDA products of float32 in tf32 or in float32, whatever the process chose; its choice is put back."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)


def _eighths(device: str, sizes: tuple[int, ...]) -> Iterator[_Try]:
    """Products of 8-bit floats; of two e5m2 there is no kernel, so that is e5m2 times e4m3fn, as a weight's gradient is."""
    for figure, dtype, way in (
        ("float8_e4m3fn", torch.float8_e4m3fn, "torch._scaled_mm, one scale, fast accumulation,"),
        ("float8_e5m2", torch.float8_e5m2, "torch._scaled_mm of e5m2 and e4m3fn, one scale, fast accumulation,"),
    ):
        for n in sizes:
            yield _Try(figure, way, f"{n} x {n}", 2.0 * n**3, functools.partial(_eighth, device, dtype, n))


def _eighth(device: str, dtype: torch.dtype, n: int) -> Callable[[], object]:
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(torch.float8_e4m3fn).t()  # the second factor's columns are to be contiguous
    one = torch.ones((), device=device)
    return functools.partial(torch._scaled_mm, a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _integers(device: str, sizes: tuple[int, ...]) -> Iterator[_Try]:
    for n in sizes:
        yield _Try("int8", "torch._int_mm", f"{n} x {n}", 2.0 * n**3, functools.partial(_integer, device, n), "OP/s")


def _integer(device: str, n: int) -> Callable[[], object]:
    a, b = (torch.randint(-128, 128, (n, n), dtype=torch.int8, device=device) for _ in range(2))
    return functools.partial(torch._int_mm, a, b.t().contiguous().t())


# ---- memory and launches


def _traffic(device: str, sizes: list[int]) -> dict[str, dict[int, Metric]]:
    """B/s of a copy (read and written) and of a sum (read) by bytes touched; the call's own cost is in it."""
    found: dict[str, dict[int, Metric]] = {"copy": {}, "read": {}}
    for size in sizes * _ROUNDS:
        a, b = (torch.ones(size // 8, device=device) for _ in range(2))
        both = torch.ones(size // 4, device=device)
        ways: dict[str, Callable[[], object]] = {
            "copy": functools.partial(b.copy_, a),
            "read": functools.partial(torch.sum, both),
        }
        for name, step in ways.items():
            how = f"a {'copy' if name == 'copy' else 'sum'} that touches {size / 2**20:.4g} MiB"
            rate = size / _least(step, device)
            if size not in found[name] or rate > found[name][size].value:
                found[name][size] = Metric(rate, "B/s", "measured", source=how)
    return found


def _launch(device: str) -> Metric:
    """Seconds of the host for one operation on one element, from many in a row."""
    x = torch.ones(1, device=device)

    def step() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    took = timer.best_time(step, repeats=10, device=device)
    return Metric(took / _LAUNCHES, "s", "measured", source=f"add_ to one element, {_LAUNCHES} in a row, host's time of each")


def _graph_launch() -> Metric:
    """Seconds of the device for one such operation inside a CUDA graph."""
    x, graph = torch.ones(1, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_LAUNCHES):
            x.add_(1)
    took = _least(graph.replay, "cuda")
    return Metric(
        took / _LAUNCHES, "s", "measured", source=f"add_ to one element, {_LAUNCHES} in one graph, device's time of each"
    )
