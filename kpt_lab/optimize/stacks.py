"""The stacks that `optimize` tries: what exists for a model on a device, as techniques like any other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from kpt_lab.baselines import compiled, max_autotune
from kpt_lab.core import Technique, Unsupported, stack
from kpt_lab.models import _call
from kpt_lab.precision.linear import fp8
from kpt_lab.sparsity import SparsityPattern, prune
from kpt_lab.sparsity.linear import SparseLinear

PLAIN = (bool, int, float, str, type(None))

# ---- rewrites -----------------------------------------------------------------------------------------------------------------


def eager_attention(model: nn.Module) -> list[Any]:
    """The parts of `model` that are Transformers models with attn_implementation "eager" and a switch to change it."""
    return [
        part
        for part in model.modules()
        if hasattr(part, "set_attn_implementation")
        and getattr(getattr(part, "config", None), "_attn_implementation", "") == "eager"
    ]


def _sdpa(fn: Any, args: tuple) -> Any:
    parts = eager_attention(fn) if isinstance(fn, nn.Module) else []
    if not parts:
        raise Unsupported(
            "the model has no Transformers part whose attn_implementation is 'eager', so there is nothing to switch"
        )
    for part in parts:
        try:
            part.set_attn_implementation("sdpa")
        except (ValueError, ImportError) as error:
            raise Unsupported(f"{type(part).__name__} has no SDPA form: {error}") from error
        if part.config._attn_implementation != "sdpa":
            raise Unsupported(f"{type(part).__name__} does not let its attention be switched")
    return fn


class _InChannelsLast(nn.Module):
    """Calls a model with its 4-dimensional inputs in channels-last order; weights stay as they lie, which convolutions accept."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any, **named: Any) -> Any:
        inputs, named = pytree.tree_map_only(torch.Tensor, _last, (inputs, named))
        return self.inner(*inputs, **named)


def _last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _channels_last(fn: Any, args: tuple) -> Any:
    images = [t for t in pytree.tree_leaves(args) if isinstance(t, torch.Tensor) and t.dim() == 4]
    if not images or not has_convolutions(fn):
        raise Unsupported("channels-last order needs an input of 4 dimensions and a Conv2d")
    return _InChannelsLast(fn)


def has_convolutions(model: Any) -> bool:
    """Whether a module holds a Conv2d."""
    return isinstance(model, nn.Module) and any(isinstance(part, nn.Conv2d) for part in model.modules())


sdpa = Technique("SDPA", _sdpa, stage="rewrite", replaces=frozenset({"attention"}))
channels_last = Technique("channels last", _channels_last, stage="rewrite", replaces=frozenset({"memory order"}))

# ---- compilers and graphs -------------------------------------------------------------------------------------------------------


def _reduce_overhead(fn: Any, args: tuple) -> Any:
    """CUDA graphs by torch's own cache of them; the next call overwrites outputs, so they are copied."""
    inside = torch.compile(fn, mode="reduce-overhead", dynamic=False)

    def call(*inputs: Any, **named: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, torch.clone, inside(*inputs, **named))

    return call


def _cuda_graph(fn: Any, args: tuple) -> Any:
    """Capture one call of `fn`; later calls copy their tensors in, replay, and return copies of the outputs."""
    if len(args) == 1 and isinstance(args[0], dict):
        args = (dict(sorted(args[0].items())),)
    static: tuple = pytree.tree_map_only(torch.Tensor, torch.clone, args)
    leaves = pytree.tree_leaves(static)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors or any(not tensor.is_cuda for tensor in tensors):
        raise Unsupported("a CUDA graph needs every tensor input on a CUDA device")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            output = _call(fn, static)
    torch.cuda.current_stream().wait_stream(side)
    foreign = [leaf for leaf in pytree.tree_leaves(output) if not isinstance(leaf, (torch.Tensor, *PLAIN))]
    if foreign:
        raise Unsupported(
            f"the model returns a {type(foreign[0]).__name__}, whose tensors the next replay would overwrite; "
            "for a cache of keys and values, pass use_cache=False"
        )
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        output = _call(fn, static)

    def replay(*inputs: Any, **named: Any) -> Any:
        given = pytree.tree_leaves((dict(sorted(named.items())),) if named else inputs)
        for mine, theirs in zip(leaves, given, strict=True):
            if isinstance(mine, torch.Tensor):
                if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                    raise Unsupported(
                        f"captured for {tuple(mine.shape)} {mine.dtype}, called with {tuple(theirs.shape)} {theirs.dtype}"
                    )
                mine.copy_(theirs.detach())  # autograd must not see a write into the captured tensor
            elif mine != theirs:
                raise Unsupported(f"captured with the argument {mine!r}, called with {theirs!r}")
        graph.replay()
        return pytree.tree_map_only(torch.Tensor, torch.clone, output)

    replay.reads = fn  # type: ignore[attr-defined]  # its weights must live as long as the graph, which knows their addresses only
    return replay


reduce_overhead = Technique("torch.compile reduce-overhead", _reduce_overhead, stage="compile", requires=("cuda",))
cuda_graph = Technique("CUDA graph", _cuda_graph, stage="graph", requires=("cuda",))

# ---- lossy ----------------------------------------------------------------------------------------------------------------------


def _pruned(fn: Any, args: tuple) -> Any:
    """The dense model with the smaller two of each four weights of its linear layers set to zero."""
    if not isinstance(fn, nn.Module):
        raise Unsupported(f"2:4 prunes the layers of a module; it was given {getattr(fn, '__name__', type(fn).__name__)!r}")
    done = prune(fn, SparsityPattern.SPARSE_24, criterion="magnitude")
    if not done.pruned:
        raise Unsupported(f"2:4 fits no layer: {next(iter(done.skipped.values()), 'there is no nn.Linear')}")
    return done.model


def _two_of_four(fn: Any, args: tuple) -> Any:
    """Each pruned layer by cuSPARSELt where that was faster for its number of tokens, and dense where dense was."""
    model = _pruned(fn, args)
    tokens: dict[str, int] = {}
    layers = {name: part for name, part in model.named_modules() if type(part) is nn.Linear}
    hooks = [
        part.register_forward_pre_hook(
            lambda _, given, name=name: tokens.update({name: given[0].numel() // given[0].shape[-1]})
        )
        for name, part in layers.items()
    ]
    with torch.no_grad():
        _call(model, args)
    for hook in hooks:
        hook.remove()
    reason, changed = "no linear layer was called", 0
    for name, count in tokens.items():
        parent, _, own = name.rpartition(".")
        try:
            layer = SparseLinear.from_linear(layers[name]).tune([count])
        except (Unsupported, ValueError) as error:  # ValueError: a layer that was not pruned
            reason = str(error)
            continue
        if not name:
            return layer
        setattr(model.get_submodule(parent), own, layer)
        changed += 1
    if not changed:
        raise Unsupported(f"2:4 fits no layer: {reason}")
    return model


two_of_four = Technique(
    "2:4 by magnitude", _two_of_four, stage="sparsity", replaces=frozenset({"linear"}), contract="lossy", definition=_pruned,
    requires=("cuda",),
)  # fmt: skip
fp8_rowwise = fp8(forward="rowwise", input_gradient="rowwise", weight_gradient="bfloat16", gradient="e4m3fn")

# ---- which of them ---------------------------------------------------------------------------------------------------------------


def joined(parts: Iterable[Technique]) -> Technique:
    """The parts as one technique, ordered by stage."""
    flat = [inner for part in parts for inner in (part.parts or (part,))]
    return stack(*flat) if len(flat) > 1 else flat[0]


def lossless(model: nn.Module, workload_type: str, device: str) -> tuple[Technique, ...]:
    """Every combination of rewrite, compiler and graph that exists for this model, kind of work and device."""
    on_cuda, inference = device.startswith("cuda"), workload_type == "inference"
    rewrites: list[tuple[Technique, ...]] = [()]
    rewrites += [(sdpa,)] if eager_attention(model) else []
    rewrites += [(channels_last,)] if has_convolutions(model) else []
    compilers: list[tuple[Technique, ...]] = [(), (compiled,), (max_autotune,)]
    compilers += [(reduce_overhead,)] if on_cuda and not inference else []
    graphs: list[tuple[Technique, ...]] = [(), (cuda_graph,)] if on_cuda and inference else [()]
    found = [(*a, *b, *c) for a, b, c in itertools.product(rewrites, compilers, graphs)]
    return tuple(joined(parts) for parts in found if parts)


def lossy(workload_type: str) -> tuple[Technique, ...]:
    """What changes the numbers: 8-bit floats by two recipes, and for inference 2:4 sparsity."""
    return (fp8, fp8_rowwise, *((two_of_four,) if workload_type == "inference" else ()))


def over(best: Technique | None, changes: Iterable[Technique]) -> tuple[Technique, ...]:
    """Each lossy technique on top of the best lossless stack, and compiled as well where that stack is not.

    Casts to 8 bits are memory passes that only a compiler fuses, so a lossy technique is never judged uncompiled alone.
    """
    base = (best.parts or (best,)) if best else ()
    tops = [base, *([] if any(part.stage == "compile" for part in base) else [(*base, compiled)])]
    found: dict[str, Technique] = {}
    for change in changes:
        for top in tops:
            try:
                one = joined((change, *top))
            except ValueError:  # both replace the same thing
                continue
            found[one.label] = one
    return tuple(found.values())
