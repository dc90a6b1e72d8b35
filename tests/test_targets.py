"""Targets: bounds against hand-computed values, look-ups, and the CPU probe with a clock of our own."""

from __future__ import annotations

import pytest
import torch

from kpt_lab.core import Cost, Target
from kpt_lab.hardware import targets

TOY = Target(
    "toy",
    peaks={"float32": 1e12, "bfloat16": 4e12},
    bandwidth=1e9,
    source={"float32": "sheet a", "bfloat16": "sheet b", "bandwidth": "sheet c"},
)


@pytest.fixture(autouse=True)
def no_probe_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_known", {})


def fake_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Every step takes `seconds`; the number of calls is counted in the list's only entry."""
    calls = [0]

    def best_time(step, *, repeats: int, device: str) -> float:
        assert device == "cpu"
        assert repeats >= 1
        calls[0] += 1
        step()
        return seconds

    monkeypatch.setattr(targets, "best_time", best_time)
    monkeypatch.setattr(targets, "_SIZES", (4, 8))
    monkeypatch.setattr(targets, "_BUFFER", (4096, 4096))
    return calls


@pytest.mark.parametrize(
    ("flops", "traffic", "seconds", "source"),
    [
        ({"float32": 2e12}, 1e9, 2.0, "sheet a"),  # arithmetic: 2 s against 1 s
        ({"float32": 1e11}, 1e9, 1.0, "sheet c"),  # memory: 0.1 s against 1 s
        ({"float32": 1e12, "bfloat16": 4e12}, 0.0, 2.0, "sheet a"),  # 1 s and 1 s after one another
        ({}, 5e8, 0.5, "sheet c"),
        ({"float64": 0.0}, 1e9, 1.0, "sheet c"),  # no work of an unknown type is no work
    ],
)
def test_bound_is_the_larger_of_arithmetic_and_memory(flops: dict, traffic: float, seconds: float, source: str) -> None:
    bound = TOY.bound(Cost(flops, traffic))
    assert bound.value == pytest.approx(seconds, rel=1e-12)
    assert (bound.unit, bound.provenance) == ("s", "modelled")
    assert source in bound.source
    assert "toy" in bound.source


def test_bounds_of_an_h100_by_hand() -> None:
    softmax = Cost({"float32": 5 * 16384 * 4096}, bytes=2 * 2 * 16384 * 4096)  # bf16 in and out
    assert targets.h100_sxm.bound(softmax).value == pytest.approx(268435456 / 3.35e12, rel=1e-12)
    n = 8192
    matmul = Cost({"float8_e4m3fn": 2 * n**3}, bytes=4 * n * n)
    assert targets.h100_sxm.bound(matmul).value == pytest.approx(0.5556e-3, rel=1e-3)
    assert targets.h100_sxm.bound(Cost({"bfloat16": 2 * n**3}, 0)).value == pytest.approx(1.1113e-3, rel=1e-3)


def test_unknown_arithmetic_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"toy.*no peak for float64.*float32, bfloat16"):
        TOY.bound(Cost({"float64": 1.0}, 1.0))


@pytest.mark.parametrize("missing", ["float32", "bandwidth"])
def test_a_figure_without_a_source_is_refused(missing: str) -> None:
    source = {name: text for name, text in TOY.source.items() if name != missing}
    with pytest.raises(ValueError, match=rf"'toy' gives no source for {missing}"):
        Target("toy", TOY.peaks, TOY.bandwidth, source)


@pytest.mark.parametrize("target", [targets.h100_sxm, targets.h200_sxm], ids=lambda t: t.name)
def test_known_targets_are_dense_and_consistent(target: Target) -> None:
    peaks = target.peaks
    assert set(target.source) == {*peaks, "bandwidth", "cache"}
    assert all("NVIDIA" in text or "GH100" in text for text in target.source.values())
    # one SM does 4096 bf16 FLOP a cycle: the dense rate is that of 132 SMs at 1.83 GHz; sparsity would double it
    assert peaks["bfloat16"] == pytest.approx(132 * 4096 * 1.83e9, rel=1e-3)
    assert peaks["float32"] == pytest.approx(132 * 128 * 2 * 1.98e9, rel=1e-3)
    assert peaks["float8_e4m3fn"] == pytest.approx(2 * peaks["bfloat16"], rel=1e-3)
    assert peaks["tf32"] == pytest.approx(peaks["bfloat16"] / 2, rel=1e-3)
    assert {"wgmma", "tma", "2:4", "fp8"} <= target.features


def test_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, 1e-3)
    assert targets.find("cuda", "NVIDIA H100 80GB HBM3") is targets.h100_sxm
    assert targets.find("cuda:3", "NVIDIA H200") is targets.h200_sxm
    assert targets.find("cuda", "NVIDIA GeForce GTX 750") is None
    assert targets.find("meta") is None
    assert targets.by_name("h100-sxm") is targets.h100_sxm
    assert targets.by_name("no such device") is None
    cpu = targets.find("cpu")
    assert cpu is not None
    assert targets.by_name("cpu") is cpu
    assert targets.by_name(cpu.name) is cpu


def test_cuda_is_looked_up_by_the_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", {"cuda:1": "NVIDIA H200"}.__getitem__)
    assert targets.find("cuda:1") is targets.h200_sxm


def test_cuda_without_a_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device is 'cuda', but torch finds no CUDA device here"):
        targets.find("cuda")


def test_the_probe_keeps_the_best_and_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "last_level_cache", lambda: (1024.0, "given"))
    calls = fake_clock(monkeypatch, 1e-3)
    cpu = targets.this_cpu()
    assert cpu.peaks["float32"] == pytest.approx(2 * 8**3 / 1e-3)  # the larger product: equal times, more work
    assert cpu.peaks["float64"] == cpu.peaks["float32"]  # measured, and above half of float32's
    assert cpu.bandwidth == pytest.approx(2 * 4096 / 1e-3)  # a copy reads and writes
    assert (cpu.cache, cpu.source["cache"]) == (1024.0, "given")
    assert all("measured on this machine by probe" in cpu.source[kind] for kind in (*cpu.peaks, "bandwidth"))
    assert "8 x 8" in cpu.source["float32"]
    assert "copy" in cpu.source["bandwidth"]
    before = calls[0]
    assert targets.this_cpu() is cpu
    assert calls[0] == before


def test_probing_again_keeps_the_higher_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_clock(monkeypatch, 1e-3)
    busy = targets.this_cpu()
    fake_clock(monkeypatch, 5e-4)
    quiet = targets.this_cpu(again=True)
    assert quiet.bandwidth == pytest.approx(2 * busy.bandwidth)
    assert quiet.peaks["float32"] == pytest.approx(2 * busy.peaks["float32"])
    fake_clock(monkeypatch, 1.0)
    assert targets.this_cpu(again=True) == quiet
    assert targets.this_cpu() == quiet


def test_a_dtype_without_kernels_gets_no_figure() -> None:
    def refuse() -> None:
        raise RuntimeError("not implemented")

    found = targets._ceilings([targets._Candidate("bfloat16", "x", "1 x 1", 1.0, refuse)])
    assert found == {}


def test_float64_is_at_least_half_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"float32": (8.0, "a"), "float64": (1.0, "b"), "bandwidth": (1.0, "c")}
    monkeypatch.setattr(targets, "_ceilings", lambda candidates: found)
    cpu = targets._probe(2)
    assert cpu.peaks == {"float32": 8.0, "float64": 4.0}
    assert "half of float32's" in cpu.source["float64"]


def test_cache_instances_are_counted_once(tmp_path) -> None:
    def index(cpu: int, i: int, level: int, shared: str, size: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{i}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("shared_cpu_list", shared), ("size", size)):
            (folder / name).write_text(f"{text}\n")

    for cpu in range(4):
        index(cpu, 0, 1, str(cpu), "48K")
        index(cpu, 3, 3, "0-1" if cpu < 2 else "2-3", "16384K")
    assert targets._linux_cache(tmp_path) == 2 * 16 * 2**20
    (tmp_path / "cpu4" / "cache" / "index0").mkdir(parents=True)  # unreadable: left out
    assert targets._linux_cache(tmp_path) == 2 * 16 * 2**20
    assert targets._linux_cache(tmp_path / "nowhere") == 0


def test_an_unknown_cache_is_zero_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(targets, "_CACHES", str(tmp_path))
    monkeypatch.setattr(targets.sys, "platform", "plan9")
    size, source = targets.last_level_cache()
    assert size == 0
    assert "unknown" in source
