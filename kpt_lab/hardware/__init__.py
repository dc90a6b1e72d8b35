"""Hardware as data and at hand: data sheets with their sources, ceilings that a probe reached, rooflines, and the device's adapter.

    from kpt_lab.hardware import CustomHardwareAdapter

    print(CustomHardwareAdapter.auto_detect().explain())

`targets` holds the devices that records are bounded by; `devices` the table of data sheets; `disagreements` where other tables differ.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kpt_lab.hardware.adapters import CustomHardwareAdapter

__all__ = ["CustomHardwareAdapter"]


def __getattr__(name: str) -> Any:
    if name == "CustomHardwareAdapter":  # measuring imports this package, and the adapter imports measuring
        return importlib.import_module("kpt_lab.hardware.adapters").CustomHardwareAdapter
    raise AttributeError(f"module 'kpt_lab.hardware' has no attribute {name!r}")
