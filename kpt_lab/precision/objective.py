"""A model with its loss as one module, and what a batch may be: the trainer, the policy and the measured step share it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Loss = Callable[[Any, Any], Tensor]


class Objective(nn.Module):
    """`model` and what is minimised: called with a mapping's items the model returns the loss, with (inputs, target) `loss` does.

    autocast: the dtype in which autocast computes the model's products, or None for none.
    """

    def __init__(self, model: nn.Module, loss: Loss | None = None, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast
        self.place = next((p.device.type for p in model.parameters()), "cpu")

    def forward(self, *pair: Any, **batch: Any) -> Tensor:
        with torch.autocast(self.place, self.autocast, enabled=self.autocast is not None):
            if batch:
                output = self.model(**batch)
                return output["loss"] if isinstance(output, Mapping) else output.loss
            inputs, target = pair
            assert self.loss is not None
            if isinstance(inputs, Mapping):
                output = self.model(**inputs)
            else:
                output = self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)
            return self.loss(output, target)

    def of(self, batch: Any) -> Tensor:
        """The loss of a batch that `check_batch` accepts, as a 0-d tensor; ValueError where the model gives none."""
        try:
            value = call(self, batch)
        except (AttributeError, KeyError) as error:
            if "loss" not in str(error):
                raise
            raise ValueError(
                f"{type(self.model).__name__} returns no loss for a mapping; return one as Transformers' models do "
                "(pass labels in the batch), or pass (inputs, target) with loss="
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the loss is {came}; one number is needed (Transformers' models give one where labels are passed)"
            )
        return value.reshape(())


def call(objective: Callable[..., Any], batch: Any) -> Any:
    """`objective`, compiled or not, of a batch."""
    return objective(**batch) if isinstance(batch, Mapping) else objective(*batch)


def check_batch(batch: Any, loss: Any) -> None:
    """TypeError or ValueError unless a batch is a mapping, or (inputs, target) with a loss."""
    if isinstance(batch, Mapping):
        if loss is not None:
            raise ValueError("batch is a mapping, for which the model returns its loss; with loss= pass (inputs, target)")
    elif not isinstance(batch, (tuple, list)) or len(batch) != 2:
        came = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TypeError(f"batch is {came}; accepted are a mapping (the model returns its loss) and a pair (inputs, target)")
    elif loss is None:
        raise ValueError("batch is (inputs, target), so loss= is needed, such as torch.nn.functional.cross_entropy")
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(_plain(batch))):
        raise TypeError("batch holds no tensor; accepted are a mapping or a pair of tensors")


def check_model(model: Any) -> None:
    """TypeError or ValueError unless `model` is a module with floating-point parameters to train."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; an nn.Module is needed")
    parameters = list(model.parameters())
    if not any(p.requires_grad and p.is_floating_point() for p in parameters):
        kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "no parameters"
        raise ValueError(
            f"model has no floating-point parameter to train (it holds {kinds}); FP8 training needs the model before it was quantised or frozen"
        )


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on `device`."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device, non_blocking=True), _plain(batch))


def _plain(batch: Any) -> Any:
    """Mappings as dicts, which torch's trees know; Transformers' BatchEncoding is none."""
    if isinstance(batch, Mapping):
        return {name: _plain(value) for name, value in batch.items()}
    return type(batch)(map(_plain, batch)) if type(batch) in (tuple, list) else batch


def split(batch: Any, parts: int) -> list[Any]:
    """The batch in `parts` equal pieces along dimension 0; ValueError where a tensor can't be split so."""
    if parts == 1:
        return [batch]
    leaves, structure = pytree.tree_flatten(_plain(batch))
    for leaf in leaves:
        if isinstance(leaf, Tensor) and (not leaf.dim() or leaf.shape[0] % parts):
            raise ValueError(
                f"accumulate is {parts}, but the batch holds a tensor of shape {tuple(leaf.shape)}; dimension 0 must be divisible by it"
            )
    pieces = [leaf.chunk(parts) if isinstance(leaf, Tensor) else (leaf,) * parts for leaf in leaves]
    return [pytree.tree_unflatten(list(piece), structure) for piece in zip(*pieces, strict=True)]


@contextlib.contextmanager
def statistics_kept(model: nn.Module, keep: bool = True) -> Iterator[Callable[[], None]]:
    """Batch norms' running statistics put back at the end (`keep`) or when what it gives is called."""
    held = [
        (buffer, buffer.clone())
        for part in model.modules()
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.training
        for buffer in part.buffers()
    ]

    def restore() -> None:
        for buffer, value in held:
            buffer.copy_(value)

    try:
        yield restore
    finally:
        if keep:
            restore()
