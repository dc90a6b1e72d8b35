"""Softmax and GELU kernels on a CUDA device: correct first, then launch variants against a copy and torch.compile.

    PYTHONPATH=. python benchmarks/kernels_on_gpu.py            # about 3 minutes; TRITON_INTERPRET must not be set
    PYTHONPATH=. python benchmarks/kernels_on_gpu.py --check    # correctness alone

Prints one line per variant: median time of triton.testing.do_bench (L2 flushed), bytes moved per second, the share of a copy
of the same bytes, and the speedup over the best torch.compile. "*" marks the launch that the module chooses by itself.
Writes all of it as JSON to $OUT/kernels_on_gpu.json (or the working directory). It explores; claims come from `kpt-lab record`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
    raise SystemExit("TRITON_INTERPRET is set; unset it, this script times compiled kernels")

import torch
from triton.testing import do_bench

from kpt_lab import kernels
from kpt_lab.kernels import gelu, softmax
from kpt_lab.testing import assert_close_to_oracle, guarded

ROWS = 16384
BUDGET = 225.0  # seconds after which no new section starts
START = time.perf_counter()
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Row = dict[str, Any]


# ---- correctness


def in_and_out_of_bounds() -> None:
    """Inputs between NaN guards, outputs between guards: nothing is read or written outside."""
    for dtype, (rows, cols) in itertools.product(
        DTYPES.values(), ((3, 7), (5, 1000), (3, 1023), (2, 8200), (1, 65537), (3, 131071))
    ):
        x, check_x = guarded(torch.randn(rows, cols, device="cuda", dtype=dtype))
        y, check_y = guarded(torch.empty_like(x))
        softmax.run_forward(x, y)
        torch.testing.assert_close(y, torch.softmax(x, -1), rtol=2e-2, atol=1e-6)
        check_x(), check_y()
        dx, check_dx = guarded(torch.empty_like(x))
        softmax.run_backward(x, y, dx)
        assert dx.isfinite().all()
        check_dx()
        gelu.run_forward(x, y, tanh=False)
        gelu.run_backward(x, x, dx, tanh=False)
        assert y.isfinite().all()
        assert dx.isfinite().all()
        check_x(), check_y(), check_dx()


def against_float64(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Forward and backward of one operation against its float64 specification."""
    module, function = {
        "softmax": (softmax.softmax, softmax.triton_softmax),
        "gelu": (gelu.gelu, gelu.triton_gelu),
        "gelu_tanh": (gelu.gelu_tanh, gelu.triton_gelu_tanh),
    }[name]
    x, dy = (torch.randn(shape, device="cuda", dtype=dtype) * scale for scale in (3, 1))
    assert_close_to_oracle(kernels.forward_and_backward(function), kernels.forward_and_backward(module), x, dy)


def launches_agree(cols: int, dtype: torch.dtype) -> None:
    """Every launch variant gives the default's numbers, to rounding."""
    x, dy = (torch.randn(64, cols, device="cuda", dtype=dtype) for _ in range(2))
    wanted, got = torch.empty_like(x), torch.empty_like(x)
    softmax.run_forward(x, wanted)
    for launch in forward_launches(cols, x.element_size()):
        softmax.run_forward(x, got.fill_(torch.nan), launch)
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-7)
    y, wanted = got.clone(), torch.empty_like(x)
    softmax.run_backward(dy, y, wanted)
    for launch in backward_launches(cols, x.element_size()):
        softmax.run_backward(dy, y, got.fill_(torch.nan), launch)
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=1e-6)


def beyond_2_to_31() -> None:
    """More than 2**31 elements: the last rows are right."""
    x = torch.randn(40000, 65536, device="cuda", dtype=torch.bfloat16)
    for function, specification in ((softmax.triton_softmax, softmax.softmax), (gelu.triton_gelu, gelu.gelu)):
        last = function(x)[-4:].clone()
        assert_close_to_oracle(lambda _, last=last: last, specification, x[-4:].contiguous())


def everywhere() -> None:
    """Extreme rows, empty and strided inputs, vmap, and torch.compile with gradients."""
    inf = float("inf")
    rows = torch.randn(8, 1000, device="cuda")
    rows[0], rows[1, 3], rows[2, ::2], rows[3], rows[4, 5] = -inf, inf, -inf, 3e38, torch.nan
    assert_close_to_oracle(softmax.triton_softmax, softmax.softmax, rows)
    long = torch.cat([rows] * 70, dim=1)
    assert_close_to_oracle(softmax.triton_softmax, softmax.softmax, long)
    x = torch.randn(4, 6, 1000, device="cuda", dtype=torch.bfloat16)
    for view in (x, x[:, ::2, 8:], x.transpose(1, 2), x[..., 1:], x[:0], x[..., :0], x[0, 0, 0]):
        assert_close_to_oracle(softmax.triton_softmax, softmax.softmax, view)
        assert_close_to_oracle(gelu.triton_gelu, gelu.gelu, view)
    assert_close_to_oracle(torch.func.vmap(softmax.triton_softmax, in_dims=1), torch.func.vmap(softmax.softmax, in_dims=1), x)
    for fast, plain in ((softmax.triton_softmax, softmax.softmax), (gelu.triton_gelu, gelu.gelu)):
        step, wanted = (kernels.forward_and_backward(f) for f in (torch.compile(fast, fullgraph=True), plain))
        assert_close_to_oracle(step, wanted, x, torch.randn_like(x))
        torch.library.opcheck(softmax.triton_softmax, (x.detach().requires_grad_(),))


def correctness() -> list[str]:
    """Run all checks; returns one line per failure."""
    cases: list[tuple[str, Callable[[], None]]] = [
        ("guards", in_and_out_of_bounds),
        ("beyond 2**31", beyond_2_to_31),
        ("everywhere", everywhere),
    ]
    shapes = [(64, c) for c in (1, 2, 7, 33, 128, 255, 1000, 1024, 1025, 4096)] + [
        (5, 20000),
        (3, 65536),
        (2, 65537),
        (2, 131072),
    ]
    for name, dtype, shape in itertools.product(("softmax", "gelu", "gelu_tanh"), DTYPES.values(), shapes):
        if name == "softmax" or shape[1] in (7, 1000, 65537):
            cases.append((f"{name} {dtype} {shape}", lambda a=name, b=dtype, c=shape: against_float64(a, b, c)))
    for cols, dtype in itertools.product((1000, 4096, 32768, 65536), (torch.bfloat16, torch.float32)):
        cases.append((f"launches {cols} {dtype}", lambda a=cols, b=dtype: launches_agree(a, b)))
    failures = []
    for name, case in cases:
        try:
            case()
        except Exception as error:  # one broken case must not hide the others
            failures.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
            traceback.print_exc(limit=3)
    print(f"correctness: {len(cases) - len(failures)} of {len(cases)} cases pass ({time.perf_counter() - START:.0f} s)")
    return failures


# ---- variants


def _launch(block: int, rows: int, warps: int, packed: bool = False, long: bool = False) -> softmax.Launch:
    return softmax.Launch(block, rows, warps, packed, long)


def forward_launches(cols: int, itemsize: int) -> list[softmax.Launch]:
    """Launches of the softmax forward that could make sense for a row of `cols` elements."""
    block = 1 << (cols - 1).bit_length()
    if block * itemsize <= 4096:
        found = [_launch(block, rows, warps) for rows, warps in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 4), (4, 8))]
    else:
        # 16 to 128 elements a thread
        widths = [w for w in (2, 4, 8, 16, 32) if 8 <= block // (32 * w) <= 128]
        packings = (False, True) if itemsize == 2 else (False,)
        found = [_launch(block, 1, w, p) for w, p in itertools.product(widths, packings) if block // (32 * w) <= 64 or p]
    if cols >= 32768:
        found = [launch for launch in found if block // (32 * launch.warps) * itemsize <= 192]
        found += [
            _launch(b, 1, w, long=True) for b, w in ((4096, 8), (4096, 16), (8192, 16), (16384, 16), (8192, 32), (16384, 32))
        ]
    return list(dict.fromkeys((softmax.launch_for(cols, itemsize), *found)))


def backward_launches(cols: int, itemsize: int) -> list[softmax.Launch]:
    """Launches of the softmax backward that could make sense for a row of `cols` elements."""
    block = 1 << (cols - 1).bit_length()
    widths = [w for w in (1, 2, 4, 8, 16, 32) if 8 <= block // (32 * w) <= (64 if itemsize == 2 else 32)]
    packings = (False, True) if itemsize == 2 and cols >= 8192 else (False,)
    found = [_launch(block, 1, w, p) for w, p in itertools.product(widths, packings)]
    if cols >= 32768:
        found = [launch for launch in found if launch.packed]
        found += [_launch(b, 1, w, long=True) for b, w in ((4096, 8), (4096, 16), (8192, 16), (8192, 32))]
    return list(dict.fromkeys((softmax.launch_for(cols, itemsize, tensors=2), *found)))


GELU_LAUNCHES = [gelu.Launch(b, w) for b, w in ((512, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8), (8192, 8))]
FORWARD_CELLS = [("bf16", c) for c in (1000, 4096, 8192, 16384, 32768, 65536, 131072)] + [("fp32", 4096), ("fp32", 32768)]
BACKWARD_CELLS = [("bf16", c) for c in (4096, 8192, 32768)]


def precompile(job: tuple[str, str, int, Any]) -> None:
    """Compile one variant into the disk cache, on a few rows: sizes that divide by 16, as the timed ones do."""
    what, dtype, cols, launch = job
    x = torch.randn(16, cols, device="cuda", dtype=DTYPES[dtype])
    y = torch.empty_like(x)
    if what == "forward":
        softmax.run_forward(x, y, launch)
    elif what == "backward":
        softmax.run_backward(x, x, y, launch)
    else:
        gelu.run_forward(x, y, False, launch)
        gelu.run_backward(x, x, y, False, launch)
    torch.cuda.synchronize()


def precompile_all() -> None:
    """Compile all variants in eight processes, before anything is timed."""
    jobs: list[tuple[str, str, int, Any]] = [
        *(("forward", d, c, launch) for d, c in FORWARD_CELLS for launch in forward_launches(c, DTYPES[d].itemsize)),
        *(("backward", d, c, launch) for d, c in BACKWARD_CELLS for launch in backward_launches(c, DTYPES[d].itemsize)),
        *(("gelu", "bf16", 8192, launch) for launch in GELU_LAUNCHES),
    ]
    with multiprocessing.get_context("spawn").Pool(min(8, os.cpu_count() or 1)) as pool:
        pool.map(precompile, jobs, chunksize=4)
    print(f"compiled {len(jobs)} variants ({time.perf_counter() - START:.0f} s)")


# ---- timing


def microseconds(step: Callable[[], Any]) -> float:
    """Median device time of a call, L2 flushed before each."""
    return 1e3 * do_bench(step, warmup=10, rep=60, return_mode="median")


def attempt(row: Row, step: Callable[[], Any]) -> Row:
    """The row with its time, or with what went wrong."""
    try:
        return {**row, "us": microseconds(step)}
    except Exception as error:  # a variant that fails to launch is a result
        return {**row, "us": float("nan"), "error": f"{type(error).__name__}: {error}"[:200]}


def ladder(fn: Callable, *args: torch.Tensor, wrap: Callable = lambda f: f) -> list[tuple[str, Callable[[], Any]]]:
    """Eager and both torch.compile modes as named steps on `args`."""
    torch._dynamo.reset()
    steps = [("eager", fn)]
    for mode in ("default", "max-autotune-no-cudagraphs"):
        steps.append((f"compile {mode.removesuffix('-no-cudagraphs')}", torch.compile(fn, mode=mode, dynamic=False)))
    return [(name, functools.partial(wrap(f), *args)) for name, f in steps]


def table(title: str, rows: list[Row], moved: float, copied: float) -> list[Row]:
    """Print a cell's rows, best first; `moved` bytes, `copied` is the time in us of a copy of as many."""
    compiled = min((r["us"] for r in rows if r["name"].startswith("compile")), default=float("nan"))
    print(f"\n{title}: copy {copied:.1f} us, {moved / copied / 1e6:.2f} TB/s")
    for row in sorted(rows, key=lambda r: (r["us"] != r["us"], r["us"])):
        row.update(cell=title, of_copy=copied / row["us"], over_compile=compiled / row["us"])
        line = f"  {row['name']:44s} {row['us']:9.1f} us {moved / row['us'] / 1e6:5.2f} TB/s"
        print(f"{line}  {row['of_copy']:.3f} of copy  {row['over_compile']:.2f}x compile {row.get('error', '')}")
    return rows


def name_of(launch: Any, chosen: Any) -> str:
    """A launch in short form; "*" where the module chooses it."""
    parts = ", ".join(f"{k}={v}" for k, v in launch._asdict().items() if v is not False and (k, v) != ("rows", 1))
    return f"{'*' if launch == chosen else ' '} {parts}"


def time_copy(elements: int, dtype: torch.dtype) -> float:
    """Time in us to copy a tensor of that many elements."""
    x = torch.randn(elements, device="cuda", dtype=dtype)
    y = torch.empty_like(x)
    return microseconds(lambda: y.copy_(x))


def softmax_forward(dtype: str, cols: int) -> list[Row]:
    rows = ROWS if cols <= 65536 else ROWS // 2
    x = torch.randn(rows, cols, device="cuda", dtype=DTYPES[dtype])
    y = torch.empty_like(x)
    copied = time_copy(x.numel(), x.dtype)
    chosen = softmax.launch_for(cols, x.element_size())
    found = [attempt({"name": name}, step) for name, step in ladder(softmax.softmax, x)]
    found.append(attempt({"name": "custom op"}, lambda: softmax.triton_softmax(x)))
    for launch in forward_launches(cols, x.element_size()):
        row = {"name": name_of(launch, chosen), "launch": launch._asdict()}
        found.append(attempt(row, lambda launch=launch: softmax.run_forward(x, y, launch)))
    return table(f"softmax.forward {dtype} {rows} x {cols}", found, 2 * x.nbytes, copied)


def softmax_backward(dtype: str, cols: int) -> list[Row]:
    y, dy = (torch.randn(ROWS, cols, device="cuda", dtype=DTYPES[dtype]) for _ in range(2))
    dx = torch.empty_like(y)
    copied = time_copy(y.numel() * 3 // 2, y.dtype)
    chosen = softmax.launch_for(cols, y.element_size(), tensors=2)
    found = [attempt({"name": "eager"}, lambda: torch._softmax_backward_data(dy, y, -1, y.dtype))]
    for launch in backward_launches(cols, y.element_size()):
        row = {"name": name_of(launch, chosen), "launch": launch._asdict()}
        found.append(attempt(row, lambda launch=launch: softmax.run_backward(dy, y, dx, launch)))
    return table(f"softmax backward kernel alone {dtype} {ROWS} x {cols}", found, 3 * y.nbytes, copied)


def step(name: str, fn: Callable, ours: Callable, cols: int) -> list[Row]:
    """Forward and backward through autograd, against the ladder; moves five tensors where nothing is fused across."""
    x, dy = (torch.randn(ROWS, cols, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    both = kernels.forward_and_backward
    found = [attempt({"name": label}, timed) for label, timed in ladder(fn, x, dy, wrap=both)]
    found.append(attempt({"name": "custom op"}, lambda: both(ours)(x, dy)))
    return table(f"{name}.backward bf16 {ROWS} x {cols}", found, 5 * x.nbytes, time_copy(x.numel() * 5 // 2, x.dtype))


def gelu_forward() -> list[Row]:
    x = torch.randn(ROWS, 8192, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    found = [attempt({"name": name}, timed) for name, timed in ladder(gelu.gelu, x)]
    found.append(attempt({"name": "custom op"}, lambda: gelu.triton_gelu(x)))
    for launch in GELU_LAUNCHES:
        row = {"name": name_of(launch, gelu.FORWARD), "launch": launch._asdict()}
        found.append(attempt(row, lambda launch=launch: gelu.run_forward(x, y, False, launch)))
    n, grid = x.numel(), (x.numel() // 2048,)
    wide = kernels.accumulator(x.dtype)
    erf = lambda: gelu._forward[grid](x, y, n, False, False, 2048, wide, num_warps=4)  # noqa: E731
    found.append(attempt({"name": "  with erf, block=2048, warps=4"}, erf))
    return table(f"gelu.forward bf16 {ROWS} x 8192", found, 2 * x.nbytes, time_copy(x.numel(), x.dtype))


def gelu_backward() -> list[Row]:
    x, dy = (torch.randn(ROWS, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    dx = torch.empty_like(x)
    found = [attempt({"name": "eager"}, lambda: torch.ops.aten.gelu_backward(dy, x))]
    for launch in GELU_LAUNCHES:
        row = {"name": name_of(launch, gelu.BACKWARD), "launch": launch._asdict()}
        found.append(attempt(row, lambda launch=launch: gelu.run_backward(dy, x, dx, False, launch)))
    return table(f"gelu backward kernel alone bf16 {ROWS} x 8192", found, 3 * x.nbytes, time_copy(x.numel() * 3 // 2, x.dtype))


def host_cost() -> list[Row]:
    """Time on the host of one call on 128 numbers, in us: what small sizes pay."""
    x = torch.randn(1, 128, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    calls = {
        "torch.softmax": lambda: torch.softmax(x, -1),
        "softmax custom op": lambda: softmax.triton_softmax(x),
        "softmax launch alone": lambda: softmax.run_forward(x, y),
        "F.gelu": lambda: gelu.gelu(x),
        "gelu custom op": lambda: gelu.triton_gelu(x),
    }
    rows = []
    for name, call in calls.items():
        for _ in range(200):
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(2000):
            call()
        rows.append({"cell": "host cost", "name": name, "us": (time.perf_counter() - begin) / 2000 * 1e6})
        torch.cuda.synchronize()
    print("\nhost cost of a call: " + ", ".join(f"{r['name']} {r['us']:.1f} us" for r in rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="correctness alone")
    alone = parser.parse_args().check
    device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    failures = correctness()
    rows: list[Row] = []
    if not alone:
        precompile_all()
        sections: list[Callable[[], list[Row]]] = [
            *(lambda d=d, c=c: softmax_forward(d, c) for d, c in FORWARD_CELLS),
            gelu_forward,
            gelu_backward,
            *(lambda d=d, c=c: softmax_backward(d, c) for d, c in BACKWARD_CELLS),
            lambda: step("softmax", softmax.softmax, softmax.triton_softmax, 4096),
            lambda: step("gelu", gelu.gelu, gelu.triton_gelu, 8192),
            host_cost,
        ]
        for done, section in enumerate(sections):
            if time.perf_counter() - START > BUDGET:
                print(f"\nout of time: {len(sections) - done} of {len(sections)} sections not run")
                break
            rows += section()
            torch.cuda.empty_cache()
    path = Path(os.environ.get("OUT", ".")) / "kernels_on_gpu.json"
    path.write_text(json.dumps({"device": device, "failures": failures, "rows": rows}, indent=1))
    print(f"\n{device}; {time.perf_counter() - START:.0f} s; wrote {path.name}")
    print("\n".join(["FAILED:", *failures]) if failures else "all correctness cases passed")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
