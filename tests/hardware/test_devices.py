"""Devices: every figure has its source, figures agree with each other, and drivers' names lead to the right row."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from kpt_lab.core import Cost, Target
from kpt_lab.hardware import devices, targets
from kpt_lab.hardware.devices import DEVICES, by_name, look_up, target
from kpt_lab.hardware.sheet import Device, Figure, Source, dense, halved

FIGURES = [(device, name, figure) for device in DEVICES for name, figure in device.figures.items()]
GB = 1e9


def ids(value: object) -> str:
    return value.name if isinstance(value, Device) else value if isinstance(value, str) else ""


# The table as a whole


def test_the_table_covers_vendors_and_generations() -> None:
    vendors = {vendor: [d for d in DEVICES if d.vendor == vendor] for vendor in {d.vendor for d in DEVICES}}
    assert set(vendors) == {"NVIDIA", "AMD", "Intel", "Apple", "Google"}
    assert len(DEVICES) >= 24
    nvidia = {d.generation.split()[0] for d in vendors["NVIDIA"]}
    assert nvidia == {"Fermi", "Kepler", "Maxwell", "Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"}
    chips = {d.generation for d in vendors["NVIDIA"]}  # data centre and GeForce chips of one name are generations of their own
    assert {"Ampere GA100", "Ampere GA102", "Blackwell", "Blackwell GB202"} <= chips
    assert len(nvidia) + 2 >= 12


def test_names_are_unique_and_drivers_names_are_shared_only_by_different_memories() -> None:
    names = [device.name for device in DEVICES]
    assert len(names) == len(set(names))
    for a, b in itertools.combinations(DEVICES, 2):
        if set(a.drivers) & set(b.drivers):
            assert a.memory is not None
            assert b.memory is not None
            assert max(a.memory.value, b.memory.value) > 1.5 * min(a.memory.value, b.memory.value)


@pytest.mark.parametrize(("device", "name", "figure"), FIGURES, ids=ids)
def test_every_figure_has_its_source_and_is_quoted(device: Device, name: str, figure: Figure) -> None:
    assert figure.source.title
    assert figure.source.where
    assert figure.source.read.startswith("as ") is not figure.source.original
    metric = figure.metric
    assert (metric.value, metric.provenance) == (figure.value, "quoted")
    assert figure.value > 0
    assert metric.source.startswith(figure.source.title)
    assert f"{figure.number:,.10g}" in metric.source
    assert "/work" not in metric.source


def test_every_number_of_a_row_is_a_figure_or_the_pins() -> None:
    assert {field.name for field in dataclasses.fields(Device)} == {
        *("name", "text", "vendor", "generation", "drivers", "absent", "note"),  # words
        *("peaks", "bandwidth", "memory", "cache"),  # figures
        "pins",
    }
    for device in DEVICES:
        assert all(isinstance(figure, Figure) for figure in device.figures.values())
        assert device.pins is None or device.pins.source.title in device.pins.text


@pytest.mark.parametrize("device", DEVICES, ids=ids)
def test_what_is_missing_is_said(device: Device) -> None:
    for name in ("bandwidth", "memory", "float64", "bfloat16", "float4_e2m1fn_x2"):
        assert bool(device.missing(name)) is (name not in device.figures)
    assert not set(device.absent) & set(device.figures)
    if not device.peaks:
        assert device.absent["peaks"]


# Relations between figures


@pytest.mark.parametrize(("device", "name", "figure"), FIGURES, ids=ids)
def test_dense_is_half_of_sparse(device: Device, name: str, figure: Figure) -> None:
    if figure.sparse is not None:
        assert figure.number == pytest.approx(figure.sparse / 2, rel=0.015)
        assert figure.share == 1
    if figure.because == "with sparsity":
        assert figure.value == figure.number * {"T": 1e12, "P": 1e15}[figure.unit[0]] / 2
        assert name in device.peaks
        assert "float32" not in name
        assert name != "float64"


@pytest.mark.parametrize("device", [device for device in DEVICES if device.pins], ids=ids)
def test_bandwidth_is_within_what_the_pins_give(device: Device) -> None:
    assert device.pins is not None
    assert device.bandwidth is not None
    assert 0.95 * device.pins.value < device.bandwidth.value <= 1.002 * device.pins.value


@pytest.mark.parametrize("device", [d for d in DEVICES if d.vendor in ("NVIDIA", "AMD")], ids=ids)
def test_each_halving_of_the_width_doubles_the_rate(device: Device) -> None:
    rate = {name: figure.value for name, figure in device.peaks.items()}
    for wide, narrow in (("tf32", "float16"), ("float16", "float8_e4m3fn"), ("float8_e4m3fn", "float4_e2m1fn_x2")):
        if wide in rate and narrow in rate:
            # GeForce: float8 is with float32 accumulation, at half rate, and float4 isn't
            more = 4 if narrow.startswith("float4") and "GeForce" in device.text else 2
            assert rate[narrow] == pytest.approx(more * rate[wide], rel=0.03), (wide, narrow)
    if "bfloat16" in rate:
        assert rate["bfloat16"] == rate["float16"]
    if {"float32", "float64"} <= rate.keys():
        assert rate["float64"] <= rate["float32"]


def test_a_die_is_half_of_its_module() -> None:
    for die, module in (("mi250x-gcd", "mi250x"), ("max-1550-stack", "max-1550")):
        whole = by_name(module).figures
        for name, figure in by_name(die).figures.items():
            assert figure.value == whole[name].value / 2
            assert "divided by 2" in figure.text


# What records use


@pytest.mark.parametrize("known", [targets.h100_sxm, targets.h200_sxm], ids=lambda known: known.name)
def test_the_rows_of_recorded_targets_are_theirs(known: Target) -> None:
    row = by_name(known.name)
    assert {name: figure.value for name, figure in row.peaks.items()} == pytest.approx(dict(known.peaks))
    assert row.bandwidth is not None
    assert row.bandwidth.value == pytest.approx(known.bandwidth)
    assert row.cache is not None
    assert row.cache.value == known.cache
    assert all(figure.source.title == known.source[name] for name, figure in row.figures.items() if name != "memory")
    assert target(row.drivers[0]) is known
    assert target(known.name) is known
    assert targets.find("cuda", row.drivers[0]) is known


def test_the_recorded_look_ups_know_no_further_device() -> None:
    assert targets.find("cuda", "NVIDIA A100-SXM4-80GB") is None
    assert targets.by_name("a100-sxm4-80gb") is None


# Look-up


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("A100-SXM4-40GB", "a100-sxm4-40gb"),  # drivers of that time left the vendor out
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("nvidia geforce  rtx 5090", "rtx-5090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Intel(R) Arc(TM) B580 Graphics", "arc-b580"),
        ("Apple M4 Max", "m4-max"),
        ("TPU v5 lite", "tpu-v5e"),
        ("mi250x-gcd", "mi250x-gcd"),
    ],
)
def test_drivers_names_lead_to_rows(driver: str, name: str) -> None:
    assert look_up(driver).name == name


@pytest.mark.parametrize("device", DEVICES, ids=ids)
def test_every_drivers_name_is_found_with_its_memory(device: Device) -> None:
    for driver in device.drivers:
        memory = device.memory.value if device.memory else None
        assert look_up(driver, memory) is device


def test_memory_tells_devices_of_one_name_apart() -> None:
    assert look_up("Tesla M40", 11.9 * 2**30).name == "m40-12gb"
    assert look_up("Tesla M40", 23.9 * 2**30).name == "m40-24gb"
    assert look_up("AMD Instinct MI250X", 63.98 * 2**30).name == "mi250x-gcd"
    assert look_up("AMD Instinct MI250X", 128 * 2**30).name == "mi250x"
    with pytest.raises(ValueError, match=r"'Tesla M40' may be 'm40-12gb' or 'm40-24gb': pass memory in bytes"):
        look_up("Tesla M40")


def test_a_memory_that_does_not_fit_is_refused() -> None:
    assert look_up("NVIDIA H100 80GB HBM3", 79.1 * 2**30).name == "h100-sxm"
    with pytest.raises(ValueError, match=r"'NVIDIA L4' with 12 GB of memory fits no device of the table \('l4'\)"):
        look_up("NVIDIA L4", 12 * GB)


def test_a_partition_is_refused() -> None:
    with pytest.raises(ValueError, match="is a partition, and the data sheets' figures are for whole devices"):
        look_up("NVIDIA A100-SXM4-40GB MIG 1g.5gb")


@pytest.mark.parametrize(
    ("name", "near"), [("NVIDIA A10G", "NVIDIA A10"), ("NVIDIA H100", "NVIDIA H100 NVL"), ("AMD Instinct MI300A", "MI300X")]
)
def test_a_near_miss_is_named_and_not_taken(name: str, near: str) -> None:
    with pytest.raises(ValueError, match="name one of them only if it is the device") as error:
        look_up(name)
    assert near in str(error.value)
    with pytest.raises(ValueError, match="no device is named 'h100'; near are"):
        by_name("h100")


def test_an_unknown_name_is_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^no device of the table has the driver name 'Voodoo 2'; none is near; .* lists all$"
    ):
        look_up("Voodoo 2")


# Targets


@pytest.mark.parametrize("device", [d for d in DEVICES if d.peaks and d.bandwidth], ids=ids)
def test_a_row_makes_a_target_with_quoted_sources(device: Device) -> None:
    found = device.target()
    assert found.name == device.name
    assert set(found.source) == {name for name in device.figures if name != "memory"}
    assert all(line.endswith("(quoted)") for line in found.source.values())
    kind = next(iter(device.peaks))
    bound = found.bound(Cost({kind: found.peaks[kind]}, 0))
    assert bound.value == pytest.approx(1.0)


def test_a_row_without_peaks_can_not_bound() -> None:
    with pytest.raises(ValueError, match="'m4-max' can't bound a time: Apple prints no peak rate"):
        target("Apple M4 Max")
    with pytest.raises(ValueError, match="'m2090' can't bound a time: NVIDIA's own print of the bandwidth"):
        target("Tesla M2090")


def test_features_follow_the_figures() -> None:
    assert target("NVIDIA L4").features == {"2:4", "fp8"}
    assert target("NVIDIA A100-SXM4-80GB").features == {"2:4"}
    assert target("AMD Instinct MI250X", 64 * GB).features == frozenset()


# Figures


def test_a_figures_arithmetic() -> None:
    source = Source("Sheet", "page", "as someone quotes it")
    assert dense(source, {"half": 2.0})["bfloat16"].value == 2e12
    rates = halved(source, {"int8": 3.0}, "P")
    assert rates["int8"].value == 1.5e15
    assert rates["int8"].text == "Sheet: 3 POP/s with sparsity, so divided by 2; as someone quotes it"
    with pytest.raises(ValueError, match="unit is 'bit/s'; accepted are"):
        Figure(1.0, "bit/s", source)
    with pytest.raises(ValueError, match="because must say why"):
        Figure(1.0, "GB/s", source, share=2)


def test_nothing_that_records_reach_reaches_the_table() -> None:
    assert not [name for name, value in vars(targets).items() if "devices" in name or isinstance(value, Device)]
    assert devices.targets is targets
    assert not re.search(r"hardware(\.| import )(devices|sheet|nvidia|amd|others)", Path(targets.__file__).read_text())
