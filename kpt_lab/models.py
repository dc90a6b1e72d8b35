"""A user's own function or module as a Workload: forward, backward and a training step."""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from kpt_lab.core import Cost, Problem, Workload, dtype_name

MODES = ("forward", "backward", "step")
_LEARNING_RATE = 1e-3


def workload(
    fn_or_module: Callable[..., Any],
    *inputs: Any,
    loss: Callable[..., torch.Tensor] | None = None,
    name: str | None = None,
    random: bool | None = None,
) -> Workload:
    """Make a Workload of your own function or nn.Module and one set of example inputs.

    The Workload has a parameter `mode`: "forward" (without gradients, the default), "backward" (forward and gradients) or
    "step" (forward, backward and an AdamW update; modules only). Gradients are those of a module's trainable parameters, or of
    the float inputs where there are none. Bind a mode it by `workload(mode="step")`, or sweep over it.
    A single mapping as input is passed by keyword, as Transformers' models take theirs. `loss(output) -> scalar`; without one,
    an output's own `.loss` is used, else a fixed random projection of the outputs. `random` says that outputs are random; by
    default a module in training mode with dropout is. Two more input sets are made by rolling yours along the batch.
    """
    if not callable(fn_or_module):
        raise ValueError(f"fn_or_module is {type(fn_or_module).__name__}; a function or an nn.Module is needed")
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(inputs)):
        raise ValueError(
            "inputs holds no tensor; pass one set of example inputs: kpt.workload(fn, x) or kpt.workload(model, {...})"
        )
    module = isinstance(fn_or_module, torch.nn.Module)
    if module:
        try:
            stored: Any = pickle.dumps(fn_or_module)
        except Exception as error:
            raise ValueError(
                f"fn_or_module can't be copied by pickle ({error}), and every technique needs a fresh copy; define its class at "
                "the top of a module and keep activations and lambdas out of its attributes"
            ) from error
    else:
        stored = fn_or_module
    if random is None:
        random = module and any(_drops(part) for part in fn_or_module.modules())  # type: ignore[attr-defined]
    example = pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu().clone(), inputs)
    title = str(name or getattr(fn_or_module, "__name__", type(fn_or_module).__name__))
    make = functools.partial(_make, stored, example, loss)
    return Workload(title, make, tolerance=64.0, cost=functools.partial(_cost, stored, example, loss), random=bool(random))


def _drops(part: torch.nn.Module) -> bool:
    if isinstance(part, torch.nn.modules.dropout._DropoutNd):
        return part.training and part.p > 0
    if isinstance(part, torch.nn.RNNBase):  # between its layers, so with one layer there is none
        return part.training and part.dropout > 0 and part.num_layers > 1
    return part.training and isinstance(part, torch.nn.MultiheadAttention) and part.dropout > 0


def _make(
    stored: Any, example: Any, loss: Any, *, device: str, dtype: torch.dtype, seed: int, mode: str = "forward"
) -> Problem:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; accepted are {', '.join(MODES)}")
    fn = pickle.loads(stored) if isinstance(stored, bytes) else stored
    if isinstance(fn, torch.nn.Module):
        fn = fn.to(device=device, dtype=dtype)
    trained = bool(_parameters(fn, fn))
    if mode == "step" and not trained:
        what = "module without trainable parameters" if isinstance(fn, torch.nn.Module) else "plain function without parameters"
        raise ValueError(f"mode is 'step', but the workload is a {what} to update; use 'backward'")
    place = functools.partial(_place, device=device, dtype=dtype, gradient=mode == "backward" and not trained)
    sets = [pytree.tree_map_only(torch.Tensor, functools.partial(_placed, by=seed + k, place=place), example) for k in range(3)]
    steps: dict[str, Callable[..., Callable[..., Any]]] = {"forward": _forward, "backward": _backward, "step": Step}
    return Problem(fn, sets, functools.partial(steps[mode], fn=fn, loss=loss))


def _placed(tensor: torch.Tensor, *, by: int, place: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return place(_rolled(tensor, by))


def _place(tensor: torch.Tensor, *, device: str, dtype: torch.dtype, gradient: bool) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor.to(device)
    return tensor.to(device=device, dtype=dtype).requires_grad_(gradient)


def _rolled(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """The same values in another order: rolled along the batch where there is one, else along the last dimension."""
    if not by or not tensor.dim():
        return tensor.clone()
    return tensor.roll(by, 0 if tensor.shape[0] > 1 else -1)


def _call(candidate: Callable[..., Any], inputs: tuple) -> Any:
    return candidate(**inputs[0]) if len(inputs) == 1 and isinstance(inputs[0], Mapping) else candidate(*inputs)


def _forward(candidate: Callable[..., Any], *, fn: Any, loss: Any) -> Callable[..., Any]:
    @torch.no_grad()
    def step(*inputs: Any) -> Any:
        return _call(candidate, inputs)

    return step


def _parameters(candidate: Any, fn: Any) -> list[torch.Tensor]:
    module = candidate if isinstance(candidate, torch.nn.Module) else fn
    return [p for p in module.parameters() if p.requires_grad] if isinstance(module, torch.nn.Module) else []


def _scalar(output: Any, loss: Any, upstream: list[torch.Tensor]) -> torch.Tensor:
    """The loss; without one, the outputs on fixed random directions, so that every output element has a gradient of its own."""
    if loss is not None:
        return loss(output)
    if isinstance(getattr(output, "loss", None), torch.Tensor):
        return output.loss
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not leaves:
        raise ValueError("no output depends on anything that requires a gradient; give loss= or use mode='forward'")
    if not upstream:
        generator = torch.Generator().manual_seed(0)
        for leaf in leaves:
            direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64) / max(leaf.numel(), 1) ** 0.5
            upstream.append(direction.to(leaf))
    return torch.stack([(leaf * given).sum() for leaf, given in zip(leaves, upstream, strict=True)]).sum()


def _backward(candidate: Callable[..., Any], *, fn: Any, loss: Any) -> Callable[..., Any]:
    upstream: list[torch.Tensor] = []

    def step(*inputs: Any) -> Any:
        wanted = _parameters(candidate, fn)
        wanted += [t for t in pytree.tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.requires_grad]
        value = _scalar(_call(candidate, inputs), loss, upstream)
        gradients = torch.autograd.grad(value, wanted, allow_unused=True)
        return (value.detach(), *(g if g is not None else torch.zeros_like(w) for g, w in zip(gradients, wanted, strict=True)))

    return step


class Step:
    """One training step: forward, backward and an AdamW update of the candidate's own parameters; returns the loss.

    `reset()` puts parameters and optimiser back in place; `moved()` gives each parameter's change since then.
    """

    def __init__(self, candidate: Callable[..., Any], *, fn: Any, loss: Any) -> None:
        self.candidate, self.loss = candidate, loss
        self.upstream: list[torch.Tensor] = []
        self.parameters = _parameters(candidate, fn)
        self.start = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=_LEARNING_RATE)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        value = _scalar(_call(self.candidate, inputs), self.loss, self.upstream)
        value.backward()
        self.optimizer.step()
        return value.detach()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the first step's state."""
        for parameter, value in zip(self.parameters, self.start, strict=True):
            parameter.copy_(value)
        self.optimizer.state.clear()

    def moved(self) -> list[torch.Tensor]:
        """Change of each parameter since reset, in the parameters' own order and shapes."""
        return [(p.detach() - s) for p, s in zip(self.parameters, self.start, strict=True)]


def _cost(stored: Any, example: Any, loss: Any, *, dtype: str, mode: str = "forward") -> Cost:
    """A lower bound of one call's work, from running it once in float32 on the CPU with the example inputs.

    FLOPs: matrix products and convolutions, as torch's FlopCounterMode counts those that ran; nothing for elementwise work.
    Bytes, at the widths of `dtype`: what is used of inputs and parameters is read once (of an embedding's table the rows that
    are looked up), and outputs are written once; intermediates may stay on the chip. Outputs of a backward pass are the loss
    and the gradients. A step's gradients may be fused into the update, so beyond the loss it adds, for each parameter that
    gets a gradient, writing it, and reading and writing AdamW's two moments in the parameters' dtype.
    """
    from torch.utils.flop_counter import FlopCounterMode

    problem = _make(stored, example, loss, device="cpu", dtype=torch.float32, seed=0, mode=mode)
    weights = list(problem.fn.parameters()) if isinstance(problem.fn, torch.nn.Module) else []
    inputs = [t for t in pytree.tree_leaves(problem.inputs[0]) if isinstance(t, torch.Tensor)]
    step, counter, reads = problem.drive(problem.fn), FlopCounterMode(display=False), _Reads([*inputs, *weights])
    # FlopCounterMode can't follow modules whose inputs are leaves that need a gradient: views of them are none
    given = pytree.tree_map_only(torch.Tensor, lambda t: t.view_as(t) if t.requires_grad else t, problem.inputs[0])
    with counter, reads:
        output = step(*given)
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()

    def size(tensor: torch.Tensor, count: int | None = None) -> int:
        return (tensor.numel() if count is None else count) * (width if tensor.is_floating_point() else tensor.element_size())

    written = {_storage(t): t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)}
    moved = sum(size(tensor, reads.count(key)) for key, tensor in reads.known.items())
    moved += sum(size(tensor) for key, tensor in written.items() if key not in reads.known)  # a view of an input moves nothing
    if isinstance(step, Step):
        moved += 5 * sum(size(p) for p in step.parameters if p.grad is not None)
    flops = float(counter.get_total_flops())
    return Cost({dtype_name(dtype): flops} if flops else {}, float(moved))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Reads(TorchDispatchMode):
    """Sees which elements of some tensors, known by their storage, the operations inside surely read."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {_storage(t): t for t in tensors}
        self._ranges: dict[int, set[tuple[int, int]]] = {key: set() for key in self.known}
        self._scattered = dict.fromkeys(self.known, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        for tensor in pytree.tree_leaves((args, kwargs)):
            if not isinstance(tensor, torch.Tensor) or (key := _storage(tensor)) not in self.known or func.is_view:
                continue
            used = [(int(n), int(stride)) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
            count = math.prod(n for n, _ in used) if tensor.numel() else 0
            if name in _PICKING and tensor is args[0]:
                picked = args[1].unique().numel() * tensor.shape[-1] if name == "embedding" else 0
                self._scattered[key] = max(self._scattered[key], picked)
            elif count == 1 + sum((n - 1) * stride for n, stride in used):  # without gaps
                start = int(tensor.storage_offset())
                self._ranges[key].add((start, start + count))
            else:
                self._scattered[key] = max(self._scattered[key], count)
        return func(*args, **(kwargs or {}))

    def count(self, key: int) -> int:
        """Elements read of that storage: ranges joined, or the most of one scattered read, for others may read the same."""
        total = end = 0
        for low, high in sorted(self._ranges[key]):
            total += max(0, high - max(low, end))
            end = max(end, high)
        return max(total, self._scattered[key])


_PICKING = (
    "embedding",
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "index",
    "_unsafe_index",
    "index_select",
    "gather",
    "take",
)
"""Operations that read of their first argument only what an index picks."""
