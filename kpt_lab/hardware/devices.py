"""Devices as their vendors' data sheets give them, found by name or by the name that a driver gives; every figure has its source.

This table is for ceilings on devices that nobody here measured. `targets` holds what records are bounded by, and stays apart
from it: a Trial's key covers the figures that it was bounded by, so a correction here must not make a record stale.
"""

from __future__ import annotations

import difflib
import re

from kpt_lab.core import Target
from kpt_lab.hardware import amd, geforce, nvidia, nvidia_early, others, targets
from kpt_lab.hardware.sheet import Device

DEVICES: tuple[Device, ...] = (*nvidia_early.DEVICES, *nvidia.DEVICES, *geforce.DEVICES, *amd.DEVICES, *others.DEVICES)
_NEAR = 0.15  # a driver reports a little more or less memory than the label says: GiB for GB, or a part kept back


def by_name(name: str) -> Device:
    """The row of that name ("a100-sxm4-80gb"); ValueError with the nearest names where there is none."""
    rows = {device.name: device for device in DEVICES}
    if name not in rows:
        raise ValueError(
            f"no device is named {name!r}; {_nearest(name, list(rows), 'all are in kpt_lab.hardware.devices.DEVICES')}"
        )
    return rows[name]


def look_up(name: str, memory: float | None = None) -> Device:
    """The device that a driver calls `name` ("NVIDIA A100-SXM4-80GB"); a row's own name is accepted too.

    Some drivers give one name to several devices: `memory`, in bytes as the driver reports it, tells those apart, and is
    checked wherever it is given. ValueError, in one sentence, for an unknown name, a name that fits several devices, a
    partition of a device, and a memory that doesn't fit.
    """
    if re.search(r"\bMIG\b", name):
        raise ValueError(f"{name!r} is a partition, and the data sheets' figures are for whole devices")
    found = _named(name)
    if not found:
        known = [driver for device in DEVICES for driver in device.drivers]
        near = _nearest(name, known, "none is near; kpt_lab.hardware.devices.DEVICES lists all")
        raise ValueError(f"no device of the table has the driver name {name!r}; {near}")
    names = " or ".join(repr(device.name) for device in found)
    if memory is None:
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {names}: pass memory in bytes, which tells them apart, or one of those names")
        return found[0]
    fitting = [device for device in found if _fits(device, memory)]
    if not fitting:
        raise ValueError(
            f"{name!r} with {memory / 1e9:.4g} GB of memory fits no device of the table ({names}): a partition, or another device"
        )
    return min(fitting, key=lambda device: abs(_size(device) - memory))


def target(name: str, memory: float | None = None) -> Target:
    """The Target of the device that `look_up` finds; for those that `targets` knows, the very Target that records use."""
    device = look_up(name, memory)
    return next((known for driver in device.drivers if (known := targets.find("cuda", driver))), None) or device.target()


def _named(name: str) -> list[Device]:
    """Rows whose name or driver's name is `name`, but for case, spaces, trademarks and a leading vendor's name."""
    wanted = _plain(name)
    return [device for device in DEVICES if wanted in {_plain(device.name), *map(_plain, device.drivers)}]


def _plain(name: str) -> str:
    text = " ".join(re.sub(r"\((r|tm)\)", " ", name.lower()).split())
    return re.sub(r"^(nvidia|amd|intel) ", "", text)


def _size(device: Device) -> float:
    return device.memory.value if device.memory else 0.0


def _fits(device: Device, memory: float) -> bool:
    return device.memory is None or abs(memory / device.memory.value - 1) <= _NEAR


def _nearest(name: str, known: list[str], otherwise: str) -> str:
    plain = {_plain(each): each for each in known}
    near = [plain[each] for each in difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=0.6)]
    if not near:
        return otherwise
    return f"near are {', '.join(map(repr, near))}: name one of them only if it is the device"
