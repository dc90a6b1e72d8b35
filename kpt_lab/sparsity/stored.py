"""A pruned model in a safetensors file: 2:4 weights in the packed layout of `kpt_lab.sparsity.packed`, the rest as it is.

For a pruned layer NAME the file has NAME.weight.values and NAME.weight.indices in place of NAME.weight. Its metadata has, as
JSON under "kpt_lab.sparse_24", the layers' reports, the names that share another's tensor, and the Conv1D that became nn.Linear.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import torch
from torch import nn

from kpt_lab.sparsity.linear import SparseLinear
from kpt_lab.sparsity.packed import pack, unpack
from kpt_lab.sparsity.prune import LayerReport

KEY, VERSION = "kpt_lab.sparse_24", 1


def linearised(model: nn.Module) -> nn.Module:
    """The model with every Conv1D of Transformers (GPT-2's layers, weight (in, out)) as the equal nn.Linear, in place."""
    for name, part in list(model.named_modules()):
        weight = getattr(part, "weight", None)
        if type(part).__name__ != "Conv1D" or not hasattr(part, "nf") or not isinstance(weight, nn.Parameter):
            continue
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[0], weight.shape[1], bias=part.bias is not None)
        linear.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
        linear.bias = part.bias
        linear.training = part.training
        if not name:
            return linear
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, linear)
    return model


def save(model: nn.Module, pruned: Sequence[LayerReport], path: str | PathLike[str]) -> None:
    """Write the model; ValueError where a layer runs in 8 bits, whose 16-bit weight is gone."""
    save_file, _ = _safetensors()
    names = {report.name for report in pruned}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLinear) and layer.arithmetic == "float8_e4m3fn":
            raise ValueError(
                f"layer {name!r} runs in float8_e4m3fn and has no 16-bit weight to save; convert without arithmetic="
            )
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        part: Any = model.get_submodule(name)
        weight = part.dense_weight() if isinstance(part, SparseLinear) else part.weight
        prefix = f"{name}." if name else ""
        values, indices = pack(weight.detach().cpu())
        tensors |= {f"{prefix}weight.values": values, f"{prefix}weight.indices": indices}
        if part.bias is not None:
            tensors[f"{prefix}bias"] = part.bias.detach().cpu()
    shared: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for key, tensor in model.state_dict().items():
        if key.rpartition(".")[0] in names:
            continue
        place = tensor.data_ptr(), tuple(tensor.shape)
        if tensor.numel() and place in seen:
            shared[key] = seen[place]
            continue
        seen[place] = key
        tensors[key] = tensor.detach().cpu().contiguous().clone()
    about = {"version": VERSION, "layers": [asdict(report) for report in pruned], "shared": shared}
    save_file(tensors, path, metadata={KEY: json.dumps(about)})


def load(path: str | PathLike[str], model: nn.Module) -> tuple[nn.Module, list[LayerReport]]:
    """Read a file of `save` into `model` (its Conv1D become nn.Linear); the model and the reports of its pruned layers.

    ValueError where the file is not of `save`, or its tensors are not the model's.
    """
    _, safe_open = _safetensors()
    with safe_open(path, framework="pt") as file:
        about = (file.metadata() or {}).get(KEY)
        if about is None:
            raise ValueError(f"{path} was not written by StructuredSparse.save: it has no {KEY!r} in its metadata")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping, it only has keys()
    known: dict[str, Any] = json.loads(about)
    if known["version"] != VERSION:
        raise ValueError(f"{path} has version {known['version']} of the layout; this kpt_lab reads {VERSION}")
    reports = [LayerReport(**{**report, "shape": tuple(report["shape"])}) for report in known["layers"]]
    for report in reports:
        key = f"{report.name}.weight" if report.name else "weight"
        tensors[key] = unpack(tensors.pop(f"{key}.values"), tensors.pop(f"{key}.indices"))
    for key, origin in known["shared"].items():
        tensors[key] = tensors[origin]
    model = linearised(model)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit model ({type(model).__name__}): {' '.join(str(error).split())[:300]}") from error
    return model, reports


def _safetensors() -> tuple[Any, Any]:
    """safetensors' save_file and safe_open."""
    try:
        from safetensors import safe_open
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("saving and loading needs the package safetensors: pip install safetensors") from error
    return save_file, safe_open
