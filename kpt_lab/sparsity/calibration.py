"""What the inputs of a model's linear layers look like: X^T X of each, added up batch by batch; no activation is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Calibration:
    """The Gram matrices of the inputs of each nn.Linear that ran, by the layer's name.

    `grams[name]`: (in_features, in_features), the sum of x x^T over all input rows (tokens) x, in the dtype that they were
    added up in, on the layer's device. `tokens[name]`: how many rows those were. Make one by `Calibration.collect`.
    """

    grams: Mapping[str, torch.Tensor]
    tokens: Mapping[str, int]

    @classmethod
    def collect(cls, model: nn.Module, batches: Iterable[Any], *, accumulate: torch.dtype = torch.float64) -> Calibration:
        """Run `batches` through `model` without gradients and add up X^T X at the input of every nn.Linear.

        A batch is a mapping (passed by keyword), a tuple or list (passed by position) or one tensor; it must be on the model's
        device. Where a mapping has an "attention_mask" of shape (batch, tokens), rows that it marks 0 (padding) are not
        counted at layers whose input is (batch, tokens, features). `accumulate` is torch.float64, or torch.float32 for half
        the memory and devices without float64: inputs are converted before they are multiplied. Memory: in_features**2
        numbers a layer, independent of the batches. Hooks are removed in every case.

        Raises ValueError where the model is in training mode, has no nn.Linear, no batch comes, none of its nn.Linear runs, or
        an activation or its square is not finite (naming the layer).
        """
        _check(model, batches, accumulate)
        grams: dict[str, torch.Tensor] = {}
        tokens: dict[str, int] = {}
        padding: list[torch.Tensor | None] = [None]  # the running batch's attention mask

        def watch(name: str) -> Callable[..., None]:
            def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
                x = args[0] if args else kwargs["input"]
                with torch.autocast(x.device.type, enabled=False):  # it would round float32 products to 16 bits
                    gram, count = _gram(name, _rows(x.detach(), padding[0]).to(accumulate))
                tokens[name] = tokens.get(name, 0) + count
                if name in grams:
                    grams[name] += gram
                else:
                    grams[name] = gram

            return before

        layers = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        handles = [part.register_forward_pre_hook(watch(name), with_kwargs=True) for name, part in layers]
        seen = 0
        try:
            with torch.no_grad():
                for batch in batches:
                    padding[0] = batch.get("attention_mask") if isinstance(batch, Mapping) else None
                    _call(model, batch)
                    seen += 1
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError("batches is empty; at least one batch is needed to calibrate")
        if not grams:
            raise ValueError("no nn.Linear of model ran on batches (their weights may be used without calling the layer)")
        return cls(grams, tokens)

    def gram(self, name: str) -> torch.Tensor:
        """X^T X of the inputs of the layer called `name`: (in_features, in_features). Raises KeyError where it did not run."""
        if name not in self.grams:
            raise KeyError(f"calibration has no layer {name!r}; it has {', '.join(map(repr, self.grams)) or 'none'}")
        return self.grams[name]

    def norms(self, name: str) -> torch.Tensor:
        """The L2 norm of each input feature of the layer called `name` over all tokens: (in_features,).

        These are the square roots of the Gram matrix's diagonal.
        """
        return self.gram(name).diagonal().sqrt()


def _check(model: nn.Module, batches: Iterable[Any], accumulate: torch.dtype) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; an nn.Module is needed")
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"model ({type(model).__name__}) has no nn.Linear; there is nothing to calibrate")
    training = next((name or "model itself" for name, part in model.named_modules() if part.training), None)
    if training is not None:
        raise ValueError(
            f"model is in training mode ({training}); call model.eval() first, else dropout changes the activations"
        )
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise TypeError(f"batches is one {type(batches).__name__}; an iterable of batches is needed: pass [batch]")
    if accumulate not in (torch.float32, torch.float64):
        raise ValueError(f"accumulate is {accumulate}; torch.float64 and torch.float32 are accepted")
    if accumulate == torch.float64 and any(weight.device.type == "mps" for weight in model.parameters()):
        raise ValueError("accumulate is torch.float64, which MPS does not have; pass accumulate=torch.float32")


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)


def _rows(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The input's rows (tokens, features), without those that an attention mask of its leading dimensions marks as padding."""
    if mask is not None and mask.dim() == 2 and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask.to(device=x.device, dtype=torch.bool)]
    return x.reshape(-1, x.shape[-1])


def _gram(name: str, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """X^T X of these rows and their number; ValueError naming the layer where it is not finite."""
    if not bool(rows.isfinite().all()):
        raise ValueError(f"batches give NaN or infinity at the input of layer {name!r}; finite activations are needed")
    gram = rows.T @ rows
    if not bool(gram.diagonal().isfinite().all()):
        raise ValueError(f"activations at the input of layer {name!r} overflow {rows.dtype} when squared; scale them down")
    return gram, rows.shape[0]
