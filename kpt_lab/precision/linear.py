"""A linear layer whose three matrix products run in 8 bits, each by its own choice: the plain definition and the fast path.

    y  = x @ w.T        forward           x and w in e4m3fn
    dx = dy @ w         input_gradient    dy in the recipe's gradient format, w in e4m3fn
    dw = dy.T @ x       weight_gradient   dy in the recipe's gradient format, x in e4m3fn

Operands are cast with dynamic scales, of the whole matrix ("tensorwise") or of each row and column along the summed dimension
("rowwise"); "bfloat16" keeps a product in the layer's own dtype. The weights that the optimiser sees stay in that dtype.
The definition multiplies the dequantised values in float32, on any device (`emulate=True`); its time says nothing about FP8.

What it costs beside the products: each operand is read twice (once for its largest magnitude, which a compiler fuses into what
made it) and written once or twice as bytes. So FP8 pays where a product's arithmetic outweighs that: wide layers, many tokens.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpt_lab.core import Cost, Technique, Unsupported, dtype_name
from kpt_lab.precision.casts import ALIGN, FORMATS, Cast, cast, largest
from kpt_lab.precision.formats import Format
from kpt_lab.precision.scaling import EPS

Choice = Literal["bfloat16", "tensorwise", "rowwise"]
GEMMS = ("forward", "input_gradient", "weight_gradient")
TENSORS = ("input", "weight", "gradient")
COUNTS = ("elements", "nonfinite", "flushed", "clipped")
CAPABILITY = (8, 9)  # the first with 8-bit floats in its tensor cores: docs.nvidia.com/cuda, compute capabilities
_FAST_ACCUMULATION = {"forward": True, "input_gradient": True, "weight_gradient": True}
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Recipe:
    """What each of a linear layer's three products is computed in, and the format of the output gradient."""

    forward: Choice = "tensorwise"
    input_gradient: Choice = "tensorwise"
    weight_gradient: Choice = "tensorwise"
    gradient: Literal["e5m2", "e4m3fn"] = "e5m2"

    def __post_init__(self) -> None:
        for name in GEMMS:
            if getattr(self, name) not in get_args(Choice):
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted are {', '.join(map(repr, get_args(Choice)))}")
        if self.gradient not in ("e5m2", "e4m3fn"):
            raise ValueError(f"gradient is {self.gradient!r}; accepted are 'e5m2' and 'e4m3fn'")

    @property
    def any_fp8(self) -> bool:
        """Whether any of the three products runs in 8 bits."""
        return any(getattr(self, name) != "bfloat16" for name in GEMMS)

    def __str__(self) -> str:
        products = [getattr(self, name) for name in GEMMS]
        if not self.any_fp8:
            return "bfloat16"
        if len(set(products)) == 1:
            return f"{products[0]}, gradient {self.gradient}"
        return ", ".join(
            [f"{name} {choice}" for name, choice in zip(GEMMS, products, strict=True)] + [f"gradient {self.gradient}"]
        )


BFLOAT16 = Recipe("bfloat16", "bfloat16", "bfloat16")
TENSORWISE = Recipe()
ROWWISE = Recipe("rowwise", "rowwise", "rowwise", "e4m3fn")
ROWWISE_BF16_WEIGHT_GRADIENT = Recipe("rowwise", "rowwise", "bfloat16", "e4m3fn")


# ---- the plain definition ---------------------------------------------------------------------------------------------------


def rounded(x: Tensor, scaling: str, format: Format, dim: int) -> Tensor:
    """`x` in float32 as the format holds it: divided by its scale along `dim`, rounded, multiplied back."""
    codes, scale = _codes(x, scaling, format, dim)
    return codes * scale


def _codes(x: Tensor, scaling: str, format: Format, dim: int) -> tuple[Tensor, Tensor]:
    """`x` divided by its scale along `dim` and rounded to the format, in float32, and the scale that brings it back."""
    wide = x.detach().float()
    amax = largest(wide) if scaling == "tensorwise" else largest(wide, dim).unsqueeze(dim)
    scale = (torch.where(amax < EPS, EPS, amax.double()) / format.max).float()
    scale = torch.where(amax.isinf(), torch.nan, scale)
    # inside the format's range torch's own cast of float32 is right in every version: tests/precision/test_casts.py
    return (wide * (1.0 / scale.double()).float()).clamp(format.min, format.max).to(format.dtype).float(), scale


def _product(a: Tensor, b: Tensor, choice: str, formats: tuple[Format, Format]) -> Tensor:
    """a (m, k) times the transpose of b (n, k), in the dtype of `a`; the definition."""
    if choice == "bfloat16":
        return a @ b.to(a.dtype).t()
    (one, a_scale), (two, b_scale) = (_codes(x, choice, format, 1) for x, format in zip((a, b), formats, strict=True))
    # numbers of 8 bits are exact in bfloat16, and so are their products in float32
    product = torch.mm(one.bfloat16(), two.bfloat16().t(), out_dtype=torch.float32) if a.is_cuda else one @ two.t()
    return (product * (a_scale * b_scale.t())).to(a.dtype)


class _Emulated(torch.autograd.Function):
    """The definition as it stands at the top of this file, and its counts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seen: Tensor | None, recipe: tuple[str, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.recipe, ctx.seen = recipe, seen is not None
        return _product(x, weight, recipe[0], (FORMATS["e4m3fn"], FORMATS["e4m3fn"]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0]
        (x, weight), (_, first, second, format) = ctx.saved_tensors, ctx.recipe
        kinds = FORMATS[format], FORMATS["e4m3fn"]
        dx = _product(gradient, weight.t(), first, kinds) if ctx.needs_input_grad[0] else None
        dw = _product(gradient.t(), x.t(), second, kinds) if ctx.needs_input_grad[1] else None
        counts = None
        if ctx.seen:
            used = _uses(ctx.recipe)
            counts = torch.stack(
                [
                    _emulated_counts(t, used[name], FORMATS[format if name == "gradient" else "e4m3fn"])
                    for name, t in zip(TENSORS, (x, weight, gradient), strict=True)
                ]
            )
        return dx, dw, counts, None


def _uses(recipe: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """How each tensor's (rows, columns) are cast: the choices of the products that sum along its second and its first dimension."""
    forward, first, second = ("" if choice == "bfloat16" else choice for choice in recipe[:3])
    return {"input": (forward, second), "weight": (forward, first), "gradient": (first, second)}


def _emulated_counts(x: Tensor, sides: tuple[str, str], format: Format) -> Tensor:
    broken = (~x.isfinite()).sum()
    flushed = torch.zeros_like(broken)
    side = next((k for k in (0, 1) if sides[k]), None)
    if side is not None:
        flushed = ((_codes(x, sides[side], format, 1 - side)[0] == 0) & (x != 0)).sum()
    return _row(x, broken, flushed)


def _row(x: Tensor, broken: Tensor, flushed: Tensor) -> Tensor:
    """COUNTS of one tensor as float32; dynamic scales of a tensor's own magnitudes clip nothing."""
    elements = torch.full_like(broken, x.numel(), dtype=torch.float32)
    return torch.stack([elements, broken.float(), flushed.float(), torch.zeros_like(elements)])


# ---- the fast path ------------------------------------------------------------------------------------------------------------


def _matmul(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, gemm: str) -> Tensor:
    """a (m, k) times the transpose of b (n, k), both 8-bit with their scales, in `dtype`."""
    out = dtype if dtype != torch.float16 or not a_scale.dim() else torch.bfloat16
    found = torch._scaled_mm(
        a,
        b.t(),
        scale_a=a_scale,
        scale_b=b_scale.t() if b_scale.dim() else b_scale,
        out_dtype=torch.bfloat16 if a_scale.dim() else out,  # row scales give bfloat16 only
        use_fast_accum=_FAST_ACCUMULATION[gemm],
    )
    return found if found.dtype == dtype else found.to(dtype)


class _Fast(torch.autograd.Function):
    """The three products on the tensor cores; every operand is read once for all casts that it needs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, seen: Tensor | None, recipe: tuple[str, ...], cached: tuple[Tensor, ...] | None
    ) -> Tensor:
        forward, first, second = recipe[:3]
        used, counted = _uses(recipe), seen is not None
        nothing = x.new_empty(0)
        xs = _sides(x, used["input"], "e4m3fn", counted)
        ws = Cast(*cached) if cached is not None else _sides(weight, used["weight"], "e4m3fn", counted)
        if forward == "bfloat16":
            y = x @ weight.t()
        else:
            y = _matmul(xs.rows, xs.rows_scale, ws.rows, ws.rows_scale, x.dtype, "forward")
        ctx.recipe, ctx.counted = recipe, counted
        ctx.numel = x.numel(), weight.numel()
        ctx.save_for_backward(
            x if second == "bfloat16" else nothing,
            xs.columns,
            xs.columns_scale,
            weight if first == "bfloat16" else nothing,
            ws.columns,
            ws.columns_scale,
            xs.counts,
            ws.counts,
        )
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].contiguous()
        _, first, second, format = ctx.recipe
        x, xt, x_scale, weight, wt, w_scale, x_counts, w_counts = ctx.saved_tensors
        need_x, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        sides = _uses(ctx.recipe)["gradient"]
        gs = _sides(gradient, (sides[0] if need_x else "", sides[1] if need_w else ""), format, ctx.counted)
        dx = dw = counts = None
        if need_x:
            dx = (
                gradient @ weight
                if first == "bfloat16"
                else _matmul(gs.rows, gs.rows_scale, wt, w_scale, gradient.dtype, GEMMS[1])
            )
        if need_w:
            dw = (
                gradient.t() @ x
                if second == "bfloat16"
                else _matmul(gs.columns, gs.columns_scale, xt, x_scale, gradient.dtype, GEMMS[2])
            )
        if ctx.counted:
            elements = (*ctx.numel, gradient.numel())
            rows = [_counted(n, c) for n, c in zip(elements, (x_counts, w_counts, gs.counts), strict=True)]
            counts = torch.stack(rows)
        return dx, dw, counts, None, None


def _counted(elements: int, counts: Tensor) -> Tensor:
    known = counts.float()
    return torch.cat([known.new_full((1,), float(elements)), known, known.new_zeros(1)])


def _sides(x: Tensor, sides: tuple[str, str], format: str, counted: bool) -> Cast:
    """The casts of a matrix that a recipe uses; with none, only the count of values that are not finite."""
    if any(sides):
        return cast(x, *sides, format, counted)
    empty = x.new_empty(0)
    counts = x.new_zeros(2, dtype=torch.int32)
    if counted:
        broken = (~x.isfinite()).sum().to(torch.int32)
        counts = torch.stack([broken, torch.zeros_like(broken)])
    return Cast(empty, empty, empty, empty, counts)


# ---- the layer ----------------------------------------------------------------------------------------------------------------


def unsupported(linear: nn.Linear, device: torch.device | str | None = None) -> str:
    """Why FP8 products can't run for this layer on `device` (default: the weight's), or ""."""
    weight = linear.weight
    where = torch.device(device) if device is not None else weight.device
    if reason := shape_unsupported(linear.in_features, linear.out_features, weight.dtype):
        return reason
    if where.type != "cuda":
        return f"FP8 products need a CUDA device, and this is {where}; emulate=True computes the same values anywhere, slowly"
    if torch.version.hip is not None:
        return "AMD devices take other FP8 formats (FNUZ on MI300), which this layer does not do yet"
    capability = torch.cuda.get_device_capability(where)
    if capability < CAPABILITY:
        return f"{torch.cuda.get_device_name(where)} has compute capability {capability[0]}.{capability[1]}; FP8 needs 8.9 or newer"
    return ""


def shape_unsupported(in_features: int, out_features: int, dtype: torch.dtype = torch.bfloat16) -> str:
    """Why a layer of this shape and dtype can't have FP8 products on any device, or ""."""
    if dtype not in _DTYPES:
        return f"its weight is {dtype_name(dtype)}; accepted are {', '.join(map(dtype_name, _DTYPES))}"
    if in_features % ALIGN or out_features % ALIGN:
        return f"{in_features} x {out_features} features are not both divisible by {ALIGN}"
    return ""


class FP8Linear(nn.Linear):
    """An nn.Linear whose products run by a Recipe; it has the very Parameters of the layer that it came from.

    emulate: the plain definition, on any device. With `watch` on, `seen.grad` collects in backward, in float32 (3, 4), COUNTS of
    TENSORS over all calls since it was None. Input (..., in_features), output (..., out_features), in the weight's dtype.
    """

    recipe: Recipe
    emulate: bool
    seen: Tensor | None
    cached: tuple[Tensor, ...] | None

    @classmethod
    def from_linear(cls, linear: nn.Linear, recipe: Recipe, *, emulate: bool = False) -> FP8Linear:
        """The same layer with that recipe; Unsupported with the reason where it can't run."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is {type(linear).__name__}; an nn.Linear is needed")
        if not isinstance(recipe, Recipe):
            raise TypeError(f"recipe is {type(recipe).__name__}; pass a Recipe, such as kpt_lab.precision.linear.TENSORWISE")
        reason = (
            shape_unsupported(linear.in_features, linear.out_features, linear.weight.dtype) if emulate else unsupported(linear)
        )
        if recipe.any_fp8 and reason:
            raise Unsupported(reason)
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.recipe, layer.emulate, layer.seen, layer.cached = recipe, emulate, None, None
        layer.training = linear.training
        # the very dictionaries: what a user registered goes on running, and its handle still takes it away
        layer.__dict__.update({name: held for name, held in vars(linear).items() if "_hook" in name})
        return layer

    def watch(self, on: bool = True) -> None:
        """Start, or stop, to collect counts in `seen.grad`."""
        self.seen = torch.zeros(3, 4, device=self.weight.device, requires_grad=True) if on else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.recipe.any_fp8 and self.seen is None:
            return F.linear(x, self.weight, self.bias)
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type):
            wanted = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(wanted), weight.to(wanted)
        rows = x.reshape(-1, self.in_features)
        r = self.recipe
        recipe = (r.forward, r.input_gradient, r.weight_gradient, r.gradient)
        if self.emulate:
            y = _Emulated.apply(rows, weight, self.seen, recipe)
        else:
            y = _Fast.apply(rows.contiguous(), weight, self.seen, recipe, self.cached)
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, recipe={self.recipe}{', emulated' if self.emulate else ''}"


def convert(
    model: nn.Module, recipes: Recipe | Mapping[str, Recipe], *, emulate: bool = False, inplace: bool = False
) -> nn.Module:
    """`model` with FP8Linear in place of its nn.Linear layers: those named, or with one Recipe all whose shape allows it.

    recipes: one for all, or by name as in `named_modules()`. inplace: else a deep copy is changed. Parameters stay the same
    objects. Raises ValueError for an unknown name, Unsupported by name where a layer can't run or no layer can.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; an nn.Module is needed")
    model = model if inplace else copy.deepcopy(model)
    layers = {
        name: part for name, part in model.named_modules() if isinstance(part, nn.Linear) and not isinstance(part, FP8Linear)
    }
    chosen: Mapping[str, Recipe]
    if isinstance(recipes, Recipe):
        reasons = {name: _refusal(part, emulate) for name, part in layers.items()}
        chosen = {name: recipes for name, reason in reasons.items() if not reason}
        if not chosen:
            why = next(iter(reasons.values()), "")
            raise Unsupported(f"no layer of {type(model).__name__} can run in FP8: {why or 'it has no nn.Linear'}")
    else:
        chosen = recipes
        if unknown := [name for name in chosen if name not in layers]:
            raise ValueError(
                f"recipes name {unknown[0]!r}, which is no nn.Linear of model; it has {', '.join(layers) or 'none'}"
            )
        for name, recipe in chosen.items():
            if recipe.any_fp8 and (reason := _refusal(layers[name], emulate)):
                raise Unsupported(f"layer {name!r}: {reason}")
    for name, recipe in chosen.items():
        layer = FP8Linear.from_linear(layers[name], recipe, emulate=emulate)
        if not name:
            return layer
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)
    return model


def _refusal(linear: nn.Linear, emulate: bool) -> str:
    if emulate:
        return shape_unsupported(linear.in_features, linear.out_features, linear.weight.dtype)
    return unsupported(linear)


@contextlib.contextmanager
def weights_cached(model: nn.Module) -> Iterator[None]:
    """Cast the weights of all FP8Linear of `model` once, for all calls inside: micro-batches between two optimiser steps.

    Changing a weight inside is an error of the caller's that is not seen. Emulated layers are left as they are.
    """
    layers = [part for part in model.modules() if isinstance(part, FP8Linear) and part.recipe.any_fp8 and not part.emulate]
    try:
        with torch.no_grad():
            for layer in layers:
                r = layer.recipe
                sides = _uses((r.forward, r.input_gradient, r.weight_gradient))["weight"]
                if any(sides):
                    layer.cached = tuple(_sides(layer.weight.detach(), sides, "e4m3fn", layer.seen is not None))
        yield
    finally:
        for layer in layers:
            layer.cached = None


# ---- techniques ---------------------------------------------------------------------------------------------------------------


def _converted(fn: Any, knobs: Mapping[str, Any], keep: tuple[str, ...], emulate: bool) -> Any:
    if not isinstance(fn, nn.Module):
        raise Unsupported(
            f"fp8 replaces nn.Linear layers of a module; it was given {getattr(fn, '__name__', type(fn).__name__)!r}"
        )
    recipe = Recipe(**knobs)
    layers = {name: part for name, part in fn.named_modules() if isinstance(part, nn.Linear)}
    if unknown := [name for name in keep if name not in layers]:
        raise ValueError(f"keep names {unknown[0]!r}, which is no nn.Linear of the model; it has {', '.join(layers) or 'none'}")
    if not keep:
        return convert(fn, recipe, emulate=emulate, inplace=True)
    wanted = {name: recipe for name, part in layers.items() if name not in keep and not _refusal(part, emulate)}
    if not wanted:
        raise Unsupported(
            f"no layer but those kept can run in FP8: {next((_refusal(p, emulate) for p in layers.values()), 'no nn.Linear')}"
        )
    return convert(fn, wanted, emulate=emulate, inplace=True)


def _fp8(
    fn: Any, args: tuple, *, forward: Any = "tensorwise", input_gradient: Any = "tensorwise", weight_gradient: Any = "tensorwise",
    gradient: Any = "e5m2", keep: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    knobs = {"forward": forward, "input_gradient": input_gradient, "weight_gradient": weight_gradient, "gradient": gradient}
    return _converted(fn, knobs, keep, emulate=False)


def _definition(
    fn: Any, args: tuple, *, forward: Any = "tensorwise", input_gradient: Any = "tensorwise", weight_gradient: Any = "tensorwise",
    gradient: Any = "e5m2", keep: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    knobs = {"forward": forward, "input_gradient": input_gradient, "weight_gradient": weight_gradient, "gradient": gradient}
    return _converted(fn, knobs, keep, emulate=True)


def _cost(cost: Cost) -> Cost:
    """Products in 8 bits: the bound is then that arithmetic's, which no mixture of it with bfloat16 beats."""
    wide = {kind: work for kind, work in cost.flops.items() if kind not in ("bfloat16", "float16", "float32")}
    moved = sum(work for kind, work in cost.flops.items() if kind in ("bfloat16", "float16", "float32"))
    return Cost({**wide, "float8_e4m3fn": moved}, cost.bytes)


fp8 = Technique(
    "fp8",
    _fp8,
    stage="precision",
    replaces=frozenset({"linear"}),
    contract="lossy",
    definition=_definition,
    cost=_cost,
    requires=("cuda",),
)
"""Every linear layer of a module in FP8 by one recipe, given as knobs; `keep` names layers that stay, such as an output head."""

fp8_emulated = Technique(
    "fp8 emulated", _definition, stage="precision", replaces=frozenset({"linear"}), contract="lossy", definition=_definition,
    cost=_cost, simulates="h100-sxm",
)  # fmt: skip
"""The same values on any device by the plain definition; its clock is a simulation's."""
