"""Which kernel takes an attention here: raced once per shape on the device at hand, remembered in the cache folder.

Every candidate first has to give the float32 result to rounding, forward and backward; those that refuse or differ are left out.
Without a measurement (a CPU, a CUDA graph being captured, measuring switched off) the default is what torch itself picks.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kpt_lab.core import dtype_name
from kpt_lab.kernels.flashlight import attend
from kpt_lab.race import WARM_NS, race
from kpt_lab.remembered import Store

STORE = Store("attention.json", "kernels are raced again")
# Rows of queries and of keys (batch times heads times length) from which more of the batch changes nothing
FULL, KEYS = 2**18, 2**21
WRONG = 0.03  # relative error above which a candidate's numbers are not the attention's
SHORTEST, LONGEST = 128, 16384  # lengths that share a bucket below and above
_TURNS = 14  # of each step at least; half of them count
_LAUNCH_NS = 3_500_000  # of a forward and a backward on a slow host, for which the device waits before it is timed

FLEX: tuple[Mapping[str, Any], ...] = (
    {}, {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_warps": 8, "fwd_num_stages": 2},
    {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3},
    {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_warps": 8, "fwd_num_stages": 3},
    {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3},
)  # fmt: skip
"""What is tried of FlexAttention's template, the first being torch's own choice: tiles that divide the mask's blocks of 128."""
FIRST = (FLEX[0], FLEX[-1])
"""Of these, what is raced on first use: torch's own choice and the smallest tiles."""
TORCHS = json.dumps({})


@dataclass(frozen=True)
class Shape:
    """What a choice is made for; lengths and the batch are raced and remembered by their power of two."""

    dtype: torch.dtype
    width: int
    value_width: int
    heads: int
    groups: int
    queries: int
    keys: int
    kind: str = "plain"
    training: bool = False
    batch: int = 1

    def bucketed(self) -> Shape:
        """The shape that stands for this one and its neighbours."""
        queries, keys, heads = bucket(self.queries), bucket(self.keys), max(self.heads, 1)
        batch = max(1, min(1 << (self.batch - 1).bit_length(), FULL // (heads * queries), KEYS // (heads * keys)))
        return Shape(
            self.dtype, self.width, self.value_width, self.heads, self.groups, queries, keys, self.kind, self.training, batch
        )  # fmt: skip

    def for_flex(self) -> Shape:
        """What the template's options depend on: not the lengths, nor how many heads there are."""
        return Shape(self.dtype, self.width, self.value_width, 0, self.groups, 1, 1, self.kind, self.training)

    def key(self, device: torch.device) -> str:
        """What a choice is kept under."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        fields = asdict(self.bucketed()) | {"dtype": dtype_name(self.dtype)}
        fa3 = "fa3-fwd" if attend.has_fa3() else "no fa3"
        return f"{name} | torch {torch.__version__} | {fa3} | {json.dumps(fields, sort_keys=True)}"


@dataclass(frozen=True)
class Choice:
    """A kernel (or options of FlexAttention's), the seconds of all that were raced by name, and why in a clause."""

    kernel: str
    reason: str
    seconds: Mapping[str, float]
    options: Mapping[str, Any]


def bucket(length: int) -> int:
    """The power of two up to which lengths share one choice; 1 for a single query."""
    if length < 1:
        raise ValueError(f"length is {length}; 1 or more is accepted")
    return 1 if length == 1 else min(max(SHORTEST, 1 << (length - 1).bit_length()), LONGEST)


def kernel_for(shape: Shape, device: torch.device, *, dropout: float = 0.0, measure: bool = True) -> Choice:
    """The kernel for a plain or causal attention, from what was remembered, else raced now, else torch's own choice."""
    if device.type != "cuda":
        return Choice("sdpa", "torch's own on this device, not measured", {}, {})
    key = shape.key(device)
    known = STORE.recall(key)
    if known and isinstance(known.get("seconds"), dict) and known["seconds"]:
        return _fastest(known["seconds"], shape, device, dropout)
    if not measure or torch.cuda.is_current_stream_capturing():
        return Choice("sdpa", "torch's own choice, not measured", {}, {})
    seconds = _outside_tracing(lambda: _raced(shape.bucketed(), device))
    if not seconds:
        return Choice("sdpa", "torch's own choice: no candidate could be measured", {}, {})
    STORE.remember(key, {"seconds": seconds})
    return _fastest(seconds, shape, device, dropout)


def _fastest(seconds: Mapping[str, float], shape: Shape, device: torch.device, dropout: float) -> Choice:
    able = {
        name: took for name, took in seconds.items()
        if not attend.refused(name, dtype=shape.dtype, width=shape.width, value_width=shape.value_width, dropout=dropout, device=device)
        and not (name == "fa3" and shape.kind == "causal" and shape.queries != shape.keys)
    }  # fmt: skip
    if not able:
        return Choice("sdpa", "torch's own choice, not measured", dict(seconds), {})
    return Choice(min(able, key=able.__getitem__), f"fastest of {len(able)} measured", dict(seconds), {})


def _outside_tracing(step: Callable[[], Any]) -> Any:
    """Run with real tensors, whatever modes a compiler has on."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch.enable_grad():
        return step()


def _raced(shape: Shape, device: torch.device) -> dict[str, float]:
    """Median seconds of each kernel that gives the right numbers, forward or (for training) forward and backward."""
    generator = torch.Generator(device).manual_seed(0)

    def made(heads: int, length: int, width: int) -> torch.Tensor:  # (b, l, h, d) in memory, as models have it
        x = torch.randn(shape.batch, length, heads, width, generator=generator, device=device).to(shape.dtype)
        return x.transpose(1, 2).requires_grad_(shape.training)

    kv = shape.heads // shape.groups
    query, key, value = made(shape.heads, shape.queries, shape.width), made(kv, shape.keys, shape.width), made(kv, shape.keys, shape.value_width)  # fmt: skip
    upstream = torch.randn(shape.batch, shape.queries, shape.heads, shape.value_width, generator=generator, device=device).to(shape.dtype).transpose(1, 2)  # fmt: skip

    def step(kernel: str) -> tuple[torch.Tensor, ...]:
        return _step((query, key, value), upstream, kernel, shape)

    exact = [x.detach().float().requires_grad_(shape.training) for x in (query, key, value)]
    try:
        wanted = _step(exact, upstream.float(), "efficient", shape)
    except RuntimeError:  # too large, or a width that only half precision has: there is nothing to compare with
        return {}
    right: dict[str, Callable[[], Any]] = {}
    for kernel in attend.KERNELS:
        if attend.refused(
            kernel, dtype=shape.dtype, width=shape.width, value_width=shape.value_width, dropout=0.0, device=device
        ):
            continue
        try:
            found = step(kernel)
        except torch.OutOfMemoryError:
            return {}
        except RuntimeError:  # refused by the library
            continue
        if all(
            float((x.detach().float() - y.detach()).norm()) <= WRONG * float(y.detach().norm())
            for x, y in zip(found, wanted, strict=True)
        ):
            right[kernel] = functools.partial(step, kernel)
    if len(right) > 1:  # it is one of the others
        right.pop("sdpa", None)
    return race(right) if not shape.training else _raced_as_they_are(right)


def _step(inputs: Sequence[torch.Tensor], upstream: torch.Tensor, kernel: str, shape: Shape) -> tuple[torch.Tensor, ...]:
    """The output, and in training the gradients of the inputs."""
    query, key, value = inputs
    out = attend.attention(query, key, value, kernel, shape.kind == "causal", 1 / math.sqrt(shape.width))
    return (out, *torch.autograd.grad(out, inputs, upstream)) if shape.training else (out,)


def _raced_as_they_are(steps: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median device seconds of steps that autograd runs, or that may wait for the device: a race's CUDA graphs can't hold those."""
    from statistics import median

    from kpt_lab import timer

    times: dict[str, list[int]] = {name: [] for name in steps}
    start, turns = timer.now(), 0
    while steps and (turns < _TURNS or timer.now() - start < 2 * WARM_NS):
        turns += 1
        for name, step in steps.items():
            times[name].append(timer.device_on_cuda(step, (), _LAUNCH_NS)[0])
    return {name: median(taken[len(taken) // 2 :]) / 1e9 for name, taken in times.items()}  # the first ones warm the device up


# ---- FlexAttention's options


def flex_options(shape: Shape, device: torch.device, *, native: bool = False) -> Choice:
    """The template's options that were found fastest for such an attention, or torch's own where nobody has measured.

    native: whether FlashAttention-3 could take it in a form of its own; it is then the choice where it was measured to be faster.
    """
    known = STORE.recall(shape.for_flex().key(device))
    seconds = known.get("seconds") if known else None
    tiles = {name: took for name, took in seconds.items() if name != "fa3"} if isinstance(seconds, dict) else {}
    if not tiles:
        return Choice("flex", "block sizes are torch's own, not measured", {}, {})
    best = min(tiles, key=tiles.__getitem__)
    if shape.queries < SHORTEST:  # its decoding template has block sizes of its own
        tiles, best = {"{}": tiles[best]}, "{}"
    fa3 = seconds.get("fa3", math.inf) if native and isinstance(seconds, dict) else math.inf
    told = {"flex": tiles[best]} | ({"fa3": fa3} if fa3 < math.inf else {})
    if fa3 < tiles[best]:
        return Choice("fa3", "measured to be faster than flex", told, {})
    reason = "block sizes are torch's own" if len(tiles) == 1 else f"block sizes are the fastest of {len(tiles)} measured"
    return Choice("flex", reason, told, json.loads(best))


def raced(shape: Shape, device: torch.device) -> bool:
    """Whether it is remembered how FlexAttention compares for such an attention."""
    return STORE.recall(shape.for_flex().key(device)) is not None


def race_first(shape: Shape, device: torch.device, steps: Mapping[str, Callable[[], Any]]) -> str:
    """Race what FIRST names and, as "fa3", FlashAttention-3 in a form of its own, without gradients; remember the seconds; the fastest.

    Torch's own block sizes where there is nothing to race: that is remembered too.
    """
    seconds = _raced_as_they_are(steps) if len(steps) > 1 else {}
    STORE.remember(shape.for_flex().key(device), {"seconds": seconds if TORCHS in seconds else {}})
    return min(seconds, key=seconds.__getitem__) if TORCHS in seconds else TORCHS


def tune_flex(
    shape: Shape,
    device: torch.device,
    make: Callable[[Mapping[str, Any]], Callable[[], Any]],
    native: Callable[[], Any] | None = None,
) -> dict[str, float]:
    """Race FlexAttention's options on `make(options)()` and remember the seconds; what does not compile is left out.

    native: the same by FlashAttention-3 in a form of its own, raced beside them as "fa3".
    """
    steps: dict[str, Callable[[], Any]] = {"fa3": native} if native else {}
    for options in FLEX:
        try:
            step = make(options)
            step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # out of shared memory or registers
            continue
        steps[json.dumps(options, sort_keys=True)] = step
    seconds = race(steps) if not shape.training else _raced_as_they_are(steps)
    if seconds:
        STORE.remember(shape.for_flex().key(device), {"seconds": seconds})
    return seconds
