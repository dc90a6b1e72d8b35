"""A user's own function or module as a Workload: forward, backward and a training step."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

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
    "step" (forward, backward and an AdamW update; modules only): bind it by `workload(mode="step")`, or sweep over it.
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
    return part.training and isinstance(part, torch.nn.modules.dropout._DropoutNd) and part.p > 0


def _make(
    stored: Any, example: Any, loss: Any, *, device: str, dtype: torch.dtype, seed: int, mode: str = "forward"
) -> Problem:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; accepted are {', '.join(MODES)}")
    fn = pickle.loads(stored) if isinstance(stored, bytes) else stored
    if isinstance(fn, torch.nn.Module):
        fn = fn.to(device=device, dtype=dtype)
    elif mode == "step":
        raise ValueError("mode is 'step', but the workload is a plain function without parameters to update; use 'backward'")
    place = functools.partial(_place, device=device, dtype=dtype, gradient=mode == "backward" and not isinstance(stored, bytes))
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
    """FLOPs as torch's FlopCounterMode counts them (products only), and parameters, inputs and outputs moved once.

    A backward pass reads parameters again and writes gradients; a step also reads and writes two moments in the parameters' dtype.
    """
    from torch.utils.flop_counter import FlopCounterMode

    problem = _make(
        stored, example, loss, device="cpu", dtype=torch.float32, seed=0, mode="forward" if mode == "step" else mode
    )
    counter = FlopCounterMode(display=False)
    with counter:
        output = problem.drive(problem.fn)(*problem.inputs[0])
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()

    def size(*values: Any) -> float:
        tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]
        return float(sum(t.numel() * (width if t.is_floating_point() else t.element_size()) for t in tensors))

    weights = size(list(problem.fn.parameters())) if isinstance(problem.fn, torch.nn.Module) else 0.0
    flops, moved = float(counter.get_total_flops()), weights + size(problem.inputs[0], output)
    if mode == "step":  # the backward's products cost twice the forward's
        flops, moved = 3 * flops, moved + 7 * weights
    return Cost({dtype_name(dtype): flops} if flops else {}, moved)
