"""Does FlashLight's own lowering get every idiom of the corpus right, and leave every near miss as it is?

    python benchmarks/flashlight_corpus.py --device cuda --dtype bfloat16 --record $OUT/flashlight_corpus.h100-sxm.json
    python benchmarks/flashlight_corpus.py --device cpu --only causal_tril alibi

The tests match the corpus and compute what was matched by a plain float64 reference; here the kernels run. For each idiom:
the largest error against float64, of the idiom as it is and of the fused one, forward and for the gradients of its inputs.
Right is at most twice the plain one's error in the same dtype, plus one unit of rounding of the result. The JSON is written after
each idiom, and those that it holds are not run again. Nothing is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernels" / "flashlight"))

from corpus import Idiom, doubled, oracle
from idioms import idioms
from near_misses import near_misses

from kpt_lab import timer
from kpt_lab.core import Unsupported
from kpt_lab.environment import environment
from kpt_lab.files import atomically
from kpt_lab.kernels.flashlight import backend, explain, flashlight

LIMIT = 2.0  # times the plain one's own error


ORIGINAL = {
    name: getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "tril_indices", "zeros")
}


def _create_on(device: str) -> None:
    """Tensors that name no device are made on this one, in compiled code too: torch 2.11's Dynamo knows no default device."""

    def placed(create: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: create(*args, **({} if "generator" in kwargs else {"device": device}) | kwargs)

    for name, create in ORIGINAL.items():
        setattr(torch, name, placed(create) if device not in ("", "cpu") else create)


def made(idiom: Idiom, device: str, dtype: torch.dtype) -> tuple[Any, tuple]:
    """The idiom's callable and inputs on the device; drawn on the CPU, so that the numbers are the same everywhere."""
    _create_on("")
    fn, args = idiom.make(0, dtype)
    _create_on(device)
    fn = fn.to(device) if isinstance(fn, torch.nn.Module) else fn
    return fn, tree_map_only(torch.Tensor, lambda x: x.to(device), args)


def leaves(output: Any) -> tuple[torch.Tensor, ...]:
    """An output as a tuple of tensors."""
    return output if isinstance(output, tuple) else (output,)


def error(output: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference over the largest element; infinite where NaN stands in other places."""
    if not torch.equal(output.isnan(), exact.isnan()):
        return math.inf
    return float((output.double() - exact).nan_to_num(0.0).abs().max() / exact.nan_to_num(0.0).abs().max().clamp_min(1e-300))


def gradients(fn: Any, args: tuple) -> list[torch.Tensor]:
    """Of the mean square of the output, for every floating input that has one."""
    inputs = [x.detach().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    loss = sum(leaf.double().square().mean() for leaf in leaves(fn(*inputs)))
    return [g for g in torch.autograd.grad(loss, wanted, allow_unused=True) if g is not None]


def forward(idiom: Idiom, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Errors of one idiom's output, plain and fused, and what explain() says."""
    fn, args = made(idiom, device, dtype)
    with torch.no_grad():
        fused = flashlight.apply(*made(idiom, device, dtype))
        told = explain(fused)
        mine, plain, exact = leaves(fused(*args)), leaves(fn(*args)), leaves(oracle(*made(idiom, device, dtype)))
    own = max(error(a, b) for a, b in zip(plain, exact, strict=True))
    found = max(error(a, b) for a, b in zip(mine, exact, strict=True))
    layout = all(a.stride() == b.stride() for a, b in zip(mine, plain, strict=True))
    right = found <= LIMIT * own + torch.finfo(dtype).eps
    return {"error": found, "plain": own, "right": right, "same_layout": layout, "explained": str(told)}


def backward(idiom: Idiom, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The largest error of an input's gradient, plain and fused."""
    fn, args = made(idiom, device, dtype)
    plain = gradients(fn, args)
    exact_fn, exact_args = doubled(*made(idiom, device, dtype))
    exact = gradients(exact_fn, exact_args)
    needing = tuple(x.requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args)
    fused = flashlight.apply(made(idiom, device, dtype)[0], needing)
    mine = gradients(fused, args)
    own = max((error(a, b) for a, b in zip(plain, exact, strict=True)), default=0.0)
    found = max((error(a, b) for a, b in zip(mine, exact, strict=True)), default=0.0)
    return {"gradient_error": found, "gradient_plain": own, "gradient_right": found <= LIMIT * own + torch.finfo(dtype).eps}


def near_miss(idiom: Idiom, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Whether it was refused, why, and whether it then gives the same bits."""
    fn, args = made(idiom, device, dtype)
    try:
        with torch.no_grad():
            fn(*args)
    except NotImplementedError as error:  # the plain function itself: torch has no such operation in this dtype here
        return {"not_on_device": str(error)}
    try:
        flashlight.apply(*made(idiom, device, dtype))
    except Unsupported as refused:
        with torch.no_grad():
            torch.manual_seed(1)
            plain = leaves(fn(*args))
            torch.manual_seed(1)
            left = leaves(torch.compile(fn, backend=backend())(*args))
        same = all(torch.equal(a, b) for a, b in zip(left, plain, strict=True))
        expected = any(phrase in str(refused) for phrase in idiom.phrase.split("|"))
        return {"refused": str(refused), "expected": expected, "same_bits": same, "right": expected and same}
    return {"refused": "", "expected": False, "right": False}


def run(idiom: Idiom, options: argparse.Namespace) -> dict[str, Any]:
    """One row; what fails is a row with its reason."""
    dtype = getattr(torch, options.dtype)
    missed = bool(idiom.phrase)
    row: dict[str, Any] = {"idiom": idiom.name, "near_miss": missed, "softmaxes": idiom.softmaxes}
    parts = [near_miss] if missed else [forward, *([backward] if options.backward else [])]
    for part in parts:
        torch._dynamo.reset()
        try:
            row |= part(idiom, options.device, dtype)
        except Unsupported as refused:
            row |= {"refused": str(refused)}
            break
        except Exception as failed:
            row |= {
                "failed": f"{part.__name__}: {type(failed).__name__}: {' '.join(str(failed).split())[:400]}",
                "right": False,
            }
            if options.verbose:
                traceback.print_exc()
    return row


def summary(rows: list[dict[str, Any]]) -> Counter[str]:
    """How many idioms were right, refused, failed or wrong, and near misses refused for their reason."""
    found: Counter[str] = Counter()
    for row in rows:
        if "not_on_device" in row:
            found["near miss that torch does not run in this dtype here"] += 1
        elif row["near_miss"]:
            found["near miss " + ("refused" if row["right"] else "NOT REFUSED FOR ITS REASON")] += 1
        elif "failed" in row:
            found["idiom FAILED"] += 1
        elif "refused" in row:
            found["idiom refused"] += 1
        else:
            found["idiom right" if row["right"] else "idiom WRONG"] += 1
            if "gradient_right" in row:
                found["gradient right" if row["gradient_right"] else "gradient WRONG"] += 1
    return found


def merged(files: list[Path], into: Path | None) -> int:
    """Write the rows of all files as one record, in the corpus's order; they must be of one machine and dtype."""
    every = [json.loads(file.read_text()) for file in files]
    heads = [{key: value for key, value in one.items() if key != "idioms"} for one in every]
    if any(head != heads[0] for head in heads):
        raise SystemExit("--merge got records of different machines, dtypes or limits; accepted are shares of one run")
    places = {idiom.name: place for place, idiom in enumerate([*idioms, *near_misses])}
    rows = sorted((row for one in every for row in one["idioms"]), key=lambda row: places[row["idiom"]])
    if into:
        atomically(into, lambda file: file.write(json.dumps(heads[0] | {"idioms": rows}, indent=1).encode()))
    print(dict(summary(rows)))
    return 0


def main() -> int:
    """Run what is not in the file yet, a line each, and the counts at the end; 1 where anything is wrong or failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--only", nargs="*", help="names of idioms or near misses")
    parser.add_argument("--share", default="0/1", help="which part of the corpus, such as 0/2 and 1/2 for two machines")
    parser.add_argument("--backward", action="store_true", help="gradients of the inputs too")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no idiom after so many seconds")
    parser.add_argument("--record", type=Path, help="the JSON to write and to go on from")
    parser.add_argument("--merge", nargs="+", type=Path, help="records of several shares, written to --record as one")
    parser.add_argument("--verbose", action="store_true", help="print tracebacks")
    options = parser.parse_args()
    every = {idiom.name: idiom for idiom in [*idioms, *near_misses]}
    if unknown := [name for name in options.only or [] if name not in every]:
        parser.error(f"--only names {unknown[0]!r}, which is not in the corpus")
    if options.merge:
        return merged(options.merge, options.record)
    rows = json.loads(options.record.read_text())["idioms"] if options.record and options.record.exists() else []
    done, start = {row["idiom"] for row in rows}, timer.now()
    part, parts = map(int, options.share.split("/"))
    for name in [name for name in options.only or list(every)[part::parts] if name not in done]:
        if (timer.now() - start) / 1e9 > options.seconds:
            print(f"stopped before {name}: {options.seconds:g} s had passed")
            break
        row = run(every[name], options)
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "explained"}), flush=True)
        if options.record:
            told = {"environment": environment(options.device), "dtype": options.dtype, "limit": LIMIT, "idioms": rows}
            atomically(options.record, lambda file, told=told: file.write(json.dumps(told, indent=1).encode()))
        gc.collect()
    counted = summary(rows)
    print(dict(counted))
    return 1 if any("WRONG" in key or "FAILED" in key or "NOT" in key for key in counted) else 0


if __name__ == "__main__":
    sys.exit(main())
