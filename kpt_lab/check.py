"""Is the candidate right, and is it honest? Comparison with an oracle, poisoned buffers, and traces of known tricks.

Nothing here reads a clock. `measure` calls these functions around the calls that it times.
"""

from __future__ import annotations

import functools
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from kpt_lab.core import Workload
from kpt_lab.testing import error_limit, scaled_error, unit_roundoff

# Quiet NaNs whose payload no arithmetic produces: a buffer that nobody wrote is then recognised, not only wrong.
_POISON = {
    torch.float64: (torch.int64, 0x7FF8DEADBEEF0BAD),
    torch.float32: (torch.int32, 0x7FC0DEAD),
    torch.float16: (torch.int16, 0x7EAD),
    torch.bfloat16: (torch.int16, 0x7FED),
}


_PLAIN = (bool, int, float, str, bytes, type(None))
_COARSE = (("TF32 or float16", 2.0**-11), ("bfloat16", 2.0**-8), ("float8_e4m3fn", 2.0**-4))


class Dishonest(RuntimeError):
    """A candidate was caught at a trick; the message names it."""


class Wrong(RuntimeError):
    """A candidate's output is not the specification's; the message says by how much and what it looks like."""


def tensors_of(*values: Any) -> list[torch.Tensor]:
    """All tensors in nested values, a module's parameters and buffers, and a function's closure."""
    found: list[torch.Tensor] = []
    for value in values:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                found.append(leaf)
            elif isinstance(leaf, torch.nn.Module):
                found.extend((*leaf.parameters(), *leaf.buffers()))
            elif callable(leaf) and getattr(leaf, "__closure__", None):
                cells = (cell.cell_contents for cell in leaf.__closure__ if _filled(cell))
                found.extend(item for item in cells if isinstance(item, torch.Tensor))
    return found


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def storages(tensors: Iterable[torch.Tensor]) -> set[int]:
    """Addresses of the storages behind these tensors."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def poison(output: Any, protected: set[int]) -> None:
    """Fill the storages of an output with a recognisable NaN, except those that it shares with inputs or weights."""
    for tensor in pytree.tree_leaves(output):
        if not isinstance(tensor, torch.Tensor) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            continue
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in protected or tensor.dtype not in _POISON or not storage.nbytes():
            continue
        integer, pattern = _POISON[tensor.dtype]
        length = storage.nbytes() // tensor.element_size()
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, 0, (length,), (1,))
        flat.view(integer).fill_(pattern)


def litter(like: Any, copies: int = 4) -> None:
    """Leave poisoned memory of an output's sizes in the allocator, so that reading what was never written shows."""
    kept = []
    for tensor in pytree.tree_leaves(like):
        if isinstance(tensor, torch.Tensor) and tensor.dtype in _POISON and tensor.nbytes <= 2**28:
            kept += [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for _ in range(copies)]
    poison(kept, set())


def is_poisoned(tensor: torch.Tensor) -> bool:
    """Whether any element still holds the poison's bit pattern."""
    if tensor.dtype not in _POISON:
        return False
    integer, pattern = _POISON[tensor.dtype]
    return bool((tensor.detach().view(integer) == pattern).any())


def fresh(buffers: Any, sets: Sequence[Any], draw: tuple[int, int, float]) -> None:
    """Write new values into the input buffers in place: a blend of two input sets, which no earlier call has seen.

    Floating-point tensors become (1 - w) * set i + w * set j, an eighth of the rows a little smaller, which keeps signs and
    masks of -inf; where no input is floating point, integers (token ids) are rolled along the last dimension instead.
    """
    i, j, weight = draw
    mine, one, other = (pytree.tree_leaves(x) for x in (buffers, sets[i], sets[j]))
    if not mine:  # the copy of the same bytes has no inputs of the workload's
        return
    floating = any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in mine)
    with torch.no_grad():
        for buffer, a, b in zip(mine, one, other, strict=True):
            if not isinstance(buffer, torch.Tensor):
                continue
            if buffer.is_floating_point() and a.shape == b.shape and weight and i != j:
                torch.lerp(a.detach(), b.detach(), weight, out=buffer.detach())
                _touch(buffer.detach(), weight)
                if not (_finite(a) and _finite(b)):  # a mask: where either is infinite, so is the blend, and never NaN
                    infinite = torch.where(a.isinf(), a, b).detach()
                    buffer.detach().copy_(torch.where(a.isinf() | b.isinf(), infinite, buffer.detach()))
            elif not floating and weight and buffer.dim():
                buffer.copy_(a.roll(1 + int(weight * (buffer.shape[-1] - 1)), -1))
            else:
                buffer.detach().copy_(a.detach())


def _touch(buffer: torch.Tensor, weight: float) -> None:
    """Shrink an eighth of the rows a little, which ones and how much being drawn by the weight: no sum of known products fits."""
    if not buffer.dim():
        return
    rows = buffer.shape[0]
    start = int(weight * 7919 % 1 * rows)
    buffer[start : start + max(1, rows // 8)].mul_(1 - (weight * 104729 % 1) / 16)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are finite, looked up once for each tensor: the input sets never change."""
    known = _FINITE.get(id(tensor))
    if known is None or known[0]() is not tensor:
        known = weakref.ref(tensor), bool(torch.isfinite(tensor).all())
        _FINITE[id(tensor)] = known
    return known[1]


_FINITE: dict[int, tuple[weakref.ref[torch.Tensor], bool]] = {}


def clone_inputs(inputs: Any) -> Any:
    """Own buffers for one candidate, requiring gradients where the originals do."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone().requires_grad_(t.requires_grad), inputs)


@dataclass(frozen=True)
class Oracle:
    """The specification in higher precision; `precision` says which: "float64", or "float32" where that does not fit."""

    step: Callable[..., Any]
    precision: str

    def __call__(self, inputs: Any) -> Any:
        wide = torch.float64 if self.precision == "float64" else torch.float32

        def widen(t: torch.Tensor) -> torch.Tensor:
            t = t.detach()
            return t.to(wide) if t.is_floating_point() else t

        values = pytree.tree_map_only(torch.Tensor, widen, inputs)
        gradients = pytree.tree_map_only(torch.Tensor, lambda t: t.requires_grad, inputs)
        for value, needed in zip(pytree.tree_leaves(values), pytree.tree_leaves(gradients), strict=True):
            if isinstance(value, torch.Tensor) and needed is True:
                value.requires_grad_()
        return detached(self.step(*values))


def detach_inputs(inputs: Any) -> Any:
    """The same tensors without their graphs, still marked as requiring gradients where they did."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().requires_grad_(t.requires_grad), inputs)


def plain_tensors(output: Any) -> list[torch.Tensor]:
    """The output's tensors of torch's own type."""
    return [t for t in pytree.tree_leaves(output) if type(t) in (torch.Tensor, torch.nn.Parameter)]


def shapes(output: Any) -> Any:
    """The output with every tensor replaced by one without memory: structure, shapes, dtypes and devices stay."""
    return pytree.tree_map_only(
        torch.Tensor, lambda t: t.detach().new_empty(1).expand(t.shape) if t.dim() else t.detach().clone(), output
    )


def small_copy(output: Any, limit: int = 2**26) -> list[torch.Tensor]:
    """Copies of the output's tensors where they fit `limit` bytes, to recognise them when they come again."""
    tensors = [t.detach() for t in plain_tensors(output)]
    return [t.clone() for t in tensors] if sum(t.nbytes for t in tensors) <= limit else []


def same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal elements, NaN equal to NaN."""
    return a.shape == b.shape and _equal_with_nan(a, b)


def cosine(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Cosine between two lists of tensors taken as one vector each; 1 where both are zero."""
    dot = norm_a = norm_b = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = x.double(), y.double()
        dot, norm_a, norm_b = dot + float((x * y).sum()), norm_a + float((x * x).sum()), norm_b + float((y * y).sum())
    return 1.0 if norm_a == norm_b == 0 else dot / max(math.sqrt(norm_a * norm_b), 1e-300)


def detached(output: Any) -> Any:
    """The output without its autograd graph."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, output)


def oracle_for(workload: Workload, settings: Mapping[str, Any], inputs: Any) -> Oracle:
    """The float64 oracle of a workload made afresh; float32 where float64 runs out of memory or has no kernel.

    A float32 oracle is only taken for dtypes coarser than float32; otherwise the reason is raised.
    """
    reason: BaseException | None = None
    for precision in ("float64", "float32"):
        if precision == "float32" and unit_roundoff(settings["dtype"]) <= unit_roundoff(torch.float32):
            break
        problem = workload.make(**settings)
        if isinstance(problem.fn, torch.nn.Module):
            problem.fn.to(getattr(torch, precision))
        oracle = Oracle(problem.drive(problem.fn), precision)
        try:
            oracle(inputs)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            # without the frames, which hold what was computed so far: the next attempt needs that memory
            reason = error.with_traceback(None)
            del problem, oracle
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        if reset := getattr(oracle.step, "reset", None):
            reset()
        return oracle
    raise Wrong(
        f"workload {workload.name!r} could not run in float64, so nothing can be checked against it ({reason}); "
        "pass tensors as inputs instead of closing over them, or make the function follow its inputs' dtype"
    )


NOISE = 4.0  # own scaled error of the specification above which one of several outputs is rounding, without a right digit
_OF_NOISE = 64.0  # times that error which another way of rounding may have


def compare_output(output: Any, reference: Any, like: Any, error: Callable | None = None) -> float:
    """The largest of `leaf_errors`, 0 where there is none."""
    return max(leaf_errors(output, reference, like, error), default=0.0)


def worst(errors: Sequence[float], own: Sequence[float]) -> float:
    """The largest of an output's errors by leaf, where `own` are those of the specification.

    A leaf that is rounding in the specification itself, as the gradient of a key's bias is, which is zero, counts only beyond
    64 times that error, so that it neither condemns others nor excuses what they do to the other leaves.
    """
    noise = [NOISE < e < math.inf for e in own]
    if len(own) != len(errors) or all(noise):
        return max(errors, default=0.0)
    counted = (e for e, o, rounding in zip(errors, own, noise, strict=True) if not (rounding and e <= _OF_NOISE * o))
    return max(counted, default=0.0)


def leaf_errors(output: Any, reference: Any, like: Any, error: Callable | None = None) -> list[float]:
    """Scaled error of each leaf of an output against `reference`; types, shapes and dtypes must equal those of `like`.

    Raises Wrong or Dishonest with the reason where the structure differs or a tensor is not a plain one.
    """
    leaves, structure = pytree.tree_flatten(output)
    expected, expected_structure = pytree.tree_flatten(like)
    references = pytree.tree_leaves(reference)
    if structure != expected_structure:
        raise Wrong(f"returns the structure {structure}, the specification returns {expected_structure}")
    if expected and not any(isinstance(want, (torch.Tensor, *_PLAIN)) for want in expected):
        raise Wrong(
            "returns no tensor in a structure that torch knows (tuples, lists, dicts), so nothing can be compared; return tensors"
        )
    found: list[float] = []
    for position, (leaf, want, exact) in enumerate(zip(leaves, expected, references, strict=True)):
        where = f"output {position}" if len(leaves) > 1 else "the output"
        if not isinstance(want, torch.Tensor):
            found.append(_plain_error(leaf, want, exact, where))
            continue
        if type(leaf) is not type(want) and type(leaf) is not torch.Tensor:
            kind = "a tensor subclass" if isinstance(leaf, torch.Tensor) else "not a tensor but"
            raise Dishonest(
                f"{where} is {kind} {type(leaf).__name__}, which can be lazily evaluated after the clock has stopped; "
                "return a plain torch.Tensor"
            )
        if (leaf.shape, leaf.dtype, leaf.device) != (want.shape, want.dtype, want.device):
            raise Wrong(
                f"{where} is {tuple(leaf.shape)} {leaf.dtype} on {leaf.device}, the specification gives "
                f"{tuple(want.shape)} {want.dtype} on {want.device}"
            )
        found.append(_leaf_error(leaf, exact, error))
    return found


def _plain_error(leaf: Any, want: Any, exact: Any, where: str) -> float:
    """Error of a leaf that is no tensor: floats by value, other plain values by equality, objects by type alone."""
    if isinstance(want, float) and isinstance(leaf, int | float):
        return abs(leaf - float(exact)) / max(abs(float(exact)), 1e-300) if leaf != want else 0.0
    if type(leaf) is not type(want) or (isinstance(want, _PLAIN) and leaf != want):
        raise Wrong(f"{where} is {leaf!r}, the specification gives {want!r}")
    return 0.0


def _leaf_error(leaf: torch.Tensor, exact: torch.Tensor, error: Callable | None) -> float:
    if not leaf.numel():
        return 0.0
    if not leaf.is_floating_point() and not leaf.is_complex():
        return 0.0 if torch.equal(leaf, exact.to(leaf.dtype)) else math.inf
    found = error(leaf.detach(), exact) if error else scaled_error(leaf.detach(), exact)
    return math.inf if math.isnan(found) else float(found)


def explain_error(found: float, limit: float, output: Any, dtype: torch.dtype, clues: Mapping[str, Any]) -> str:
    """One sentence that names what a wrong output looks like: an earlier result, its input, unwritten memory, coarse rounding."""
    tensors = [t.detach() for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    size = f"error {found:.2g}, allowed {limit:.2g}"
    if clues.get("late"):
        return f"right when it was checked, wrong in a timed call: {explain_error(found, limit, output, dtype, {**clues, 'late': False})}"
    if any(is_poisoned(t) for t in tensors):
        if storages(tensors) & storages(tensors_of(clues.get("kept", ()))):
            if clues.get("repeated"):
                return f"returned the buffer of an earlier call without writing it, on equal values: cached by value or by identity ({size})"
            return (
                "returned the buffer of an earlier call without writing it: the previous buffer, or a result cached by identity "
                f"({size})"
            )
        return f"returned memory that it did not write: uninitialised memory is right only by luck ({size})"
    for earlier in clues.get("earlier", ()):
        if _same_bits(tensors, earlier):
            return (
                "returned the result of an earlier call though the inputs' values are new: cached by identity, "
                f"or right only for the first input ({size})"
            )
    inputs = [t.detach() for t in pytree.tree_leaves(clues.get("inputs", ())) if isinstance(t, torch.Tensor)]
    if tensors and all(t.is_floating_point() and not bool(t.any()) for t in tensors):
        return f"returned zeros, as memory that it did not write often holds ({size})"
    if any(_same_bits([t], [x]) for t in tensors for x in inputs):
        return f"returns its input ({size})"
    if any(bool(torch.isnan(t).any()) for t in tensors if t.is_floating_point()):
        return f"gives NaN where the specification has none; NaN never compares equal here ({size})"
    if clues.get("right_first"):
        return f"right only for the first input ({size})"
    for name, roundoff in _COARSE:
        if roundoff > 2 * unit_roundoff(dtype) and 0.05 * roundoff < found < 8 * roundoff and found < 0.1:
            return (
                f"lower precision than it says: {size}, which is what rounding to {name} (unit roundoff {roundoff:.1g}) gives and "
                f"{str(dtype).removeprefix('torch.')} does not; if that is meant, give it the contract 'lossy'"
            )
    if found > 1e6:
        return f"not the specification's result, but values as uninitialised memory holds them ({size})"
    return f"not the specification's result: {size}"


def _same_bits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    if not a or len(a) != len(b):
        return False
    return all(
        x.shape == y.shape and x.dtype == y.dtype and x.device == y.device and bool((x == y).all())
        for x, y in zip(a, b, strict=True)
    )


def changed_inputs(buffers: Any, sets: Sequence[Any], draw: tuple[int, int, float]) -> str:
    """Which input no longer holds the values that were written into it, or ""."""
    wanted = clone_inputs(buffers)
    fresh(wanted, sets, draw)
    for position, (is_, was) in enumerate(zip(pytree.tree_leaves(buffers), pytree.tree_leaves(wanted), strict=True)):
        if isinstance(is_, torch.Tensor) and not _equal_with_nan(is_.detach(), was.detach()):
            return f"writes to its input {position}: mutated inputs spoil whatever runs next"
    return ""


def _equal_with_nan(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a == b
    return bool((same | ((a != a) & (b != b))).all()) if a.is_floating_point() else bool(same.all())


# ---- traces left outside the output: settings, replaced functions -------------------------------------------------------------

_WATCHED_MODULES: tuple[Any, ...] = (
    time,
    torch,
    torch.nn.functional,
    torch.Tensor,
    torch.cuda,
    torch.cuda.Event,
    torch.cuda.Stream,
)


def settings() -> dict[str, Any]:
    """Global torch settings that change what others compute or how fast."""
    return {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.backends.cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
        ),
        "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
        "torch.backends.mkldnn.enabled": torch.backends.mkldnn.enabled,
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "the stack of torch function modes": torch._C._len_torch_function_stack(),
        "the stack of torch dispatch modes": torch._C._len_torch_dispatch_stack(),
        "autocast on the CPU": torch.is_autocast_enabled("cpu"),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
        "sys.setprofile()": sys.getprofile(),
        "sys.settrace()": sys.gettrace(),
        "the dispatcher's kernels of common operations": _kernels(),
    }


_COMMON = (
    "mm",
    "addmm",
    "bmm",
    "_softmax",
    "gelu",
    "native_layer_norm",
    "add.Tensor",
    "mul.Tensor",
    "copy_",
    "lerp.Scalar_out",
)


def _kernels() -> int:
    return hash(tuple(torch._C._dispatch_dump(f"aten::{name}") for name in _COMMON))


def restore(before: Mapping[str, Any]) -> None:
    """Put the global settings back."""
    torch.set_num_threads(before["torch.get_num_threads()"])
    torch.set_default_dtype(before["torch.get_default_dtype()"])
    torch.set_float32_matmul_precision(before["torch.get_float32_matmul_precision()"])
    torch.backends.cuda.matmul.allow_tf32 = before["torch.backends.cuda.matmul.allow_tf32"]
    torch.backends.cudnn.allow_tf32 = before["torch.backends.cudnn.allow_tf32"]
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = before[
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction"
    ]
    torch.backends.cudnn.benchmark = before["torch.backends.cudnn.benchmark"]
    torch.use_deterministic_algorithms(before["torch.are_deterministic_algorithms_enabled()"])
    torch.set_grad_enabled(before["torch.is_grad_enabled()"])
    torch.backends.mkldnn.set_flags(before["torch.backends.mkldnn.enabled"])
    torch.set_autocast_enabled("cpu", before["autocast on the CPU"])
    torch.set_autocast_enabled("cuda", before["autocast on CUDA"])
    if sys.getprofile() is not before["sys.setprofile()"]:
        sys.setprofile(before["sys.setprofile()"])
    if sys.gettrace() is not before["sys.settrace()"]:
        sys.settrace(before["sys.settrace()"])
    while torch._C._len_torch_function_stack() > before["the stack of torch function modes"]:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > before["the stack of torch dispatch modes"]:
        torch._C._pop_torch_dispatch_stack(None)


def functions(*more: Any) -> dict[tuple[int, str], tuple[Any, Any, Any]]:
    """The callables that live in the watched modules, and in `more`, with their code; to be compared after a technique has run."""
    found = {}
    for owner in (*_WATCHED_MODULES, *more):
        for name, value in list(vars(owner).items()):
            if callable(value) or isinstance(value, staticmethod | classmethod):
                found[id(owner), name] = (owner, value, getattr(value, "__code__", None))
    return found


def replaced(before: Mapping[tuple[int, str], tuple[Any, Any, Any]]) -> str:
    """Puts back every watched callable, or its code, that was replaced since `before`; says which they were, or ""."""
    changed = []
    for (_, name), (owner, value, code) in before.items():
        where = f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
        if vars(owner).get(name) is not value:
            changed.append(where)
            setattr(owner, name, value)
        if code is not None and value.__code__ is not code:
            changed.append(f"{where}.__code__")
            value.__code__ = code
    return ", ".join(changed)


class Codes:
    """Holds functions under their names, so that `functions` can watch a specification's own code."""

    __name__ = "the specification"

    def __init__(self, *values: Any) -> None:
        for value in values:
            for part in _functions_of(value):
                vars(self)[getattr(part, "__name__", "function")] = part


def _functions_of(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return _functions_of(value.func)
    if isinstance(value, torch.nn.Module):
        return [type(part).forward for part in value.modules()]
    return [value] if hasattr(value, "__code__") else []


def new_threads(known: Iterable[threading.Thread]) -> list[threading.Thread]:
    """Python threads that are alive now and were not before; torch's own, which its compiler starts, are left out."""
    before = set(known)
    return [thread for thread in threading.enumerate() if thread not in before and not _of_torch(thread)]


def _of_torch(thread: threading.Thread) -> bool:
    target = getattr(thread, "_target", None)
    return (getattr(target, "__module__", "") or type(thread).__module__).startswith("torch.")


def positions(threads: Iterable[threading.Thread]) -> dict[int, tuple[int, int]]:
    """Where each thread stands now: a parked one stays, a working one moves."""
    frames = sys._current_frames()
    try:
        return {t.ident: (id(frames[t.ident]), frames[t.ident].f_lasti) for t in threads if t.ident in frames}
    finally:
        frames.clear()  # it holds this very frame, a cycle that would keep the caller's tensors alive


def limit_for(workload: Workload, dtype: torch.dtype, own_error: float) -> float:
    """The largest error allowed: the workload's tolerance in unit roundoffs plus four times the specification's own error."""
    return error_limit(dtype, workload.tolerance, own_error)


# ---- random outputs ----------------------------------------------------------------------------------------------------------

RUNS, PROJECTIONS = 32, 8
_T_LIMIT = 5.0  # of a Welch t with about 62 degrees of freedom: p < 5e-6 a projection, so a false alarm in 25,000 checks
_F_LIMIT = 4.6  # ratio of two variances of 32 runs each: p < 5e-5 a side


def same_distribution(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> str:
    """Why RUNS outputs `a` and RUNS outputs `b` can't come from one distribution, or "".

    Takes what `projected` gives: every output on PROJECTIONS fixed random directions. Compares means (Welch's t) and spreads (variance ratio);
    a constant projection must be equal.
    """
    left, right = torch.stack(list(a)), torch.stack(list(b))
    means, spreads = (left.mean(0), right.mean(0)), (left.var(0), right.var(0))
    floor = 1e-12 + 1e-6 * torch.maximum(means[0].abs(), means[1].abs())
    t = (means[0] - means[1]).abs() / torch.sqrt((spreads[0] + spreads[1]) / len(a) + floor**2)
    ratio = (spreads[0] + floor**2) / (spreads[1] + floor**2)
    if bool((t > _T_LIMIT).any()) or bool(torch.isnan(t).any()):
        return f"the mean of its random outputs differs from the specification's (t = {float(t.max()):.1f})"
    if bool((torch.maximum(ratio, 1 / ratio) > _F_LIMIT).any()):
        return f"the spread of its random outputs differs from the specification's (variance ratio {float(ratio.max()):.2g})"
    return ""


def projected(output: Any, seed: int = 0) -> torch.Tensor:
    """The output's floating-point elements on PROJECTIONS fixed directions of random signs: shape (PROJECTIONS,), float64."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(PROJECTIONS, dtype=torch.float64)
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            flat = leaf.detach().double().cpu().reshape(-1)
            for row in range(PROJECTIONS):
                signs = torch.randint(0, 2, (flat.numel(),), generator=generator, dtype=torch.int8)
                total[row] += torch.dot(signs.double() * 2 - 1, flat) / math.sqrt(max(flat.numel(), 1))
    return total
