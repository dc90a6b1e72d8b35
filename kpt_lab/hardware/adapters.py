"""The device at hand in one object: what it is, its data sheet, what it reaches, and a model made faster on it.

    from kpt_lab.hardware import CustomHardwareAdapter

    adapter = CustomHardwareAdapter.auto_detect()
    print(adapter.explain())
    model = adapter.optimize_model(model=model, workload_type="inference", performance_target="latency")

NVIDIA GPUs and CPUs work. AMD, Intel and Apple GPUs and TPUs are recognised, looked up in the device table, and refused by name for
the rest: nothing here was ever measured on one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from kpt_lab.core import Target, Unsupported
from kpt_lab.environment import environment
from kpt_lab.hardware import devices, targets
from kpt_lab.hardware.probe import Ceilings, probe
from kpt_lab.hardware.sheet import Device

KINDS = ("cuda", "xpu", "mps", "xla", "cpu")
"""Torch's names of what is looked for, in this order; AMD's GPUs are "cuda" to torch, and TPUs "xla"."""

_SINCE = (  # compute capability -> what it brings: CUDA programming guide, compute capabilities; PTX ISA, target notes
    ((7, 0), ("tensor cores",)),
    ((8, 0), ("bf16", "tf32", "2:4")),
    ((8, 9), ("fp8",)),
    ((9, 0), ("tma",)),
    ((10, 0), ("fp4",)),
)
_ONLY = {9: ("wgmma",), 10: ("tcgen05",)}  # by major number: later generations dropped them
_CPU = {"amx": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported", "vnni": "_is_vnni_supported"}
_NOT_DONE = {
    "NVIDIA": "one GPU at a time: several together are not done yet",
    "CPU": "8-bit floats are emulated and never timed",
    "AMD": "measuring, probing and optimising on ROCm are not done yet: no AMD GPU was at hand, and a build of torch for ROCm "
    "calls it 'cuda', so that much would run, unchecked",
    "Intel": "measuring, probing and optimising on XPU are not done yet: no Intel GPU was at hand",
    "Apple": "measuring, probing and optimising on MPS are not done yet: no Apple GPU was at hand, and MPS has neither float64, "
    "which the oracle needs, nor 8-bit floats",
    "Google": "measuring, probing and optimising on a TPU are not done yet: no TPU was at hand, and torch does not say which "
    "generation it is",
}


class _Seen(NamedTuple):
    """A device as torch's own surface gives it; memory in bytes, 0 where it isn't told."""

    device: str
    vendor: str
    name: str
    memory: float = 0.0
    features: frozenset[str] = frozenset()


class CustomHardwareAdapter:
    """One device: `device` (torch's name), `vendor`, `name` (the driver's), `features`, `works`, and its figures.

    `auto_detect` makes it. `works` says whether anything but looking it up is done for such a device.
    """

    def __init__(
        self, device: str, vendor: str, name: str, *, memory: float = 0.0, features: frozenset[str] = frozenset()
    ) -> None:
        if vendor not in _NOT_DONE:
            raise ValueError(f"vendor is {vendor!r}; accepted are {', '.join(map(repr, _NOT_DONE))}")
        self.device, self.vendor, self.name, self.memory = device, vendor, name, memory
        self._features = features

    @classmethod
    def auto_detect(cls, device: str | torch.device | None = None) -> CustomHardwareAdapter:
        """The adapter of `device`, else of the first of NVIDIA or AMD GPU, Intel GPU, Apple GPU, TPU and CPU that is here.

        ValueError, in one sentence, for a device that torch doesn't find here, or a name that is none.
        """
        if device is None:
            return cls._of(next(seen for kind in KINDS if (seen := _LOOK[kind](kind)) is not None))
        wanted = "xla" if str(device) == "tpu" else str(device)
        kind = wanted.split(":")[0]
        if kind not in KINDS:
            raise ValueError(f"device is {str(device)!r}; accepted are {', '.join(map(repr, KINDS))} and 'tpu'")
        seen = _LOOK[kind](wanted)
        if seen is None:
            here = [found.device for each in KINDS if (found := _LOOK[each](each)) is not None]
            raise ValueError(f"device is {str(device)!r}, but torch finds none here; it finds {', '.join(map(repr, here))}")
        return cls._of(seen)

    @classmethod
    def _of(cls, seen: _Seen) -> CustomHardwareAdapter:
        return cls(seen.device, seen.vendor, seen.name, memory=seen.memory, features=seen.features)

    @property
    def works(self) -> bool:
        """Whether measuring, probing and optimising are done for this kind of device."""
        return self.vendor in ("NVIDIA", "CPU")

    @functools.cached_property
    def sheet(self) -> Device | None:
        """The device's row in the table of data sheets, or None where there is none, as for every CPU."""
        if self.vendor == "CPU":
            return None
        try:
            return devices.look_up(self.name, self.memory or None)
        except ValueError:
            return None

    @functools.cached_property
    def target(self) -> Target | None:
        """Ceilings for bounds: those of the data sheet, of a CPU or a GPU without a row those that a probe of seconds reaches.

        None for a device that is only recognised and whose vendor prints no figures.
        """
        if self.vendor == "CPU":
            return targets.this_cpu()
        return self._printed() or (self.ceilings().target() if self.works else None)

    def _printed(self) -> Target | None:
        sheet = self.sheet
        return devices.target(sheet.name) if sheet is not None and sheet.peaks and sheet.bandwidth is not None else None

    @functools.cached_property
    def features(self) -> frozenset[str]:
        """What the arithmetic units have, by name ("fp8", "2:4", "tma", "avx512"): the driver's word and the data sheet's."""
        printed = self._printed()
        return self._features | (printed.features if printed else frozenset())

    def ceilings(self, *, again: bool = False) -> Ceilings:
        """What the device reaches, measured once in each environment; Unsupported where probing it is not done yet."""
        self._must_work()
        return probe(self.device, again=again)

    def explain(self) -> str:
        """What was found, where its figures are from, and what is not done yet, as text; nothing is measured for it."""
        lines = [f"{self.name} ({self.vendor}), torch device {self.device!r}"]
        if self.memory:
            lines[0] += f", {self.memory / 1e9:.0f} GB"
        lines.append(f"features: {', '.join(sorted(self.features)) or 'none are known'}")
        lines.append(f"figures: {self._figures()}")
        lines.append("works: measuring, probing and optimising" if self.works else "works: recognising it and looking it up")
        lines.append(f"not done: {_NOT_DONE[self.vendor]}")
        return "\n".join(lines)

    def _figures(self) -> str:
        if self.vendor == "CPU":
            return "a CPU has no data sheet figure for its present clock and neighbours; ceilings() probes it"
        if self.sheet is not None:
            missing = self.sheet.missing("bandwidth") or ("" if self.sheet.peaks else self.sheet.missing("peaks"))
            return f"row {self.sheet.name!r} of the device table ({self.sheet.text})" + (f"; {missing}" if missing else "")
        try:
            devices.look_up(self.name, self.memory or None)
        except ValueError as error:
            return f"{error}" + ("; ceilings() probes it" if self.works else "")
        return ""

    def optimize_model(
        self,
        *,
        model: torch.nn.Module,
        workload_type: str = "inference",
        performance_target: str = "latency",
        inputs: Any = None,
        quality: Callable[[torch.nn.Module], float] | None = None,
        loss_budget: float | None = None,
    ) -> torch.nn.Module:
        """The model with the fastest stack that is surely faster on this device, else unchanged: see kpt_lab.optimize.optimize.

        The model must be on the device. Unsupported where optimising for this kind of device is not done yet.
        """
        self._must_work()
        from kpt_lab.optimize import optimize  # the one call upwards: it stands above the packages

        return optimize(
            model,
            workload_type=workload_type,
            performance_target=performance_target,
            inputs=inputs,
            quality=quality,
            loss_budget=loss_budget,
            device=self.device,
        )

    def _must_work(self) -> None:
        if not self.works:
            raise Unsupported(
                f"{self.name} ({self.vendor}): {_NOT_DONE[self.vendor]}; CustomHardwareAdapter.auto_detect('cpu') works here"
            )

    def __repr__(self) -> str:
        return f"CustomHardwareAdapter({self.name!r}, device={self.device!r})"


# ---- what torch finds


def _cuda(device: str) -> _Seen | None:
    """An NVIDIA GPU, or an AMD one where torch was built for ROCm."""
    if not torch.cuda.is_available():
        return None
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return None
    properties, name = torch.cuda.get_device_properties(index), torch.cuda.get_device_name(index)
    memory = float(properties.total_memory)
    if torch.version.hip:
        architecture = str(getattr(properties, "gcnArchName", "")).split(":")[0]
        return _Seen(device, "AMD", name, memory, frozenset(filter(None, [architecture])))
    return _Seen(device, "NVIDIA", name, memory, frozenset(_capable(torch.cuda.get_device_capability(index))))


def _capable(capability: tuple[int, int]) -> Iterator[str]:
    for since, names in _SINCE:
        if capability >= since:
            yield from names
    yield from _ONLY.get(capability[0], ())


def _xpu(device: str) -> _Seen | None:
    if not (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return None
    index = torch.device(device).index or 0
    if index >= torch.xpu.device_count():
        return None
    memory = float(getattr(torch.xpu.get_device_properties(index), "total_memory", 0))
    return _Seen(device, "Intel", str(torch.xpu.get_device_name(index)), memory)


def _mps(device: str) -> _Seen | None:
    if not (hasattr(torch.backends, "mps") and torch.backends.mps.is_available()):
        return None
    return _Seen("mps", "Apple", str(environment("cpu")["device_name"]))  # the chip's name is the CPU's


def _xla(device: str) -> _Seen | None:
    """A TPU, where torch_xla is installed and says that its device is one."""
    if importlib.util.find_spec("torch_xla") is None:
        return None
    try:
        kind = importlib.import_module("torch_xla.runtime").device_type()
    except (ImportError, OSError, RuntimeError, AttributeError):  # absent, or installed without a device that it can use
        return None
    return _Seen("xla", "Google", "TPU") if kind == "TPU" else None


def _cpu(device: str) -> _Seen:
    found = {name for name, ask in _CPU.items() if getattr(torch.cpu, ask, lambda: False)()}
    return _Seen("cpu", "CPU", str(environment("cpu")["device_name"]), 0.0, frozenset({_vectors(), *found}))


def _vectors() -> str:
    return torch.backends.cpu.get_cpu_capability().lower()


_LOOK: dict[str, Callable[[str], _Seen | None]] = {"cuda": _cuda, "xpu": _xpu, "mps": _mps, "xla": _xla, "cpu": _cpu}
