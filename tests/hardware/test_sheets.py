"""The site's hardware page: every device and every source on it, numbers that the table holds, both values of a disagreement."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kpt_lab.hardware.devices import DEVICES
from kpt_lab.hardware.disagreements import disagreements
from kpt_lab.site.build import ledger_text
from kpt_lab.site.sheets import HALVED, PARTS, VENDORS, sheets

PAGE = Path(__file__).parents[2] / "docs/hardware.md"


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_page_shows_all_parts_and_each_device_once() -> None:
    assert re.findall(r"^```\{kpt-ledger\} (\S+)$", PAGE.read_text(), re.MULTILINE) == [
        *(part for part in PARTS if part.startswith("devices")),
        "disagreements",
        "device-sources",
    ]
    shown = [row[0] for vendor in VENDORS for row in cells(sheets(f"devices-{vendor.lower()}"))[2:]]
    assert shown == [f"{d.text}, `{d.name}`" for vendor in VENDORS for d in DEVICES if d.vendor == vendor]
    assert len(shown) == len(DEVICES)


def test_each_row_cites_the_sources_of_its_figures() -> None:
    listed = sheets("device-sources").splitlines()
    assert [int(line.split(".")[0]) for line in listed] == list(range(1, len(listed) + 1))
    for vendor in VENDORS:
        for row in cells(sheets(f"devices-{vendor.lower()}"))[2:]:
            device = next(d for d in DEVICES if row[0].endswith(f"`{d.name}`"))
            cited = [listed[int(number) - 1] for number in row[-1].split(", ")]
            for figure in device.figures.values():
                assert any(figure.source.title in line and figure.source.read in line for line in cited), (device.name, figure)


def test_numbers_are_the_tables_and_halves_are_marked() -> None:
    table = cells(sheets("devices-nvidia"))
    row = dict(zip(table[0], next(row for row in table if "`h100-sxm`" in row[0]), strict=True))
    assert (row["float64"], row["16 bit"], row["bandwidth"], row["memory"]) == ("66.9", "989.4", "3350", "80")
    l4 = dict(zip(table[0], next(row for row in table if "`l4`" in row[0]), strict=True))
    assert (l4["16 bit"], l4["bandwidth"]) == (f"121\u00a0{HALVED}", "300")


def test_disagreements_show_both_values() -> None:
    rows = cells(sheets("disagreements"))[2:]
    assert len(rows) == len(disagreements()) >= 5
    assert any("`rtx-5090`" in row[1] and row[3] != row[4] for row in rows)
    assert all(row[3] and row[4] and row[5] for row in rows)


def test_the_directive_knows_the_parts(tmp_path: Path) -> None:
    assert ledger_text("devices-apple", tmp_path) == sheets("devices-apple")
    with pytest.raises(ValueError, match="part is 'devices-acme'; accepted are 'devices-nvidia'"):
        sheets("devices-acme")
