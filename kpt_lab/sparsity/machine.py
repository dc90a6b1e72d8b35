"""Which device a model is pruned for, whether it has 2:4 products, and whether it is the one at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kpt_lab.core import Unsupported
from kpt_lab.hardware import devices
from kpt_lab.hardware.sheet import Device
from kpt_lab.sparsity import cusparselt

GENERATIONS = (
    "Ampere",
    "Ada",
    "Hopper",
    "Blackwell",
)  # NVIDIA's with 2:4 tensor cores: its Ampere white paper, and those since


@dataclass(frozen=True)
class Machine:
    """A target by name; `here` says whether sparse layers can run now, else `why` (a sentence) and `short` (a clause) say why not."""

    name: str
    here: bool
    why: str = ""
    short: str = ""


def find(target: str | None, model: nn.Module) -> Machine:
    """The machine that `target` names, or, where it is None, the one that the model is on.

    ValueError for an unknown name, Unsupported for a device without 2:4 products that can be used here.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if target is None:
        reason = cusparselt.unsupported(device, torch.bfloat16)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type.upper()}"
        return Machine(name, not reason, f"Weights are pruned and layers stay dense: {reason}." if reason else "", reason)
    rows = _rows(target)
    lacking = [row for row in rows if row.vendor != "NVIDIA" or not row.generation.startswith(GENERATIONS)]
    if lacking:
        row = lacking[0]
        what = "2:4 products are not done yet for it here" if row.vendor == "AMD" else "it has no 2:4 products"
        raise Unsupported(
            f"hardware_target is {target!r}, {row.text}: {what}; targets are NVIDIA GPUs from Ampere on, such as 'H100'"
        )
    drivers = {driver for row in rows for driver in row.drivers}
    this = torch.cuda.get_device_name() if torch.cuda.is_available() else "a machine without a CUDA device"
    if this not in drivers:
        return Machine(
            target, False, f"Pruned for {target}, and this is {this}: layers stay dense here; save the model and load it there.",
            f"pruned for {target}, and this is {this}",
        )  # fmt: skip
    if device.type != "cuda":
        return Machine(
            target, False, f"The model is on the {device.type}: layers stay dense; move it to cuda first.", "not on the GPU"
        )
    reason = cusparselt.unsupported(device, torch.bfloat16)
    return Machine(target, not reason, f"Layers stay dense: {reason}." if reason else "", reason)


def _rows(target: str) -> list[Device]:
    """The devices of that name, of that driver's name, or of that family ("H100": its SXM, PCIe and NVL forms)."""
    if not isinstance(target, str):
        raise TypeError(f"hardware_target is {type(target).__name__}; a device's name such as 'H100' is accepted, or None")
    wanted = target.strip().lower().replace(" ", "-")
    family = [row for row in devices.DEVICES if row.name == wanted or row.name.startswith(f"{wanted}-")]
    if wanted and family:
        return family
    try:
        return [devices.look_up(target)]
    except ValueError as error:
        raise ValueError(f"hardware_target is {target!r}, which is no device of the table: {error}") from error
