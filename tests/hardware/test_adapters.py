"""The adapter: which device it finds on surfaces of torch that are not here, what it says of each, and what it passes on."""

from __future__ import annotations

import subprocess
import sys
import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kpt_lab.core import Target, Unsupported
from kpt_lab.hardware import CustomHardwareAdapter, adapters, devices, targets

GB = 1e9
TARGET = Target("a CPU", {"float32": 1e11}, 1e10, {"float32": "made up", "bandwidth": "made up"})


def none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that finds nothing but the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)


def gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, memory: float, capability: tuple[int, int] = (9, 0), hip: str | None = None
) -> None:
    """A torch that finds one such GPU as "cuda"."""
    none_of_them(monkeypatch)
    properties = SimpleNamespace(total_memory=int(memory), gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def refused(adapter: CustomHardwareAdapter) -> str:
    """The sentence with which an adapter refuses to optimise; probing is refused in the same words."""
    with pytest.raises(Unsupported) as error:
        adapter.optimize_model(model=torch.nn.Linear(1, 1))
    with pytest.raises(Unsupported, match="not done yet"):
        adapter.ceilings()
    return str(error.value)


# ---- what works


def test_a_machine_without_a_gpu_is_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    monkeypatch.setattr(targets, "this_cpu", lambda: TARGET)
    found = CustomHardwareAdapter.auto_detect()
    assert (found.device, found.vendor, found.works, found.sheet) == ("cpu", "CPU", True, None)
    assert found.target is TARGET
    assert torch.backends.cpu.get_cpu_capability().lower() in found.features
    assert "ceilings() probes it" in found.explain()
    assert found.name in repr(found)


def test_an_nvidia_gpu_has_its_data_sheet_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "NVIDIA H100 80GB HBM3", 85.0 * GB)
    found = CustomHardwareAdapter.auto_detect()
    assert (found.device, found.vendor, found.works) == ("cuda", "NVIDIA", True)
    assert found.sheet is devices.by_name("h100-sxm")
    assert found.target is targets.h100_sxm
    assert {"tensor cores", "bf16", "tf32", "2:4", "fp8", "tma", "wgmma"} == found.features
    assert "row 'h100-sxm' of the device table" in found.explain()
    assert "85 GB" in found.explain()


@pytest.mark.parametrize(
    ("capability", "has", "lacks"),
    [
        ((6, 1), set(), {"tensor cores"}),
        ((7, 5), {"tensor cores"}, {"bf16", "2:4"}),
        ((8, 6), {"bf16", "2:4"}, {"fp8"}),
        ((8, 9), {"fp8"}, {"tma"}),
        ((10, 0), {"tma", "tcgen05", "fp4"}, {"wgmma"}),
        ((12, 0), {"tma", "fp4"}, {"wgmma", "tcgen05"}),
    ],
)
def test_features_follow_the_compute_capability(capability: tuple[int, int], has: set[str], lacks: set[str]) -> None:
    found = set(adapters._capable(capability))
    assert has <= found
    assert not lacks & found


def test_a_gpu_without_a_row_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "NVIDIA Unheard Of", 8 * GB, (8, 9))
    asked: list[Any] = []

    def probed(device: str, *, again: bool) -> Any:
        asked.append((device, again))
        return SimpleNamespace(target=lambda: TARGET)

    monkeypatch.setattr(adapters, "probe", probed)
    found = CustomHardwareAdapter.auto_detect("cuda:0")
    assert "no device of the table has the driver name 'NVIDIA Unheard Of'" in found.explain()
    assert "; ceilings() probes it" in found.explain()
    assert asked == []
    assert found.target is TARGET
    assert asked == [("cuda:0", False)]
    assert found.features == {"tensor cores", "bf16", "tf32", "2:4", "fp8"}


def test_what_is_optimised_is_passed_on_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    asked: dict[str, Any] = {}
    stand_in = types.ModuleType("kpt_lab.optimize")
    stand_in.optimize = lambda model, **options: asked.update(options, model=model) or "faster"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kpt_lab.optimize", stand_in)
    model, quality = torch.nn.Linear(2, 2), lambda candidate: 0.0
    found = CustomHardwareAdapter.auto_detect().optimize_model(
        model=model,
        workload_type="training",
        performance_target="throughput",
        inputs=torch.ones(1, 2),
        quality=quality,
        loss_budget=0.1,
    )
    assert found == "faster"  # type: ignore[comparison-overlap]
    assert torch.equal(asked.pop("inputs"), torch.ones(1, 2))
    assert asked == {
        "model": model, "workload_type": "training", "performance_target": "throughput", "quality": quality, "loss_budget": 0.1,
        "device": "cpu",
    }  # fmt: skip


# ---- what is only recognised


def test_an_amd_gpu_is_recognised_and_refused_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "AMD Instinct MI300X", 192 * 2**30, (9, 4), hip="7.0")
    found = CustomHardwareAdapter.auto_detect()
    assert (found.vendor, found.works, found.device) == ("AMD", False, "cuda")
    assert found.sheet is devices.by_name("mi300x")
    assert found.target == devices.target("mi300x")
    assert "gfx942" in found.features
    assert "wgmma" not in found.features
    assert "ROCm are not done yet" in refused(found)
    assert "not done: measuring, probing and optimising on ROCm" in found.explain()


def test_an_intel_gpu_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda index: "Intel(R) Arc(TM) B580 Graphics")
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda index: SimpleNamespace(total_memory=12 * GB))
    found = CustomHardwareAdapter.auto_detect()
    assert (found.vendor, found.device, found.works) == ("Intel", "xpu", False)
    assert found.sheet is devices.by_name("arc-b580")
    assert "Intel" in refused(found)
    with pytest.raises(ValueError, match="device is 'xpu:1', but torch finds none here; it finds 'xpu', 'cpu'"):
        CustomHardwareAdapter.auto_detect("xpu:1")


def test_an_apple_gpu_is_recognised_though_its_vendor_prints_no_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(adapters, "environment", lambda device: {"device_name": "Apple M4 Max"})
    found = CustomHardwareAdapter.auto_detect()
    assert (found.vendor, found.device, found.works) == ("Apple", "mps", False)
    assert found.sheet is devices.by_name("m4-max")
    assert found.target is None
    assert "Apple prints no peak rate" in found.explain()
    assert "neither float64" in refused(found)


def test_a_tpu_is_recognised_where_torch_xla_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    kinds = iter(["TPU", "TPU", "CPU"])
    package, runtime = types.ModuleType("torch_xla"), types.ModuleType("torch_xla.runtime")
    runtime.device_type = lambda: next(kinds)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_xla", package)
    monkeypatch.setitem(sys.modules, "torch_xla.runtime", runtime)
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: object())
    found = CustomHardwareAdapter.auto_detect()
    assert (found.vendor, found.device, found.works, found.target) == ("Google", "xla", False, None)
    assert "TPU" in refused(found)
    assert CustomHardwareAdapter.auto_detect("tpu").vendor == "Google"
    assert CustomHardwareAdapter.auto_detect().vendor == "CPU"  # torch_xla on a CPU is no TPU

    def broken() -> str:
        raise RuntimeError("no device could be initialised")

    runtime.device_type = broken  # type: ignore[attr-defined]
    assert CustomHardwareAdapter.auto_detect().vendor == "CPU"


# ---- wrong input


def test_wrong_devices_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    none_of_them(monkeypatch)
    with pytest.raises(ValueError, match="device is 'abacus'; accepted are 'cuda', 'xpu', 'mps', 'xla', 'cpu' and 'tpu'"):
        CustomHardwareAdapter.auto_detect("abacus")
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds none here; it finds 'cpu'"):
        CustomHardwareAdapter.auto_detect("cuda")
    with pytest.raises(ValueError, match="device is 'tpu', but torch finds none here"):
        CustomHardwareAdapter.auto_detect("tpu")
    assert CustomHardwareAdapter.auto_detect(torch.device("cpu")).device == "cpu"
    with pytest.raises(ValueError, match="vendor is 'Acme'; accepted are 'NVIDIA', 'CPU'"):
        CustomHardwareAdapter("cpu", "Acme", "x")


def test_measuring_does_not_import_the_adapter() -> None:
    code = "import sys, kpt_lab, kpt_lab.hardware; print([m for m in sys.modules if m.startswith('kpt_lab.hardware.')])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "adapters" not in printed
    assert "plotly" not in printed
    with pytest.raises(AttributeError, match="has no attribute 'Abacus'"):
        adapters.importlib.import_module("kpt_lab.hardware").Abacus  # noqa: B018


@pytest.mark.gpu
def test_this_gpu_is_detected() -> None:
    found = CustomHardwareAdapter.auto_detect()
    assert found.device == "cuda"
    assert found.name == torch.cuda.get_device_name()
    assert found.target is not None
    assert found.explain()
