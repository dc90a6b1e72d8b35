"""Attention: softmax(scale · query · keyᵀ, changed and masked) times value, written plainly, and every fused kernel there is.

What it costs: 4 FLOPs per attended pair and head width, on tensor cores, and in eager PyTorch a matrix of queries times keys that
is written and read several times. Fused kernels keep that matrix in registers. Plain and causal attention have library kernels
(cuDNN, FlashAttention-2 and -3); FlexAttention takes a function of the score and a mask, and skips blocks that the mask
leaves out. Inputs are (batch, length, heads, width), as a model's projections give them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kpt_lab import baselines, kernels
from kpt_lab.core import Cost, Problem, Recording, Technique, Unsupported, Workload, dtype_name, to_dtype
from kpt_lab.kernels import headwise
from kpt_lab.kernels.attention_variants import (
    CAP,
    NAMES,
    PREFIX,
    SPECIFICATIONS,
    STEP,
    VARIANTS,
    WINDOW,
    captured,
    pairs,
)
from kpt_lab.kernels.flashlight import attend, flashlight
from kpt_lab.kernels.headwise import forward_and_backward

# ---- workloads


def _check(batch: int, heads: int, groups: int, length: int, width: int, variant: str) -> None:
    for name, size in (("batch", batch), ("heads", heads), ("groups", groups), ("length", length), ("width", width)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; a whole number of 1 or more is accepted")
    if heads % groups:
        raise ValueError(f"heads is {heads} and groups is {groups}; heads must be a multiple of groups")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; accepted are {', '.join(VARIANTS)}")


def _inputs(
    *,
    device: str,
    dtype: torch.dtype | str,
    seed: int,
    batch: int,
    heads: int,
    groups: int,
    length: int,
    width: int,
    variant: str,
) -> list[tuple[Tensor, ...]]:
    """Three sets of query, key and value, then what is captured."""
    _check(batch, heads, groups, length, width, variant)
    generator = torch.Generator(device).manual_seed(seed)

    def made(count: int) -> Tensor:
        return torch.randn(batch, length, count, width, generator=generator, device=device, dtype=to_dtype(dtype))

    extra = captured(variant, batch=batch, heads=heads, length=length, device=device)  # the same in each, as cost counts it
    return [(*map(made, (heads, heads // groups, heads // groups)), *(x.clone() for x in extra)) for _ in range(3)]


def _held(variant: str, inputs: list[tuple[Tensor, ...]], kept: bool) -> tuple[Callable[..., Tensor], list[tuple[Tensor, ...]]]:
    """The specification and its inputs; with `kept`, holding itself what the variant captures."""
    fn, extra = SPECIFICATIONS[variant], inputs[0][3:]
    if not kept or not extra:
        return fn, inputs
    names = list(inspect.signature(fn).parameters)[3:]
    return functools.partial(fn, **dict(zip(names, extra, strict=True))), [given[:3] for given in inputs]


def _make_forward(
    *, device: str, dtype: torch.dtype | str, seed: int, batch: int, heads: int, groups: int = 1, length: int, width: int,
    variant: str = "causal", kept: bool = False,
) -> Problem:  # fmt: skip
    """Query (batch, length, heads, width), key and value with heads / groups heads, and the variant's tensors.

    kept: the variant's tensors are the function's own, the same in every call, as a mask is that many layers and steps share;
    otherwise they are inputs, written anew before each call.
    """
    sizes = {"batch": batch, "heads": heads, "groups": groups, "length": length, "width": width, "variant": variant}
    fn, inputs = _held(variant, _inputs(device=device, dtype=dtype, seed=seed, **sizes), kept)  # type: ignore[arg-type]
    return Problem(fn, inputs, drive=functools.partial(headwise.forward, variant=variant))


def _make_backward(
    *, device: str, dtype: torch.dtype | str, seed: int, batch: int, heads: int, groups: int = 1, length: int, width: int,
    variant: str = "causal", kept: bool = False,
) -> Problem:  # fmt: skip
    """As forward; the step returns the output and the gradients of query, key and value under one fixed upstream gradient."""
    sizes = {"batch": batch, "heads": heads, "groups": groups, "length": length, "width": width, "variant": variant}
    fn, inputs = _held(variant, _inputs(device=device, dtype=dtype, seed=seed, **sizes), kept)  # type: ignore[arg-type]
    generator = torch.Generator(device).manual_seed(seed + 1)
    upstream = torch.randn(batch, length, heads, width, generator=generator, device=device, dtype=to_dtype(dtype))
    drive = functools.partial(forward_and_backward, upstream=upstream, variant=variant)
    return Problem(fn, inputs, drive=drive)


def _bytes(dtype: torch.dtype | str, batch: int, heads: int, groups: int, length: int, width: int, backward: bool) -> int:
    queries, keys = batch * length * heads * width, batch * length * (heads // groups) * width
    # forward: q, k, v in and out out; backward besides: upstream and out in (q, k, v again), three gradients out
    return (2 * queries + 2 * keys + (4 * queries + 4 * keys if backward else 0)) * to_dtype(dtype).itemsize


def _arithmetic(dtype: torch.dtype | str) -> str:
    return dtype_name(to_dtype(dtype))  # tensor cores take 16-bit inputs as they are


def _cost_forward(
    *, dtype: torch.dtype | str, batch: int, heads: int, groups: int = 1, length: int, width: int, variant: str = "causal",
    kept: bool = False,
) -> Cost:  # fmt: skip
    """Two products of 2 FLOPs per attended pair and width; query, key, value and output once."""
    flops = 4 * heads * width * pairs(variant, batch=batch, length=length)
    return Cost({_arithmetic(dtype): flops}, _bytes(dtype, batch, heads, groups, length, width, backward=False))


def _cost_backward(
    *, dtype: torch.dtype | str, batch: int, heads: int, groups: int = 1, length: int, width: int, variant: str = "causal",
    kept: bool = False,
) -> Cost:  # fmt: skip
    """Forward's two products and backward's five, the scores' recomputation among them."""
    flops = 14 * heads * width * pairs(variant, batch=batch, length=length)
    return Cost({_arithmetic(dtype): flops}, _bytes(dtype, batch, heads, groups, length, width, backward=True))


forward = Workload("attention.forward", _make_forward, cost=_cost_forward, dtypes=kernels.TIMED)
backward = Workload("attention.backward", _make_backward, cost=_cost_backward, dtypes=kernels.TIMED)


# ---- techniques


def variant_of(technique: str, fn: Any) -> str:
    """Which specification a function is, or holds; Unsupported where it is none of them."""
    fn = fn.func if isinstance(fn, functools.partial) else fn
    if fn not in NAMES:
        given = getattr(fn, "__qualname__", fn)
        raise Unsupported(f"{technique} replaces the specifications of {__name__} only; it was given {given!r}")
    return NAMES[fn]


def _apply_library(fn: Callable[..., Any], args: tuple, kernel: str) -> Callable[..., Any]:
    variant = variant_of(kernel, fn)
    if variant not in ("plain", "causal"):
        raise Unsupported(f"{kernel} has plain and causal attention only, not {variant}")
    query = args[0]
    why = attend.refused(
        kernel, dtype=query.dtype, width=query.shape[-1], value_width=query.shape[-1], dropout=0.0, device=query.device
    )
    if why:
        raise Unsupported(f"{kernel} can't run here: {why}")

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        return attend.attention(q, k, v, kernel, variant == "causal", query.shape[-1] ** -0.5).transpose(1, 2)

    return run


def _compiled(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, **settings)


def _flex_functions(variant: str, extra: tuple[Tensor, ...]) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """What one writes by hand for FlexAttention: the score's function and the mask's, either of them None."""

    def behind(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q >= k

    masks: dict[str, Callable[..., Any] | None] = {
        "plain": None,
        "window": lambda b, h, q, k: (q >= k) & (q - k < WINDOW),
        "prefix": lambda b, h, q, k: (q >= k) | (k < PREFIX),
        "document": lambda b, h, q, k: (q >= k) & (extra[0][b, q] == extra[0][b, k]),
        "dilated": lambda b, h, q, k: (q >= k) & ((q - k) % STEP == 0),
        "padding": lambda b, h, q, k: extra[0][b, k],
    }
    scores: dict[str, Callable[..., Any]] = {
        "alibi": lambda score, b, h, q, k: score + extra[0][h] * (k - q),
        "softcap": lambda score, b, h, q, k: CAP * torch.tanh(score / CAP),
    }
    return scores.get(variant), masks.get(variant, behind)


@functools.cache
def _block_mask_builder() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask, dynamic=False)


def _apply_flex(
    fn: Callable[..., Any], args: tuple, autotuned: bool = False, rebuilt: bool = False, **kernel_options: Any
) -> Callable[..., Any]:
    """FlexAttention as one writes it by hand.

    rebuilt: make the block mask in each call, by compiled create_block_mask, as one must where its tensors change; otherwise it is
    kept while the tensors it reads are the same objects.
    """
    variant = variant_of("flex", fn)
    if args[0].device.type != "cuda":
        raise Unsupported(f"flex is compared on a CUDA device; the inputs are on {args[0].device}")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    block_mask_of = _block_mask_builder() if rebuilt else create_block_mask  # made once, it need not be compiled
    call = _compiled(flex_attention, **({"mode": "max-autotune-no-cudagraphs"} if autotuned else {}))
    kept: dict[tuple[int, ...], Any] = {}
    held = tuple(fn.keywords.values()) if isinstance(fn, functools.partial) else ()

    def run(query: Tensor, key: Tensor, value: Tensor, *extra: Tensor) -> Tensor:
        extra = extra or held
        at = tuple(id(x) for x in extra)  # `kept` keeps them alive, so an id stays theirs
        if rebuilt or at not in kept:
            if len(kept) > 8:
                kept.clear()
            score, mask = _flex_functions(variant, extra)
            batch = query.shape[0] if variant in ("document", "padding") else None
            lengths = query.shape[1], key.shape[1]
            made = mask and block_mask_of(mask, batch, None, *lengths, device=query.device)
            kept[at] = score, made, extra
        score, block_mask, _ = kept[at]
        out = call(
            *(x.transpose(1, 2) for x in (query, key, value)), score_mod=score, block_mask=block_mask,
            enable_gqa=query.shape[2] != key.shape[2], kernel_options=kernel_options or None,
        )  # fmt: skip
        return out.transpose(1, 2)

    return run


REPLACES = frozenset({"attention"})
eager, compiled, max_autotune = baselines.eager, baselines.compiled, baselines.max_autotune
sdpa_flash, sdpa_efficient, sdpa_cudnn = (
    Technique(
        f"sdpa {name}", functools.partial(_apply_library, kernel=name), replaces=REPLACES, requires=("cuda",), baseline=True
    )
    for name in ("flash", "efficient", "cudnn")
)
fa3 = Technique(
    "fa3",
    functools.partial(_apply_library, kernel="fa3"),
    replaces=REPLACES,
    requires=("cuda", "fa3_fwd_interface"),
    baseline=True,
)
flex = Technique("flex", _apply_flex, replaces=REPLACES, requires=("cuda",), baseline=True)
flex_rebuilt = Technique(
    "flex, mask rebuilt", functools.partial(_apply_flex, rebuilt=True), replaces=REPLACES, requires=("cuda",), baseline=True
)
flex_autotuned = Technique(
    "flex max-autotune", functools.partial(_apply_flex, autotuned=True), replaces=REPLACES, requires=("cuda",), baseline=True
)

flashlight_compiled = flashlight >> compiled


def _apply_flashlight_rebuilt(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    fused = flashlight.apply(fn, args)

    def run(query: Tensor, key: Tensor, value: Tensor, *extra: Tensor) -> Tensor:
        return fused(query, key, value, *(x.detach() for x in extra))  # new objects, as a loader's would be: no kept mask fits

    return run


flashlight_rebuilt = Technique("flashlight, mask rebuilt", _apply_flashlight_rebuilt, stage="rewrite", replaces=REPLACES)

libraries = (sdpa_flash, sdpa_efficient, sdpa_cudnn, fa3)
techniques = (eager, compiled, max_autotune, *libraries, flex, flex_autotuned, flashlight, flashlight_compiled)

_SIZES = {"heads": [16], "width": [64, 128]}  # 16k tokens below 32k, so that every length fills the device
record_grid = (
    *(
        Recording(forward, {"batch": [16384 // n], "length": [n], "groups": [1, 8], "variant": ["plain", "causal"], **_SIZES}, "bfloat16")
        for n in (1024, 4096, 16384)
    ),
    Recording(forward, {"batch": [1], "length": [32768], "groups": [1, 8], "variant": ["causal"], **_SIZES}, "bfloat16"),
    Recording(forward, {"batch": [4], "length": [4096], "groups": [1], "heads": [16], "width": [256], "variant": ["causal"]}, "bfloat16"),
    Recording(
        forward,
        {"batch": [4], "length": [4096], "groups": [1, 8], "variant": ["causal", "window", "document", "softcap"], **_SIZES},
        "bfloat16", processes=6,
    ),
    Recording(backward, {"batch": [4], "length": [4096], "groups": [1, 8], "variant": ["causal", "document"], **_SIZES}, "bfloat16"),
)  # fmt: skip
"""Lengths of 1k to 32k for plain and causal; the cells of 4096 tokens in six processes; eager runs out of memory where it must."""
