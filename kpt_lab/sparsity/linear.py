"""A linear layer for inference over a 2:4 weight: sparse where that is faster, dense where dense is.

    y = x @ w.T        forward         w (out_features, in_features) has at most two nonzero numbers in each four of a row
    y = codes @ (w * s).T              8 bits      codes = x / s and w * s are rounded to float8_e4m3fn, s is a power of two

The definition is the dense layer with the pruned weight; with arithmetic "float8_e4m3fn" input and weight are rounded to that
format and multiplied widely. On a CPU the layer is its definition, and says so.

In 8 bits the two scales are reciprocal, so that the product needs none: torch reads cuSPARSELt's own factor on the host, which no
graph can capture, and a pass over the output costs more than 2:4 gains. `input_scale` s is chosen once, so that the codes of
input and weight are alike in size; the format's exponents take what varies. Inputs beyond 448 * s are held at that.

Meant for CUDA graphs: outside of one, cuSPARSELt's product costs the host about a millisecond a call. `tune` measures inside
graphs, so its choice of form is for use inside them.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported, dtype_name
from kpt_lab.precision.formats import e4m3fn
from kpt_lab.sparsity import cusparselt, search
from kpt_lab.sparsity.cusparselt import FP8, TOKENS, Plan
from kpt_lab.sparsity.eight import balanced_scale, checked_scale, fp8_product, scaled_mm, static_cast

Arithmetic = Literal["bfloat16", "float16", "float8_e4m3fn"]
Form = Literal["dispatch", "sparse", "dense", "dense autotuned"]
GAIN = 0.99  # of dense's time that a sparse product may take at most to be chosen, so that noise doesn't choose it
HOST_NOTE = (
    "outside a CUDA graph each sparse call costs the host about a millisecond (plan and descriptors, made anew by torch)"
)
_WIDE = {torch.bfloat16, torch.float16}


@dataclass(frozen=True)
class Choice:
    """What runs up to this many tokens: the form, the plan of the sparse product, and the seconds that were measured by form."""

    tokens: int
    form: str
    plan: Plan
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        told = {name: "refused" if math.isinf(took) else f"{1e6 * took:.1f} us" for name, took in self.seconds.items()}
        times = ", ".join(f"{name} {took}" for name, took in told.items())
        return f"up to {self.tokens} tokens: {self.form} ({times}; {self.plan})"


class SparseLinear(nn.Module):
    """y = x W^T + b over a 2:4 weight W (out_features, in_features), for inference; x (..., in_features).

    arithmetic: the weight's own 16-bit dtype (the default), or "float8_e4m3fn" with inputs cast on the way. input_scale: of 8-bit
    inputs, a power of two; by default for inputs of size one, as after a norm (`balanced_scale`). keep_dense: hold the
    dense weight too, so that token counts at which dense is faster run dense; then the layer takes more memory than the dense one
    (`memory()`). Call `tune(tokens)` once for the token counts to come; without it, a layer that keeps its dense weight runs dense.
    Raises ValueError where W is not 2:4, Unsupported where its shape or dtype has no 2:4 product.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        arithmetic: Arithmetic | None = None,
        keep_dense: bool = True,
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        _check(weight, arithmetic)
        self.out_features, self.in_features = weight.shape
        self.arithmetic: str = arithmetic or dtype_name(weight.dtype)
        self.dtype = weight.dtype
        self.form: str = "dispatch"
        self.keep_dense = keep_dense
        self.choices: dict[int, Choice] = {}
        self._compiled: dict[int, Callable[..., Tensor]] = {}
        compute = getattr(torch, self.arithmetic)
        self.dense_only = cusparselt.unsupported(weight.device, compute)
        weight = weight.detach() + 0.0  # -0.0, which is a zero like any other, becomes one
        self.input_scale = 1.0
        if compute == FP8:
            self.input_scale = balanced_scale(weight) if input_scale is None else checked_scale(weight, input_scale)
            weight = e4m3fn.cast(weight.float() * self.input_scale)
            largest = torch.tensor(e4m3fn.max * self.input_scale, device=weight.device)
            self.register_buffer("largest", largest, persistent=False)
            self.register_buffer("one", torch.ones_like(largest), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("packed", None if self.dense_only else cusparselt.compress(weight))
        self.register_buffer("weight", weight if keep_dense or self.dense_only else None)

    weight: Tensor | None
    packed: Tensor | None
    bias: Tensor | None
    largest: Tensor
    one: Tensor

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> SparseLinear:
        """The layer of a pruned nn.Linear, with the options of the class; TypeError for another module."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear is {type(linear).__name__}; an nn.Linear is needed")
        layer = cls(linear.weight, linear.bias, **options)
        layer.training = linear.training
        return layer

    # -- computing -----------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.eight_bits:
            rows = self.cast(rows)
        return self._run(rows).reshape(*x.shape[:-1], self.out_features)

    @property
    def eight_bits(self) -> bool:
        """Whether products are in float8_e4m3fn."""
        return self.arithmetic == "float8_e4m3fn"

    def cast(self, rows: Tensor) -> Tensor:
        """x (tokens, in_features) as the codes that `given_fp8` takes: x / input_scale in float8_e4m3fn, held at its largest."""
        if not rows.is_cuda:
            return e4m3fn.cast(rows.float() / self.input_scale)
        return static_cast(rows, self.largest)

    def given_fp8(self, codes: Tensor) -> Tensor:
        """y for inputs already in 8 bits: codes (tokens, in_features) float8_e4m3fn, as `cast` gives them."""
        if not self.eight_bits:
            raise ValueError(f"arithmetic is {self.arithmetic}; 8-bit inputs are for a layer of float8_e4m3fn")
        return self._run(codes)

    def _run(self, rows: Tensor) -> Tensor:
        form, plan = self.chosen(rows.shape[0])
        if form == "sparse":
            return self._sparse(rows, plan)
        if form == "dense autotuned":
            return self._autotuned(rows.shape[0])(rows, self.weight, self.bias)
        return self._dense(rows)

    def _sparse(self, rows: Tensor, plan: Plan) -> Tensor:
        assert self.packed is not None
        out = self.dtype if self.eight_bits else None
        y = cusparselt.product(self.packed, cusparselt.padded(rows), plan, bias=self.bias, out_dtype=out)
        return y[: rows.shape[0]] if rows.shape[0] % TOKENS else y

    def _dense(self, rows: Tensor) -> Tensor:
        assert self.weight is not None
        if not self.eight_bits:
            return F.linear(rows, self.weight, self.bias)
        if self.dense_only:
            return fp8_product(rows, self.weight, self.bias, self.dtype)
        return scaled_mm(rows, self.weight, self.one, self.one, self.bias, self.dtype)

    def _autotuned(self, tokens: int) -> Callable[..., Tensor]:
        if tokens not in self._compiled:
            self._compiled[tokens] = torch.compile(_own_linear(), mode="max-autotune-no-cudagraphs", dynamic=False)
        return self._compiled[tokens]

    # -- the weight -----------------------------------------------------------------------------------------------------------

    def dense_weight(self) -> Tensor:
        """The dense pruned weight (out_features, in_features), in 16 bits; in 8 bits its codes, without the scale."""
        if self.weight is not None:
            return self.weight
        assert self.packed is not None
        ones = torch.eye(self.in_features, device=self.packed.device).to(self.packed.dtype)
        out = self.dtype if self.packed.dtype == FP8 else None
        y = cusparselt.product(self.packed, cusparselt.padded(ones), self._nearest(self.in_features), out_dtype=out)
        return y[: self.in_features].t().to(self.packed.dtype).contiguous()  # products with one are exact

    def drop_dense(self) -> None:
        """Hold the 2:4 weight alone from now on, so that every call runs sparse; ValueError where there is none."""
        if self.packed is None:
            raise ValueError(f"this layer has only its dense weight: {self.dense_only}")
        self.weight, self.keep_dense = None, False
        self.choices = {size: replace(choice, form="sparse") for size, choice in self.choices.items()}

    def to_linear(self) -> nn.Linear:
        """An nn.Linear over the same numbers; those of 8 bits as 16-bit ones."""
        weight = self.dense_weight()
        if self.eight_bits:
            weight = (weight.float() / self.input_scale).to(self.dtype)
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = None if self.bias is None else nn.Parameter(self.bias, requires_grad=False)  # type: ignore[assignment]
        linear.training = self.training
        return linear

    # -- choosing ------------------------------------------------------------------------------------------------------------

    def chosen(self, tokens: int) -> tuple[str, Plan]:
        """The form ("sparse", "dense", "dense autotuned") that runs for this many tokens, and the sparse product's plan."""
        known = self.choices.get(search.bucket(tokens))
        if self.form != "dispatch" and not (self.dense_only and self.form == "sparse"):
            return self.form, known.plan if known else self._nearest(tokens)
        if self.dense_only:
            return "dense", Plan()
        if known:
            return known.form, known.plan
        return ("dense", Plan()) if self.weight is not None else ("sparse", self._nearest(tokens))

    def _nearest(self, tokens: int) -> Plan:
        """The plan of the nearest measured token count, by ratio; cuSPARSELt's first where none is."""
        if not self.choices:
            return Plan()
        size = search.bucket(tokens)
        return self.choices[min(self.choices, key=lambda other: max(other, size) / min(other, size))].plan

    def tune(self, tokens: Iterable[int], *, autotune: bool = False, again: bool = False) -> SparseLinear:
        """Measure, or recall, for each token count the best plan and whether sparse beats dense; returns the layer.

        autotune: race torch.compile's max-autotune dense product as well (16-bit, seconds of compiling a size). again: measure
        even where a result is remembered. On a CPU nothing is measured: the layer is dense there.
        """
        sizes = [tokens] if isinstance(tokens, int) else list(tokens)
        for size in sizes:
            search.bucket(size)
        for size in sizes if not self.dense_only else ():
            self.choices[search.bucket(size)] = self._tuned(size, autotune and not self.eight_bits, again)
        return self

    def _tuned(self, tokens: int, autotune: bool, again: bool) -> Choice:
        assert self.packed is not None
        forms = ["sparse", *(["dense"] if self.weight is not None else []), *(["dense autotuned"] if autotune else [])]
        name = search.key(
            torch.cuda.get_device_name(self.packed.device),
            getattr(torch, self.arithmetic),
            tokens,
            self.out_features,
            self.in_features,
        )
        known = None if again else search.recall(name)
        if known and set(forms) <= set(known["seconds"]):
            seconds = {form: known["seconds"][form] for form in forms}
            plan = Plan(**known["plan"])
        else:
            plan, seconds = self._measured(tokens, forms, Plan(**known["plan"]) if known else None)
            search.remember(name, {"plan": asdict(plan), "seconds": seconds})
            seconds = {form: seconds.get(form, math.inf) for form in forms}  # a refusal is told, and tried again another time
        dense = min((form for form in forms if form != "sparse"), key=seconds.__getitem__, default="sparse")
        form = "sparse" if dense == "sparse" or seconds["sparse"] <= GAIN * seconds[dense] else dense
        return Choice(search.bucket(tokens), form, plan, seconds)

    def _measured(self, tokens: int, forms: list[str], known: Plan | None) -> tuple[Plan, dict[str, float]]:
        """The fastest plan (searched for where not known), and the seconds of each form raced against one another."""
        rows = self._example(tokens)
        plan = known or self._searched(rows)
        steps: dict[str, Callable[[], Tensor]] = {"sparse": lambda: self._sparse(rows, plan)}
        if "dense" in forms:
            steps["dense"] = lambda: self._dense(rows)
        if "dense autotuned" in forms:
            steps["dense autotuned"] = lambda: self._autotuned(tokens)(rows, self.weight, self.bias)
        return plan, search.race(steps, first=20, second=20)

    def _searched(self, rows: Tensor) -> Plan:
        tokens = rows.shape[0]
        wanted = self._sparse(rows, Plan()) if self.weight is None else self._dense(rows)
        times = search.best_plan(lambda plan: self._sparse(rows, plan), wanted, tokens)
        if not times:
            shape = f"{self.out_features} x {self.in_features}, {tokens} tokens"
            raise Unsupported(f"cuSPARSELt {cusparselt.version()} has no working algorithm for {shape} in {self.arithmetic}")
        return next(iter(times))

    def _example(self, tokens: int) -> Tensor:
        assert self.packed is not None
        generator = torch.Generator(self.packed.device).manual_seed(0)
        x = torch.randn(tokens, self.in_features, generator=generator, device=self.packed.device, dtype=self.dtype)
        return self.cast(x) if self.eight_bits else x

    # -- telling -------------------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, int]:
        """Bytes: of the dense weight and the 2:4 one where held (else 0), and of all that the layer holds."""
        held = {name: 0 if t is None else t.nbytes for name, t in (("dense", self.weight), ("2:4", self.packed))}
        return {**held, "held": sum(t.nbytes for t in self.buffers())}

    def explain(self) -> str:
        """What runs at which token count and why, in sentences."""
        if self.dense_only:
            return f"Dense on the pruned weight, with the same values: {self.dense_only}."
        lines = [f"2:4 in {self.arithmetic}; {HOST_NOTE}."]
        if not self.choices:
            what = "dense" if self.weight is not None else "sparse, with cuSPARSELt's first algorithm"
            lines.append(f"Nothing is measured yet, so every call runs {what}: call tune(tokens).")
        lines += [f"{choice}." for _, choice in sorted(self.choices.items())]
        lines.append(f"Token counts that are not a multiple of {TOKENS} are padded with zeros in the sparse form.")
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.arithmetic}"
        )


def _check(weight: Tensor, arithmetic: str | None) -> None:
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.dtype not in _WIDE:
        came = (
            f"{dtype_name(weight.dtype)} of shape {tuple(weight.shape)}"
            if isinstance(weight, Tensor)
            else type(weight).__name__
        )
        raise Unsupported(f"weight is {came}; bfloat16 or float16 of shape (out_features, in_features) is accepted")
    if arithmetic is not None and (
        arithmetic not in get_args(Arithmetic) or arithmetic not in (dtype_name(weight.dtype), "float8_e4m3fn")
    ):
        raise ValueError(f"arithmetic is {arithmetic!r}; accepted here are {dtype_name(weight.dtype)!r} and 'float8_e4m3fn'")
    out_features, in_features = weight.shape
    compute = getattr(torch, arithmetic or dtype_name(weight.dtype))
    if reason := cusparselt.shape_unsupported(in_features, out_features, compute):
        raise Unsupported(reason)
    crowded = (weight.detach().unflatten(1, (-1, 4)) != 0).sum(-1) > 2
    if bool(crowded.any()):
        row, group = crowded.nonzero()[0].tolist()
        raise ValueError(
            f"weight is not 2:4: row {row}, columns {4 * group} to {4 * group + 3} hold more than 2 nonzero numbers; prune it first"
        )


def _own_linear() -> Callable[..., Tensor]:
    """F.linear as a function of its own: torch.compile counts the shapes of one function and stops at the eighth."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    return types.FunctionType(linear.__code__.replace(), linear.__globals__)
