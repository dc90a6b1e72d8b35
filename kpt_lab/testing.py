"""Checks that every technique's tests use: a float64 oracle with an error model by dtype, awkward sizes, guard rows.

The first half (`unit_roundoff`, `scaled_error`, `error_limit`) is plain arithmetic that `measure` uses too. Nothing here
imports pytest except `interpreted`, inside.

The error model: an output y for a float64 reference r has the scaled error max |y - r| / (|r| + rms(r)). The rms keeps a
small entry of a large result from being held to a relative accuracy that rounding elsewhere in the result already spoils.
It may be `tolerance` unit roundoffs of the dtype, plus `multiple` times the error that the specification itself makes in
that dtype.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kpt_lab.core import dtype_name, to_dtype

CHUNK = 1 << 24  # elements compared at a time: float64 temporaries of 128 MB, not of several times the tensor

awkward_sizes = (1, 2, 3, 7, 17, 31, 33, 64, 127, 128, 129, 255, 257, 1000, 1023, 1024, 1025)
"""Sizes around powers of two, primes, and one that divides by 8 but not by 16: where masks and vector widths go wrong."""


def unit_roundoff(dtype: torch.dtype | str) -> float:
    """Half the distance from 1 to the next number of `dtype` (2**-24 for float32); 0 for integers and bool, which are exact."""
    dtype = to_dtype(dtype)
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point or dtype.is_complex else 0.0


def error_limit(dtype: torch.dtype | str, tolerance: float, own_error: float, multiple: float = 4.0) -> float:
    """The scaled error allowed: `tolerance` unit roundoffs of `dtype` plus `multiple` times the specification's own error.

    An own error that is not finite (the specification itself breaks in that dtype) excuses nothing and counts as 0.
    """
    return tolerance * unit_roundoff(dtype) + (multiple * own_error if math.isfinite(own_error) else 0.0)


def _rms(flat: torch.Tensor) -> float:
    """Root mean square of the finite elements of a flat tensor; 0 where there is none or where the square overflows."""
    squares, count = 0.0, 0
    for chunk in flat.split(CHUNK):
        finite = chunk.isfinite()
        squares += float(torch.where(finite, chunk, 0).abs().double().square().sum())
        count += int(finite.sum())
    return math.sqrt(squares / count) if count and math.isfinite(squares) else 0.0


def worst_error(output: torch.Tensor, reference: torch.Tensor) -> tuple[float, int]:
    """The largest scaled error of `output` against `reference`, and the flat index where it is (0 for an empty tensor).

    Infinite where one is NaN or infinite and the other is not the same, the reference being rounded to the output's dtype
    first; integers and bools must be equal. Raises ValueError where the shapes differ.
    """
    if output.shape != reference.shape:
        raise ValueError(f"output has shape {tuple(output.shape)}; the reference has {tuple(reference.shape)}")
    output, reference = output.detach().reshape(-1), reference.detach().reshape(-1)
    exact = not (output.dtype.is_floating_point or output.dtype.is_complex)
    if exact or not output.numel():
        wrong = (output != reference).nonzero() if output.numel() else output.new_empty(0)
        return (math.inf, int(wrong[0])) if len(wrong) else (0.0, 0)
    floor = _rms(reference) + torch.finfo(output.dtype).tiny
    worst, at = 0.0, 0
    for chunk, (got, wanted) in enumerate(zip(output.split(CHUNK), reference.split(CHUNK), strict=True)):
        wide = torch.complex128 if got.dtype.is_complex else torch.float64
        rounded = wanted.to(got.dtype)
        got, wanted = got.to(wide), wanted.to(device=got.device, dtype=wide)
        rounded = rounded.to(device=got.device, dtype=wide)
        ordinary = got.isfinite() & rounded.isfinite()
        same = (got == rounded) | (got.isnan() & rounded.isnan())
        error = (got - wanted).abs() / (wanted.abs() + floor)
        error = torch.where(ordinary, error, torch.where(same, 0.0, math.inf))
        largest, index = error.max(dim=0)
        if float(largest) > worst:
            worst, at = float(largest), chunk * CHUNK + int(index)
    return worst, at


def scaled_error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest |output - reference| / (|reference| + rms(reference)); infinite where NaN or infinity do not match."""
    return worst_error(output, reference)[0]


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of nested tuples, lists and dicts with their paths: ("[0]['loss']", leaf)."""
    return [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(tree)[0]]


def _floating_to(tree: Any, dtype: torch.dtype) -> Any:
    """A detached copy of the tree with its floating-point tensors in `dtype`; strides and requires_grad are kept."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.dtype.is_floating_point:
            return tensor.clone()
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        memory = tensor.detach().as_strided((extent if tensor.numel() else 0,), (1,))
        copied = memory.to(dtype, copy=True).as_strided(tensor.shape, tensor.stride())
        return copied.requires_grad_(tensor.requires_grad)

    return pytree.tree_map_only(torch.Tensor, convert, tree)


def _mismatch(got: Any, wanted: Any) -> str:
    """What differs in kind between two leaves, or "" where type, shape, dtype and device agree."""
    if type(got) is not type(wanted):
        return f"is a {type(got).__name__}; the specification returns a {type(wanted).__name__}"
    for attribute in ("shape", "dtype", "device") if isinstance(got, torch.Tensor) else ():
        if (mine := getattr(got, attribute)) != (theirs := getattr(wanted, attribute)):
            return f"has {attribute} {mine}; the specification's has {theirs}"
    return ""


def assert_close_to_oracle(
    candidate: Callable[..., Any],
    specification: Callable[..., Any],
    *inputs: Any,
    dtype: torch.dtype | str | None = None,
    tolerance: float = 16.0,
    multiple: float = 4.0,
) -> None:
    """Assert that `candidate(*inputs)` is as close to the float64 `specification` as its dtype allows.

    inputs:    tensors and nested tuples or dicts of them; floating-point ones are cast to `dtype` where it is given.
    tolerance: unit roundoffs of the dtype allowed; multiple: times the specification's own error in that dtype.

    Outputs are compared leaf by leaf: the same structure, type, shape, dtype and device; NaN and infinities at the same
    places; the scaled error within `error_limit`. Raises AssertionError that names the worst leaf, its index and values.
    """
    given = inputs if dtype is None else _floating_to(inputs, to_dtype(dtype))
    exact = _leaves(specification(*_floating_to(inputs if dtype is None else given, torch.float64)))
    plain = _leaves(specification(*given))
    output = _leaves(candidate(*given))
    if [path for path, _ in output] != [path for path, _ in plain]:
        raise AssertionError(f"output has leaves {[p for p, _ in output]}; the specification's has {[p for p, _ in plain]}")
    failures = []
    for (path, got), (_, own), (_, reference) in zip(output, plain, exact, strict=True):
        name = f"output{path}"
        if difference := _mismatch(got, own):
            raise AssertionError(f"{name} {difference}")
        if not isinstance(got, torch.Tensor):
            assert got == own, f"{name} is {got!r}; the specification returns {own!r}"
            continue
        error, at = worst_error(got, reference)
        limit = error_limit(got.dtype, tolerance, scaled_error(own, reference), multiple)
        if error > limit:
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), got.shape))
            values = f"got {got[index].item()!r}, the float64 oracle says {reference[index].item()!r}"
            message = f"{name}[{', '.join(map(str, index))}]: {values}; scaled error {error:.3g}, limit {limit:.3g}"
            failures.append((error / limit if limit else math.inf, f"{message} for {dtype_name(got.dtype)}"))
    if failures:
        count = f" ({len(failures)} of {len(output)} leaves are beyond their limit)" if len(failures) > 1 else ""
        raise AssertionError(max(failures)[1] + count)


def guarded(tensor: torch.Tensor, margin: int = 4096) -> tuple[torch.Tensor, Callable[[], None]]:
    """A contiguous copy of `tensor` inside a larger buffer of NaN, and a check that the buffer around it is unchanged.

    margin: guard elements before and after, rounded up to whole 128-byte lines so that the copy's alignment is an
    allocation's own. An out-of-bounds read brings NaN into the result; an out-of-bounds write fails the check with an
    AssertionError. Integers get their largest value instead of NaN.
    """
    if margin < 1:
        raise ValueError(f"margin is {margin}; accepted are positive numbers of elements")
    floating = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    fill = math.nan if floating else True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    margin = -(-margin * tensor.element_size() // 128) * 128 // tensor.element_size()
    buffer = torch.full((2 * margin + tensor.numel(),), fill, dtype=tensor.dtype, device=tensor.device)
    copy = buffer[margin : margin + tensor.numel()].view(tensor.shape)
    copy.copy_(tensor.detach())
    before, after = (part.view(torch.uint8) for part in (buffer[:margin], buffer[margin + tensor.numel() :]))
    expected = before.clone()

    def check() -> None:
        for side, part in (("before", before), ("after", after)):
            wrong = (part != expected).nonzero()
            if len(wrong):
                offset = int(wrong[0]) // tensor.element_size()
                where = f"{margin - offset} elements before its start" if side == "before" else f"{offset} past its end"
                raise AssertionError(f"written outside the tensor of shape {tuple(tensor.shape)}: {where}")

    return copy, check


def is_interpreted() -> bool:
    """Whether Triton kernels decorated from now on run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def interpreted() -> Any:
    """A pytest marker: skips the test unless Triton's interpreter is on (set TRITON_INTERPRET=1 before any import)."""
    import pytest

    return pytest.mark.skipif(not is_interpreted(), reason="needs Triton's interpreter: set TRITON_INTERPRET=1 before import")
