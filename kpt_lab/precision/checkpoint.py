"""A trainer's state as one mapping of tensors and plain values, and back: all that equal bits need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kpt_lab.precision.decisions import Decisions

if TYPE_CHECKING:
    from kpt_lab.precision.trainer import FP8Trainer

VERSION = 1


def snapshot(trainer: FP8Trainer) -> dict[str, Any]:
    """Parameters and buffers, optimiser, schedule, counts, random states of the CPU and every GPU, and the decisions."""
    decisions = trainer.decisions
    return {
        "version": VERSION,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict() if trainer.schedule is not None else None,
        "steps": trainer.steps,
        "tried": trainer.tried,
        "other_shapes": trainer.other_shapes,
        "bad": dict(trainer.bad),
        "last_bad": trainer.last_bad,
        "totals": trainer.watch.totals,
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "decisions": json.dumps(decisions.to_dict()) if decisions is not None else "",
    }


def restored(trainer: FP8Trainer, state: Any) -> Decisions | None:
    """Put a snapshot into a trainer, all but its decisions, which are returned; ValueError where it is none, or doesn't fit."""
    if not isinstance(state, Mapping) or "decisions" not in state or "optimizer" not in state:
        raise ValueError("this is no checkpoint of an FP8Trainer: it lacks 'decisions' or 'optimizer'")
    if state["version"] > VERSION:
        raise ValueError(f"the checkpoint is of version {state['version']}; this kpt_lab reads up to {VERSION}: update it")
    if (state["schedule"] is None) != (trainer.schedule is None):
        with_, without = ("the checkpoint", "this trainer") if trainer.schedule is None else ("this trainer", "the checkpoint")
        raise ValueError(f"{with_} has a schedule and {without} has none; make both alike")
    trainer.model.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.schedule is not None:
        trainer.schedule.load_state_dict(state["schedule"])
    for name in ("steps", "tried", "other_shapes", "last_bad"):
        setattr(trainer, name, state[name])
    trainer.bad.clear()
    trainer.bad.update(state["bad"])
    torch.set_rng_state(state["random"])
    if state["random_cuda"] and len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    return Decisions.from_dict(json.loads(state["decisions"])) if state["decisions"] else None
