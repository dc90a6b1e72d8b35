"""Training with linear layers in FP8 where that pays: one `step` a batch, no bad step applied, and a receipt.

A step runs forward and backward, reads in one wait for the device whether anything is not finite or was flushed by a spike, and only
then updates. A bad step is done again, uncompiled, with the layers concerned row by row or in bfloat16; where that doesn't help it is skipped,
and parameters, optimiser, schedule and running statistics stay as they were.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from kpt_lab.core import Ratio, Trials, Unsupported
from kpt_lab.files import atomically
from kpt_lab.precision import whole
from kpt_lab.precision.checkpoint import restored, snapshot
from kpt_lab.precision.decisions import Decisions
from kpt_lab.precision.linear import BFLOAT16, ROWWISE, FP8Linear, Recipe, convert, unsupported, weights_cached
from kpt_lab.precision.monitor import FLUSHED, Finding, Watch
from kpt_lab.precision.objective import (
    Loss,
    Objective,
    call,
    check_batch,
    check_model,
    moved,
    split,
    statistics_kept,
)
from kpt_lab.precision.policy import AutoMixedPrecision, NoFiniteLoss
from kpt_lab.precision.receipt import Receipt, receipt

ON_BAD = ("repair", "skip")


class BadStep(UserWarning):
    """A training step that was repaired or skipped; told once for each kind, all are in the receipt."""


class FP8Trainer:
    """Trains `model`, in place, with each linear layer in what `precision_policy` decides on the first batch.

    model: floating-point parameters; float32 ones are trained under bfloat16 autocast on a GPU (`autocast`: another dtype or
    None). precision_policy: AutoMixedPrecision; a Recipe for every layer that can take it; or saved Decisions.
    hardware_optimization: FP8 products and torch.compile on a GPU that has them; False emulates FP8 on any device, slowly, and says
    nothing about speed. loss: `loss(output, target)` for batches (inputs, target); a mapping's loss is the model's own.
    optimizer: an optimiser over the model's parameters, or a function of them; AdamW by default. accumulate: equal pieces of
    a batch that make one step. clip: largest norm of the gradients. schedule: a function of the optimiser that makes a
    torch scheduler, stepped after each update. on_bad: "repair" or "skip". flushed: see kpt_lab.precision.monitor.FLUSHED.
    watch: count in every linear layer; without it only the loss and the gradients' norm are looked at.

    Raises TypeError, ValueError or Unsupported in one sentence where an argument or this machine won't do.
    """

    def __init__(
        self,
        model: nn.Module,
        precision_policy: AutoMixedPrecision | Recipe | Decisions | None = None,
        hardware_optimization: bool = True,
        loss: Loss | None = None,
        optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        schedule: Callable[[Any], Any] | None = None,
        on_bad: Literal["repair", "skip"] = "repair",
        flushed: float = FLUSHED,
        watch: bool = True,
        autocast: torch.dtype | Literal["auto"] | None = "auto",
    ) -> None:
        check_model(model)
        policy = AutoMixedPrecision() if precision_policy is None else precision_policy
        if not isinstance(policy, (AutoMixedPrecision, Recipe, Decisions)):
            raise TypeError(f"precision_policy is {_kind(policy)}; accepted are AutoMixedPrecision(), a Recipe or Decisions")
        if loss is not None and not callable(loss):
            raise TypeError(f"loss is {_kind(loss)}; a function of (output, target) is needed")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer) and not callable(optimizer):
            raise TypeError(f"optimizer is {_kind(optimizer)}; accepted are an optimiser, or a function of the parameters")
        if schedule is not None and not callable(schedule):
            raise TypeError(
                f"schedule is {_kind(schedule)}; a function that makes a torch scheduler of the optimiser is needed"
            )
        if not isinstance(accumulate, int) or accumulate < 1:
            raise ValueError(f"accumulate is {accumulate!r}; accepted are whole numbers from 1 up")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip is {clip!r}; accepted are numbers above 0, or None")
        if on_bad not in ON_BAD:
            raise ValueError(f"on_bad is {on_bad!r}; accepted are {', '.join(map(repr, ON_BAD))}")
        if not 0 < flushed <= 1:
            raise ValueError(f"flushed is {flushed!r}; accepted are shares above 0 and up to 1")
        if any(p.dtype == torch.float16 for p in model.parameters()):
            raise ValueError(
                "model has float16 parameters, whose gradients need loss scaling; pass it in float32 (trained under bfloat16 "
                "autocast) or bfloat16"
            )
        self.device = _device(model, hardware_optimization)
        self.model = model.to(self.device)
        self.emulate = not hardware_optimization
        self.policy, self.on_bad, self.flushed, self.watched = policy, on_bad, flushed, watch
        self.accumulate, self.clip = accumulate, clip
        single = all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())
        if autocast == "auto":
            autocast = torch.bfloat16 if single and self.device.type == "cuda" else None
        self.objective = Objective(self.model, loss, autocast)
        self.optimizer = self._optimizer(optimizer)
        self.schedule = schedule(self.optimizer) if schedule else None
        self.decisions: Decisions | None = None
        self.watch = Watch(nn.Module(), {})
        self.steps = self.tried = self.other_shapes = 0
        self.bad: Counter[str] = Counter()
        self.last_bad = ""
        self.measured: Ratio | None = None
        self.predicted: Ratio | None = None
        self.trials = Trials()
        self._compiled: Callable[..., Any] | None = None
        self._shapes: Any = None
        if isinstance(policy, Decisions):
            if reason := self._stale(policy):
                raise ValueError(f"precision_policy can't be used: {reason}")
            self._adopt(policy)

    # ---- a step

    def step(self, batch: Any) -> Tensor:
        """Train on one batch and return its loss, a 0-d tensor without graph; on a skipped step the loss that was found.

        batch: a mapping, of which the model returns its loss (in `.loss` or under "loss"), or (inputs, target) with `loss=`.
        """
        check_batch(batch, self.objective.loss)
        parts = split(moved(batch, self.device), self.accumulate)
        self.tried += 1
        if self.decisions is None:
            try:
                self._adopt(self._decide(parts[0]))
            except NoFiniteLoss as error:
                self._tell("skipped", "non-finite", f"{error}; nothing was decided or updated")
                return torch.tensor(error.value, device=self.device)
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(parts[0]) if isinstance(leaf, Tensor)]
        self._shapes = self._shapes or shapes
        self.other_shapes += shapes != self._shapes
        told: tuple[str, str, str] | None = None
        with statistics_kept(self.model, keep=False) as restore:
            loss, norm, found, counts = self._attempt(parts, self.objective if self._compiled is None else self._compiled)
            self.watch.totals += counts
            if found.bad:
                again, why = self._repair(parts, found, restore)
                outcome = "repaired" if again else "skipped"
                told = outcome, found.kind, f"{found}; {why}"
                loss, norm = again or (loss, norm)
                if not again:
                    restore()
        if told is None or told[0] == "repaired":
            self._update(norm)
        for parameter in self.model.parameters():
            parameter.grad = None
        if told:
            self._tell(*told)
        return loss

    def _attempt(self, parts: list[Any], objective: Callable[..., Any]) -> tuple[Tensor, Tensor, Finding, Tensor]:
        """Forward and backward of all pieces: the mean loss, the gradients' norm, and what was found, in one wait for the device."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self.watch.start()
        losses = []
        with weights_cached(self.model) if len(parts) > 1 else contextlib.nullcontext():
            for part in parts:
                value = call(objective, part).reshape(())
                (value / len(parts)).backward()
                losses.append(value.detach())
        loss = torch.stack(losses).mean()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        return loss, norm, *self.watch.read(loss, norm)

    def _update(self, norm: Tensor) -> None:
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip, norm)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        self.steps += 1

    # ---- bad steps

    def _repair(
        self, parts: list[Any], found: Finding, restore: Callable[[], None]
    ) -> tuple[tuple[Tensor, Tensor] | None, str]:
        """Do a bad step again in more bits: its loss and norm where it is good then, else None; and a sentence either way."""
        if broken := self._broken_parameter(found):
            return (
                None,
                f"the parameter {broken!r} itself holds values that are not finite: the step can't be repaired and is skipped",
            )
        if self.on_bad == "skip":
            return None, "skipped, as on_bad='skip' asks"
        for recipes in self._milder(found):
            restore()
            with _recipes(self.model, recipes):
                loss, norm, again, _ = self._attempt(parts, self.objective)
            if not again.bad:
                kinds = sorted({str(recipe) for recipe in recipes.values()})
                return (loss, norm), f"done again with {len(recipes)} layers in {' or '.join(kinds)}"
        return None, "it stays so without FP8, so the batch or the model is the cause: skipped"

    def _broken_parameter(self, found: Finding) -> str:
        """The name of a parameter that isn't finite, or ""; looked for only in a step that isn't."""
        if found.kind != "non-finite":
            return ""
        return next((name for name, p in self.model.named_parameters() if not bool(p.detach().isfinite().all())), "")

    def _milder(self, found: Finding) -> Iterator[dict[str, Recipe]]:
        """What to try in place of the recipes: first for the layers concerned, then bfloat16 for all that are in FP8."""
        layers = {n: p for n, p in self.model.named_modules() if isinstance(p, FP8Linear) and p.recipe.any_fp8}
        plain = dict.fromkeys(layers, BFLOAT16)
        first = {place.layer: ROWWISE for place in found.loud if place.layer in layers}
        first |= {place.layer: BFLOAT16 for place in found.broken if place.layer in layers}
        if first and first != plain:
            yield first
        if plain:
            yield plain

    def _tell(self, outcome: str, kind: str, text: str) -> None:
        key = f"{outcome}, {kind}"
        self.bad[key] += 1
        self.last_bad = f"step {self.tried}: {text}"
        if self.bad[key] == 1:
            warnings.warn(f"{self.last_bad} (said once; receipt() counts them)", BadStep, stacklevel=3)

    # ---- deciding

    def _decide(self, batch: Any) -> Decisions:
        only = self.policy if isinstance(self.policy, Recipe) else None
        policy = self.policy if isinstance(self.policy, AutoMixedPrecision) else AutoMixedPrecision()
        settings: dict[str, Any] = {"loss": self.objective.loss, "autocast": self.objective.autocast, "only": only}
        return policy.decide(self.model, batch, emulate=self.emulate, **settings)

    def _stale(self, decisions: Decisions) -> str:
        if decisions.emulated != self.emulate:
            made = "by emulation" if decisions.emulated else "for FP8 products on a GPU"
            return f"they were made {made}, and hardware_optimization is {not self.emulate}: decide again"
        return decisions.stale(self.model, self.device)

    def _adopt(self, decisions: Decisions) -> None:
        """Put the recipes into the model, once or again, and compile it."""
        new = {}
        for layer in decisions.layers:
            part = self.model.get_submodule(layer.name)
            if isinstance(part, FP8Linear):
                part.recipe, part.emulate = layer.recipe, self.emulate
            elif layer.calls and type(part) is nn.Linear:  # others use their weight in ways of their own
                new[layer.name] = layer.recipe
        self.model = self.objective.model = convert(self.model, new, emulate=self.emulate, inplace=True)
        self.decisions = decisions
        self.watch.close()
        usual = {x.name: x.errors.flushed for x in decisions.layers}
        self.watch = Watch(self.model, usual, self.flushed, self.watched)
        self._compiled = None if self.emulate else torch.compile(self.objective)

    def _optimizer(self, given: Any) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if isinstance(given, torch.optim.Optimizer):
            mine = {id(p) for p in trained}
            if not any(id(p) in mine for group in given.param_groups for p in group["params"]):
                raise ValueError("optimizer holds none of the model's parameters; make it of model.parameters()")
            return given
        if given is None:
            return torch.optim.AdamW(trained, fused=self.device.type == "cuda")
        made = given(trained)
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(f"optimizer gave {_kind(made)} for the parameters; a torch optimiser is needed")
        return made

    # ---- keeping and telling

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint that `load` goes on from with equal bits; the file appears whole or not at all."""
        atomically(path, lambda file: torch.save(snapshot(self), file))

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of a trainer made alike: parameters, optimiser, schedule, counts, random states, decisions.

        Decisions that don't hold here, on another device for instance, are made again on the next batch, with a warning.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        decisions = restored(self, state)
        if decisions is not None and (reason := self._stale(decisions)):
            warnings.warn(
                f"the checkpoint's decisions are not used: {reason}, which the next step does", UserWarning, stacklevel=2
            )
        elif decisions is not None:
            self._adopt(decisions)
            if self.watched:
                self.watch.totals = state["totals"]

    def receipt(self) -> Receipt:
        """Each layer's recipe, why, predicted ratio and error, what was counted so far, and the bad steps; printing gives a table."""
        return receipt(self)

    def measure(self, batch: Any, *, budget: float = 10.0, processes: int = 0) -> Ratio:
        """The measured speedup of a whole step on this batch over bfloat16 without and with torch.compile, the best of both.

        The predicted one stands beside it in the receipt, the Trials in `trials`. Raises Unsupported under emulation, ValueError
        before the first step. Compiled code is made anew afterwards, so call it before or after training, not within.
        """
        if self.decisions is None:
            raise ValueError("nothing is decided yet; call step(batch) first, or pass Decisions as precision_policy")
        if self.emulate:
            raise Unsupported("emulated FP8 has no speed; measure with hardware_optimization=True on a GPU that has FP8")
        part = split(moved(batch, self.device), self.accumulate)[0]
        self.trials = whole.measured(self.objective, part, self.decisions, budget=budget, processes=processes)
        self.measured, self.predicted = whole.ratios(self.trials, self.decisions)
        return self.measured


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, (str, int, float)) else type(value).__name__


def _device(model: nn.Module, fast: bool) -> torch.device:
    """Where the model is trained; Unsupported where FP8 products are asked for and can't run."""
    device = next(p.device for p in model.parameters())
    if not fast:
        return device
    if device.type != "cuda" and torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    reason = (
        "torch finds no CUDA device here" if device.type != "cuda" else unsupported(nn.Linear(16, 16, device="meta"), device)
    )
    if reason:
        raise Unsupported(
            f"hardware_optimization=True needs an NVIDIA GPU with FP8 (compute capability 8.9 or newer), but {reason}; "
            "pass hardware_optimization=False to emulate FP8 here: the same numerics, slowly"
        )
    return device


@contextlib.contextmanager
def _recipes(model: nn.Module, recipes: Mapping[str, Recipe]) -> Iterator[None]:
    """Other recipes for some layers, for a while."""
    parts = {name: part for name in recipes if isinstance(part := model.get_submodule(name), FP8Linear)}
    before = {name: part.recipe for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.recipe = recipes[name]
        yield
    finally:
        for name, part in parts.items():
            part.recipe = before[name]
