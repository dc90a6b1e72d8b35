"""What a policy decided for each layer and why: printable, saved as JSON with the Trials behind it, and refused where it is stale."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kpt_lab import tables
from kpt_lab.core import Ratio, Trials
from kpt_lab.files import atomically
from kpt_lab.lines import from_dict, frozen, plain, to_dict
from kpt_lab.precision.linear import GEMMS, Recipe
from kpt_lab.precision.observe import Errors

VERSION = 1
SHORT = {"forward": "y", "input_gradient": "dx", "weight_gradient": "dw"}


@dataclass(frozen=True)
class Decision:
    """One layer's recipe, and why. `predicted` is its measured speedup at that shape over the best bfloat16 baseline.

    tokens: how many it saw at a call; calls: how often a step calls it. out_features comes first in `shape`, as in a weight.
    label: the technique's, as the Trials have it, or "". errors: the recipe's on the real batch, or those of the nearest miss.
    """

    name: str
    recipe: Recipe
    reason: str
    in_features: int
    out_features: int
    tokens: int = 0
    calls: int = 0
    predicted: Ratio | None = None
    errors: Errors = field(default_factory=Errors)
    label: str = ""

    @property
    def shape(self) -> str:
        """The weight's shape and the tokens, "512 x 128, 4096 tokens"."""
        return f"{self.out_features} x {self.in_features}" + (f", {self.tokens} tokens" if self.tokens else "")

    @property
    def error(self) -> str:
        """The errors in dB, whole and of the low tokens: "y 28.5 (27.7), dx 24.6 (23.7), dw 24.6"."""
        parts = []
        for name in GEMMS:
            if name in self.errors.whole:
                low = f" ({self.errors.tokens[name]:.1f})" if name in self.errors.tokens else ""
                parts.append(f"{SHORT[name]} {self.errors.whole[name]:.1f}{low}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Decisions:
    """All layers' decisions in the model's order, where they hold, and the Trials behind them; printing gives a table.

    device: the device's name. dtype: what the products outside FP8 are computed in. emulated: no time stands behind them.
    """

    layers: tuple[Decision, ...]
    device: str
    dtype: str
    emulated: bool = False
    version: str = str(torch.__version__)
    trials: Trials = field(default_factory=Trials)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Each layer's recipe by name, as `kpt_lab.precision.linear.convert` takes them."""
        return {layer.name: layer.recipe for layer in self.layers}

    @property
    def fp8(self) -> tuple[Decision, ...]:
        """The layers with at least one product in FP8."""
        return tuple(layer for layer in self.layers if layer.recipe.any_fp8)

    def __getitem__(self, name: str) -> Decision:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no decision for {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    @property
    def title(self) -> str:
        kind = "emulated, times unknown" if self.emulated else f"torch {self.version}"
        return f"{len(self.fp8)} of {len(self.layers)} linear layers in FP8; {self.device}, {self.dtype}, {kind}"

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Header and rows: layer, shape, recipe, reason, predicted speedup with its interval, error in dB."""
        rows: list[Sequence[str]] = [
            (
                x.name or "(the model)",
                x.shape,
                str(x.recipe),
                x.reason,
                tables.span(x.predicted) if x.predicted else "",
                x.error,
            )
            for x in self.layers
        ]
        return ("layer", "weight", "recipe", "why", "predicted", "error, dB (low tokens)"), rows

    def __str__(self) -> str:
        return f"{self.title}\n{aligned(*self.table())}"

    def _repr_markdown_(self) -> str:
        return f"{self.title}\n\n{tables.markdown(*self.table())}"

    # ---- keeping

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON; the file appears whole or not at all."""
        atomically(path, lambda file: file.write(json.dumps(self.to_dict(), indent=1).encode()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Decisions:
        """What `save` wrote; ValueError where the file holds something else or comes from a newer version."""
        try:
            return cls.from_dict(json.loads(Path(path).read_bytes()))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{os.fspath(path)!r} is no JSON: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON's types."""
        layers = [plain(dataclasses.asdict(layer), layer.name) for layer in self.layers]
        where = {name: getattr(self, name) for name in ("device", "dtype", "emulated", "version")}
        return {"decisions": VERSION, **where, "layers": layers, "trials": [to_dict(trial) for trial in self.trials]}

    @classmethod
    def from_dict(cls, data: Any) -> Decisions:
        """What `to_dict` gave."""
        if not isinstance(data, Mapping) or "decisions" not in data:
            raise ValueError("this is no saved Decisions: it has no key 'decisions'")
        if data["decisions"] > VERSION:
            raise ValueError(f"decisions are of version {data['decisions']}; this kpt_lab reads up to {VERSION}: update it")
        layers = tuple(_decision(layer) for layer in data["layers"])
        where = {name: data[name] for name in ("device", "dtype", "emulated", "version")}
        return cls(layers, **where, trials=Trials(from_dict(trial) for trial in data["trials"]))

    def stale(self, model: nn.Module, device: torch.device | str) -> str:
        """Why these don't hold for `model` on `device`, in a sentence, or ""."""
        found = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        if missing := [layer.name for layer in self.layers if layer.name not in found]:
            return f"they name {missing[0]!r}, which is no nn.Linear of {type(model).__name__}: decide again"
        if new := found.keys() - self.recipes.keys():
            return f"they say nothing of the layer {min(new)!r}: decide again"
        for layer in self.layers:
            part = found[layer.name]
            if (part.in_features, part.out_features) != (layer.in_features, layer.out_features):
                return f"layer {layer.name!r} is {part.out_features} x {part.in_features} now, {layer.shape} then: decide again"
        if not self.emulated and (here := device_name(device)) != self.device:
            return f"they were timed on {self.device}, and this is {here}: decide again"
        if not self.emulated and self.version != torch.__version__:
            return f"they were timed with torch {self.version}, and this is {torch.__version__}: decide again"
        return ""


def _decision(data: Mapping[str, Any]) -> Decision:
    given = dict(frozen(dict(data)))
    given["recipe"], given["errors"] = Recipe(**given["recipe"]), Errors(**given["errors"])
    given["predicted"] = Ratio(**given["predicted"]) if given["predicted"] else None
    return Decision(**given)


def device_name(device: torch.device | str) -> str:
    """The device's own name, "NVIDIA H100 80GB HBM3", or its type where it has none."""
    where = torch.device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def aligned(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a terminal."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
