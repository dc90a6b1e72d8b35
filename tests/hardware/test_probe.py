"""The probe: what it gives, where it keeps it, what it does with a file that it can't read, and the table beside the data sheet."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kpt_lab.core import Cost, Metric, Target
from kpt_lab.hardware import devices, probe, reach, targets
from kpt_lab.hardware.probe import Ceilings, load

THIS = Target(
    "a CPU, 2 threads",
    {"float32": 4e11, "float64": 2e11},
    5e10,
    {
        "float32": "measured on this machine by probe: best was torch.matmul of 512 x 512, 2 threads",
        "float64": "half of float32's, as in vector units; float32: torch.matmul",
        "bandwidth": "measured on this machine by probe: best was a copy of 64 MiB",
    },
    features=frozenset({"avx2"}),
    cache=2.0**20,
)


def ceilings(name: str = "NVIDIA H100 80GB HBM3", **changes: object) -> Ceilings:
    figures = {
        "bfloat16": Metric(742e12, "FLOP/s", "measured", source="torch.matmul of 4096 x 4096"),
        "int8": Metric(1.2e15, "OP/s", "measured", source="torch._int_mm of 8192 x 8192"),
        "bandwidth": Metric(3.03e12, "B/s", "measured", source="a copy that touches 1024 MiB"),
        "bandwidth copy": Metric(3.03e12, "B/s", "measured", source="a copy that touches 1024 MiB"),
        "launch": Metric(4e-6, "s", "measured", source="add_ to one element"),
    }
    traffic = {"copy": {2**22: Metric(6e12, "B/s", "measured"), 2**30: Metric(3.03e12, "B/s", "measured")}}
    made = Ceilings("cuda", name, "2026-11-22T00:00:00Z", figures, traffic, {"tf32": "refused"}, 5e7, env={"torch": "2.11"})
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Probes of an instant, with an empty cache folder."""
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(targets, "this_cpu", lambda *, again=False: THIS)
    monkeypatch.setattr(reach, "_CPU_SIZES", (16,))
    monkeypatch.setattr(reach, "_CPU_TRAFFIC", (2**12, 2**13, 2**14))
    monkeypatch.setattr(reach, "_BUDGET", {"cpu": 1e-4, "cuda": 1e-4})
    return tmp_path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Remember each time that a CPU is really probed."""
    calls: list[str] = []
    real: Callable[[bool], dict] = reach.on_cpu
    monkeypatch.setattr(reach, "on_cpu", lambda again=False: (calls.append("probed"), real(again))[1])
    return calls


def test_a_cpu_is_probed_in_units_that_are_measured_or_derived(small: Path) -> None:
    found = probe.probe("cpu")
    assert {"float32", "float64", "bandwidth", "bandwidth copy", "bandwidth read", "launch", "int8"} <= set(found.figures)
    assert found.figures["float32"] == Metric(4e11, "FLOP/s", "measured", source="torch.matmul of 512 x 512, 2 threads")
    assert found.figures["float64"].provenance == "modelled"
    assert {metric.unit for metric in found.figures.values()} == {"FLOP/s", "OP/s", "B/s", "s"}
    assert all(metric.value > 0 and metric.source for metric in found.figures.values())
    assert set(found.traffic) == {"copy", "read"}
    assert found.figures["bandwidth"].value == max(5e10, *(found.figures[f"bandwidth {way}"].value for way in found.traffic))
    assert [set(of) for of in found.traffic.values()] == [{2**12, 2**13, 2**14}] * 2
    assert found.absent["tf32"] == "a CPU has no such arithmetic"
    assert found.env["torch"] == torch.__version__


def test_a_second_call_reads_the_file_and_another_environment_probes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    first = probe.probe("cpu")
    assert probe.probe("cpu") == first
    assert len(calls) == 1
    real = probe.environment
    monkeypatch.setattr(probe, "environment", lambda device: {**real(device), "torch": "9.9"})
    probe.probe("cpu")
    assert len(calls) == 2
    assert len(list(small.glob("ceilings.cpu.*.json"))) == 2


def test_again_keeps_the_better_of_each_figure(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = probe.probe("cpu")
    better = {**first.figures, "float32": replace(first.figures["float32"], value=9e12)}
    longer = {**better, "launch": replace(first.figures["launch"], value=1e-12)}
    replace(first, figures=longer).save(probe.cache_file("cpu"))
    calls = counted(monkeypatch)
    found = probe.probe("cpu", again=True)
    assert calls == ["probed"]
    assert found.figures["float32"].value == 9e12
    assert found.figures["launch"].value == 1e-12
    assert load(probe.cache_file("cpu")) == found


def test_without_the_cache_nothing_is_read_or_written(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    probe.probe("cpu", cache=False)
    probe.probe("cpu", cache=False)
    assert len(calls) == 2
    assert list(small.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "ceilings", "schema": 99}', '{"kind": "ceilings", "schema": 1}'])
def test_a_file_that_cannot_be_read_is_one_warning_and_replaced(small: Path, text: str) -> None:
    path = probe.cache_file("cpu")
    path.write_text(text)
    with pytest.warns(UserWarning, match="holds no ceilings that can be read .* probed again") as seen:
        found = probe.probe("cpu")
    assert len(seen) == 1
    assert load(path) == found
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe.probe("cpu") == found


def test_a_folder_that_cannot_be_written_is_one_warning(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small / "file").write_text("")
    monkeypatch.setenv("KPT_LAB_CACHE", str(small / "file" / "below"))
    with pytest.warns(UserWarning, match="can't be written .* probes again"):
        assert probe.probe("cpu").figures


def test_ceilings_come_back_from_json(tmp_path: Path) -> None:
    made = ceilings(features=frozenset({"fp8", "2:4"}), memory=8.5e10)
    made.save(tmp_path / "deep" / "probe.json")
    assert load(tmp_path / "deep" / "probe.json") == made
    assert json.loads((tmp_path / "deep" / "probe.json").read_text())["kind"] == "ceilings"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["probe.json"]
    with pytest.raises(ValueError, match="holds no ceilings that can be read"):
        load(__file__)


def test_the_table_says_what_share_of_the_data_sheet_was_reached() -> None:
    made = ceilings()
    sheet = devices.by_name("h100-sxm")
    rows = {row[0]: row[1:] for row in made.rows()}
    assert made.sheet() is sheet
    assert rows["bfloat16"] == ("742 TFLOP/s", "989 TFLOP/s", f"{742e12 / 989.4e12:.0%}", "torch.matmul of 4096 x 4096")
    assert rows["bandwidth"][:3] == ("3.03 TB/s", "3.35 TB/s", "90%")
    assert rows["int8"][:2] == ("1.2 POP/s", "1.98 POP/s")
    assert rows["launch"] == ("4 us", "", "", "add_ to one element")
    assert made.table().splitlines()[0] == "| figure | reached | data sheet | share | how |"
    assert made.traffic_rows() == [("4 MiB", "6 TB/s", ""), ("1024 MiB", "3.03 TB/s", "")]
    assert "no tf32: refused" in repr(made)


def test_without_a_data_sheet_the_reason_is_given() -> None:
    made = ceilings("Voodoo 2")
    assert made.sheet() is None
    assert "No data sheet: no device of the table has the driver name 'Voodoo 2'" in repr(made)
    partition = ceilings("NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert partition.sheet() is None
    assert "is a partition" in partition.unknown()


def test_a_target_of_ceilings_bounds_with_their_sources() -> None:
    found = ceilings().target()
    assert found.name == "NVIDIA H100 80GB HBM3, probed"
    assert set(found.peaks) == {"bfloat16", "int8"}
    bound = found.bound(Cost({"bfloat16": 742e12}, 0))
    assert bound.value == pytest.approx(1.0)
    assert "measured by probe: torch.matmul of 4096 x 4096" in bound.source
    assert found.bound(Cost({}, 3.03e12)).value == pytest.approx(1.0)


def test_a_device_that_is_not_here_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="device is 'tpu'; accepted are 'cpu' and 'cuda'"):
        probe.probe("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no usable CUDA GPU here"):
        probe.probe("cuda")


def test_what_a_device_refuses_has_a_reason() -> None:
    def refuse() -> Callable[[], object]:
        raise RuntimeError("no kernel\nfor this")

    tries = [reach._Try("odd", "torch.odd", f"{n}", 1.0, refuse) for n in (1, 2)]
    tries.append(reach._Try("even", "torch.even", "1", 8.0, lambda: lambda: None))
    found, refused = reach._best(tries, "cpu")
    assert set(found) == {"even"}
    assert refused == {"odd": "torch.odd refused: no kernel for this"}


def test_the_command_writes_a_file(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe.main(["--into", str(small / "out.json")])
    assert load(small / "out.json").device == "cpu"
    assert "bytes touched" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        probe.main(["--device", "abacus"])
    assert "accepted are 'cpu' and 'cuda'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0, "s", "0 s"), (1.76e-6, "s", "1.76 us"), (999.9e9, "B/s", "1 TB/s"), (2e-10, "s", "0.2 ns"), (12.0, "1", "12")],
)
def test_quantities(value: float, unit: str, text: str) -> None:
    assert probe.quantity(Metric(value, unit, "measured")) == text


@pytest.mark.gpu
def test_a_gpu_is_probed_and_its_choice_of_float32_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    before = torch.get_float32_matmul_precision()
    found = probe.probe("cuda")
    assert torch.get_float32_matmul_precision() == before
    assert {"float32", "float64", "float16", "bandwidth", "launch", "launch in a graph"} <= set(found.figures)
    sheet = found.sheet()
    for name in ("float16", "bandwidth"):
        if sheet and name in sheet.figures:
            assert 0.2 < found.figures[name].value / sheet.figures[name].value < 1.15
    assert found.absent.keys().isdisjoint(found.figures)
    assert probe.probe("cuda") == found
