"""Public databases against the vendors' print: both values, torch's read from the torch that is installed."""

from __future__ import annotations

import sys

import pytest

from kpt_lab.hardware import disagreements as module
from kpt_lab.hardware.devices import by_name
from kpt_lab.hardware.disagreements import RECORDED, TORCH, Disagreement, disagreements, torch_table

table = pytest.importorskip(TORCH)


def row(device: str, figure: str) -> Disagreement:
    """The installed torch's first disagreement of that device and figure."""
    return next(each for each in torch_table() if (each.device, each.figure) == (device, figure))


def test_at_least_five_rows_of_the_installed_torch_are_wrong() -> None:
    found = torch_table()
    assert len({(each.device, each.figure) for each in found}) >= 5
    assert all(each.database.startswith("torch ") and TORCH in each.where and each.why for each in found)
    assert disagreements() == [*found, *RECORDED]


def test_torch_gives_the_l4_the_bandwidth_of_the_h100() -> None:
    theirs = table._device_mapping["NVIDIA L4"].dram_bw_gbs
    if theirs == 300:
        pytest.skip("this torch has the L4's own bandwidth")
    found = row("l4", "bandwidth")
    assert (found.theirs, found.ours) == (theirs * 1e9, 300e9)
    assert found.why == "that is the bandwidth of h100-sxm"
    assert "l4 bandwidth 3.35e+12, vendor's print 3e+11" in found.text


@pytest.mark.parametrize(
    ("key", "name", "figure"),
    [
        ("NVIDIA L4", "l4", "bfloat16"),
        ("NVIDIA L4", "l4", "int8"),
        ("NVIDIA L4", "l4", "tf32"),
        ("NVIDIA H100", "h100-sxm", "float64"),
    ],
)
def test_torch_takes_sparse_for_dense_and_dense_for_sparse(key: str, name: str, figure: str) -> None:
    info = table._device_mapping[key]
    share = getattr(info, "tops_sparsity_factor", 1)
    tera = next(tops for kind, tops in info.tops.items() if str(kind).removeprefix("torch.") == figure)
    ours = by_name(name).figures[figure].value
    if tera * 1e12 / share == pytest.approx(ours, rel=0.02):
        pytest.skip(f"this torch has {name}'s {figure} right")
    found = row(name, figure)
    assert (found.theirs, found.ours) == (tera * 1e12 / share, ours)
    assert found.theirs == pytest.approx(ours * (2 if name == "l4" else 0.5), rel=0.01)


def test_torch_has_arithmetic_that_the_device_lacks() -> None:
    assert row("mi210", "float8_e5m2").ours is None
    assert row("mi210", "float8_e5m2").why == "CDNA 2 has no float8"
    assert row("mi350x", "float8_e4m3fn").theirs is None
    assert "TF32" in row("mi350x", "tf32").why


def test_torch_finds_nothing_by_the_drivers_name() -> None:
    assert table.lookup_device_info("NVIDIA H100 80GB HBM3") is None
    found = row("h100-sxm", "bandwidth")
    assert (found.theirs, found.ours) == (None, 3.35e12)


def test_rows_that_agree_are_not_listed() -> None:
    assert not [each for each in torch_table() if (each.device, each.figure) == ("a100-sxm4-80gb", "bfloat16")]
    assert not [each for each in torch_table() if (each.device, each.figure) == ("mi300x", "bfloat16")]


def test_recorded_rows_have_both_values_and_a_place() -> None:
    for each in RECORDED:
        assert each.where
        assert each.theirs
        assert each.ours is None or abs(each.theirs / each.ours - 1) > 0.2
    assert next(each for each in RECORDED if each.device == "rtx-5090").ours == 1.792e12


def test_a_torch_without_the_table_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TORCH, None)
    assert torch_table() == []
    assert module.disagreements() == list(RECORDED)
