"""One linear layer's forward pass, dense and 2:4, in 16 and in 8 bits, each inside a CUDA graph: what is compared with what.

    forward       y = x @ w.T
    fp8_inputs    the same product, where the input comes in 8 bits as well: what a layer before could write

The definition of `sparse_24` is the dense layer with the smaller two of each four weights set to zero.

A graph here is captured on the very tensors that it is called with, for every technique alike: a graph that copies its input in
and its output out, as `baselines.cuda_graph` does, would add the same copies to both sides of a ratio and pull it towards one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kpt_lab import baselines
from kpt_lab.core import Cost, Metric, Problem, Recording, Technique, Unsupported, Workload
from kpt_lab.precision.casts import cast
from kpt_lab.precision.formats import e4m3fn
from kpt_lab.precision.scaling import quantise
from kpt_lab.sparsity.cusparselt import FP8
from kpt_lab.sparsity.eight import balanced_scale, fp8_product, scaled_mm, static_cast
from kpt_lab.sparsity.linear import Arithmetic, Form, SparseLinear
from kpt_lab.sparsity.patterns import magnitude_mask
from kpt_lab.sparsity.search import captured

SETS = 3


class GivenFP8(nn.Linear):
    """A linear layer that is offered its input twice: x, and codes (the bytes of float8_e4m3fn) with codes * input_scale = x."""

    input_scale = 1.0

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]
        return F.linear(x, self.weight, self.bias)


def _linear(kind: type[nn.Linear], device: str, dtype: torch.dtype, seed: int, size: tuple[int, int]) -> nn.Linear:
    generator = torch.Generator(device).manual_seed(seed)
    layer = kind(*size, bias=False, device=device, dtype=dtype).eval()
    layer.weight = nn.Parameter(
        torch.randn(size[1], size[0], generator=generator, device=device).mul_(size[0] ** -0.5).to(dtype), requires_grad=False
    )
    return layer


def _inputs(device: str, dtype: torch.dtype, seed: int, tokens: int, in_features: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed + 1)
    return [torch.randn(tokens, in_features, generator=generator, device=device, dtype=dtype) for _ in range(SETS)]


def _make(
    *, device: str, dtype: torch.dtype, seed: int, tokens: int = 4096, in_features: int = 4096, out_features: int = 4096
) -> Problem:
    layer = _linear(nn.Linear, device, dtype, seed, (in_features, out_features))
    return Problem(layer, [(x,) for x in _inputs(device, dtype, seed, tokens, in_features)])


def _make_fp8_inputs(
    *, device: str, dtype: torch.dtype, seed: int, tokens: int = 4096, in_features: int = 4096, out_features: int = 4096
) -> Problem:
    layer = _linear(GivenFP8, device, dtype, seed, (in_features, out_features))
    assert isinstance(layer, GivenFP8)
    layer.input_scale = balanced_scale(layer.weight)
    sets = []
    for x in _inputs(device, dtype, seed, tokens, in_features):
        codes = e4m3fn.cast(x.float() / layer.input_scale)
        sets.append(((codes.float() * layer.input_scale).to(dtype), codes.view(torch.uint8)))  # exact: a power of two
    return Problem(layer, sets)


def _cost(*, dtype: str, tokens: int, in_features: int, out_features: int) -> Cost:
    numbers = tokens * in_features + in_features * out_features + tokens * out_features
    return Cost({dtype: 2.0 * tokens * in_features * out_features}, 2.0 * numbers)


forward = Workload("sparsity.layer.forward", _make, cost=_cost, dtypes=("bfloat16",))
fp8_inputs = Workload("sparsity.layer.fp8_inputs", _make_fp8_inputs, cost=_cost, dtypes=("bfloat16",))


# ---- techniques ---------------------------------------------------------------------------------------------------------------


def _in_place(fn: Callable[..., Any], args: tuple) -> Callable[..., Any]:
    if any(not isinstance(arg, Tensor) or not arg.is_cuda for arg in args) or not args:
        raise Unsupported("a CUDA graph in place needs inputs that are all tensors on a CUDA device")
    graph, output = captured(lambda: fn(*args))
    places = [arg.data_ptr() for arg in args]

    def replay(*inputs: Tensor) -> Any:
        if [given.data_ptr() for given in inputs] != places:
            raise Unsupported("this graph reads the tensors that it was captured with; write new values into those")
        graph.replay()
        return output

    replay.reads = fn  # type: ignore[attr-defined]  # its weights must live as long as the graph, which knows their addresses only
    return replay


class _Entry(nn.Module):
    """A layer called as the workload calls its own: with x, or with x and codes."""

    def __init__(self, layer: nn.Module, eight_bits: bool) -> None:
        super().__init__()
        self.layer, self.eight_bits = layer, eight_bits

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Any:
        return self.layer(x) if codes is None or not self.eight_bits else self.layer.given_fp8(codes.view(FP8))  # type: ignore[operator]


class _DenseFP8(nn.Module):
    """The dense layer in 8 bits: the weight rounded once, the input cast on the way or given.

    scales "static": as SparseLinear's, reciprocal and known beforehand; "dynamic": of the largest magnitudes, input by input.
    """

    def __init__(self, linear: nn.Linear, *, plain: bool, scales: str = "static") -> None:
        super().__init__()
        if scales not in ("static", "dynamic"):
            raise ValueError(f"scales is {scales!r}; accepted are 'static' and 'dynamic'")
        weight = linear.weight.detach()
        self.plain, self.dynamic, self.dtype = plain, scales == "dynamic", weight.dtype
        self.input_scale = getattr(linear, "input_scale", 0.0) or balanced_scale(weight)
        one = torch.ones((), device=weight.device)
        self.largest, self.one = one * (e4m3fn.max * self.input_scale), one
        if self.dynamic:
            rounded = quantise(weight, e4m3fn)
            self.data, self.scale = rounded.data, rounded.scale.float()
        else:
            self.data, self.scale = e4m3fn.cast(weight.float() * self.input_scale), one

    def forward(self, x: Tensor) -> Tensor:
        if not self.dynamic:
            return self.given_fp8(e4m3fn.cast(x.float() / self.input_scale) if self.plain else static_cast(x, self.largest))
        if self.plain:
            rounded = quantise(x, e4m3fn)
            return self._product(rounded.data, rounded.scale)
        found = cast(x, "tensorwise", "", "e4m3fn")
        return self._product(found.rows, found.rows_scale)

    def given_fp8(self, codes: Tensor) -> Tensor:
        if self.dynamic:
            raise Unsupported("inputs given in 8 bits come with their scale; dynamic scales are for inputs in 16 bits")
        return self._product(codes, self.one)

    def _product(self, codes: Tensor, scale: Tensor) -> Tensor:
        if not self.plain:
            return scaled_mm(codes, self.data, scale, self.scale, None, self.dtype)
        return (fp8_product(codes, self.data, None, torch.float32) * (scale * self.scale)).to(self.dtype)


def _own(fn: Any) -> nn.Linear:
    if not isinstance(fn, nn.Linear) or fn.bias is not None:
        raise Unsupported(f"it takes the layer of kpt_lab.sparsity.layer's workloads, and was given {type(fn).__name__}")
    return fn


def _pruned(linear: nn.Linear) -> Tensor:
    weight = linear.weight.detach()
    return torch.where(magnitude_mask(weight), weight, 0)


def _apply_dense_fp8(fn: Any, args: tuple, *, scales: str = "static") -> Any:
    return _Entry(_DenseFP8(_own(fn), plain=False, scales=scales), True)


def _define_dense_fp8(fn: Any, args: tuple, *, scales: str = "static") -> Any:
    return _Entry(_DenseFP8(_own(fn), plain=True, scales=scales), True)


def _apply_sparse(arithmetic: Arithmetic, fn: Any, args: tuple, *, searched: bool = True, form: Form = "sparse") -> Any:
    linear = _own(fn)
    given = getattr(linear, "input_scale", None) if arithmetic == "float8_e4m3fn" else None
    layer = SparseLinear(_pruned(linear), arithmetic=arithmetic, input_scale=given)
    if layer.dense_only:
        raise Unsupported(layer.dense_only)
    linear.weight = None  # type: ignore[assignment]  # the workload's own, made for this technique alone
    layer.form = form
    if searched:
        layer.tune([args[0].shape[0]], autotune=form == "dispatch")
    return _Entry(layer, arithmetic == "float8_e4m3fn")


def _define_sparse(arithmetic: Arithmetic, fn: Any, args: tuple, *, searched: bool = True, form: Form = "sparse") -> Any:
    linear = _own(fn)
    linear.weight = nn.Parameter(_pruned(linear), requires_grad=False)
    return linear if arithmetic != "float8_e4m3fn" else _Entry(_DenseFP8(linear, plain=True), True)


def _report(candidate: Any) -> Mapping[str, Metric]:
    """What the layer holds, and whether it runs sparse here."""
    layer = candidate.layer
    held = layer.memory()
    source = "bytes of the layer's own tensors"
    tokens = max(layer.choices, default=0)
    return {
        **{f"bytes.{name}": Metric(float(size), "B", "modelled", source=source) for name, size in held.items()},
        **({"runs_sparse": _runs_sparse(layer, tokens)} if tokens else {}),
    }


def _runs_sparse(layer: SparseLinear, tokens: int) -> Metric:
    form, _ = layer.chosen(tokens)
    return Metric(float(form == "sparse"), "1", "modelled", source=f"the layer's choice: {layer.choices[tokens]}")


def _sparse_cost(cost: Cost) -> Cost:
    """Half the products, and at least the nine sixteenths of the bytes that a compressed weight has."""
    return Cost({kind: work / 2 for kind, work in cost.flops.items()}, cost.bytes * 9 / 16)


def _fp8_cost(cost: Cost) -> Cost:
    return Cost({"float8_e4m3fn": sum(cost.flops.values())}, cost.bytes / 2)


def _sparse_fp8_cost(cost: Cost) -> Cost:
    return Cost({"float8_e4m3fn": sum(cost.flops.values()) / 2}, cost.bytes * 5 / 16)


def _sparse(name: str, arithmetic: Arithmetic, cost: Callable[[Cost], Cost]) -> Technique:
    return Technique(
        name,
        functools.partial(_apply_sparse, arithmetic),
        stage="sparsity",
        replaces=frozenset({"linear"}),
        contract="lossy",
        definition=functools.partial(_define_sparse, arithmetic),
        report=_report,
        cost=cost,
        requires=("cuda",),
    )


graph = Technique("CUDA graph in place", _in_place, stage="graph", requires=("cuda",), baseline=True)
max_autotune = baselines.max_autotune
dense_fp8 = Technique(
    "dense fp8",
    _apply_dense_fp8,
    stage="precision",
    replaces=frozenset({"linear"}),
    contract="lossy",
    definition=_define_dense_fp8,
    cost=_fp8_cost,
    requires=("cuda",),
)
sparse_24 = _sparse("2:4", "bfloat16", _sparse_cost)
sparse_24_fp8 = _sparse("2:4 fp8", "float8_e4m3fn", _sparse_fp8_cost)
"""Knobs of both: searched=False takes cuSPARSELt's first algorithm; form="dispatch" runs what `SparseLinear` chooses."""

dense, dense_compiled, dense_autotuned = graph, baselines.compiled >> graph, max_autotune >> graph
dense_fp8_graph, dynamic_fp8_graph = dense_fp8 >> graph, dense_fp8(scales="dynamic") >> graph
first_bf16, searched_bf16, dispatch_bf16 = (sparse_24(**k) >> graph for k in ({"searched": False}, {}, {"form": "dispatch"}))
searched_fp8, dispatch_fp8 = (sparse_24_fp8(**k) >> graph for k in ({}, {"form": "dispatch"}))

techniques = (
    dense, dense_compiled, dense_autotuned, first_bf16, searched_bf16, dispatch_bf16,
    dense_fp8_graph, dynamic_fp8_graph, searched_fp8, dispatch_fp8,
)  # fmt: skip

COMPARED = (dense, dense_compiled, searched_bf16, dispatch_bf16, dense_fp8_graph, searched_fp8, dispatch_fp8)
COMPARED_FP8 = (dense, dense_compiled, dense_fp8_graph, searched_fp8, dispatch_fp8)
"""What is compared where the input comes in 16 and in 8 bits. Max-autotune stands beside them at few tokens alone: it compiles for long."""

HEADLINE = ((4096, 4096), (8192, 8192), (4096, 14336), (14336, 4096))  # in, out: square, and a decoder's two
WIDE = ((8192, 28672), (28672, 8192))


def _grid(shape: tuple[int, int], tokens: list[int]) -> dict[str, list[int]]:
    return {"tokens": tokens, "in_features": [shape[0]], "out_features": [shape[1]]}


_PAIRS = ((forward, COMPARED), (fp8_inputs, COMPARED_FP8))
record_grid = (
    *(Recording(w, _grid(s, [4096, 8192]), "bfloat16", 6, techniques=t) for s in HEADLINE for w, t in _PAIRS),
    *(Recording(forward, _grid(s, [16, 128]), "bfloat16", techniques=(*COMPARED, dense_autotuned)) for s in (*HEADLINE, *WIDE)),
    *(Recording(forward, _grid(s, [1024, 16384]), "bfloat16", techniques=COMPARED) for s in (*HEADLINE, *WIDE)),
    *(Recording(w, _grid(s, [4096, 8192]), "bfloat16", techniques=t) for s in WIDE for w, t in _PAIRS),
    *(Recording(fp8_inputs, _grid(s, [16, 128, 1024, 16384]), "bfloat16", techniques=COMPARED_FP8) for s in (*HEADLINE, *WIDE)),
)
"""The headline shapes from 4096 tokens on in six processes; few tokens are where 2:4 loses and the layer should run dense."""
