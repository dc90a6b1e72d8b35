"""Columns say what the Trials say: every ratio is kpt_lab.ratios' own, nothing that isn't finite passes, and they stay short."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kpt_lab as kpt
from kpt_lab import cli, ratios
from kpt_lab.asked import of_module
from kpt_lab.columns import STALE, UNKNOWN, columns, ends
from kpt_lab.conditions import number
from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.environment import environment
from kpt_lab.hardware import targets
from kpt_lab.kernels import softmax
from kpt_lab.pieces import BEST
from kpt_lab.runner import hashes

RESULTS = Path(__file__).parents[1] / "notebooks/phase1/results"
BLOCKS = 40
SOURCE = "bytes over bandwidth of h100-sxm (data sheet)"


def trial(technique, cols=1024, time=1e-4, *, spread=0.0, process=0, status="ok", **fields):
    """A Trial as measure makes it: `spread` alternates the samples, so that ratios get an interval."""
    traffic = 16384.0 * cols
    samples = {"time": tuple(round(time * (1 + spread * (-1) ** (i + i // 7)) * 1e9) for i in range(BLOCKS))}
    metrics = {
        "time": Metric(time, "s", "measured", time * 0.99, time * 1.01),
        "bound": Metric(traffic / 3.35e12, "s", "modelled", source=SOURCE),
        "error": Metric(1e-3, "1", "measured"),
        "noise_floor": Metric(1.0, "1", "measured", 0.99, 1.02),
        "copy_time": Metric(3e-5, "s", "measured"),
        **fields.pop("metrics", {}),
    }
    given = {
        "workload": "softmax.forward",
        "params": {"rows": 4096, "cols": cols},
        "dtype": "bfloat16",
        "device": "cuda",
        "target": "h100-sxm",
        "baseline": technique in ("eager", "torch.compile"),
        "metrics": metrics if status == "ok" else {},
        "samples": samples if status == "ok" else {},
        "cell": str(cols),
        "at": "2026-11-22T10:00:00Z",
        "chosen": {"flops": {"float32": 5.0 * 4096 * cols}, "bytes": traffic, "cache": "cold"},
        "source": {"workload_at": "kpt_lab.kernels.softmax:forward"},
        "env": {"host": "abcdef", "device_name": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "driver": "580"},
    }
    return Trial(technique=technique, process=process, status=status, **{**given, **fields})


def whole(data, length):
    """Columns with each single value spread over all entries, as the front end reads them."""
    if isinstance(data, dict):
        return {name: whole(column, length) for name, column in data.items()}
    return data if isinstance(data, list) else [data] * length


def opened(data):
    """(cells, rows) with every column whole."""
    return whole(data["cells"], len(data["cells"]["workload"])), whole(data["rows"], len(data["rows"]["cell"]))


def said(data, index):
    return data["texts"][index] if index >= 0 else ""


PAIR = Trials([trial("eager", time=2e-4), trial("ours", time=1e-4, spread=0.02)])


def test_one_cell_in_full():
    data = columns(PAIR, title="a title")
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert {
        name: data[name] for name in ("schema", "title", "workloads", "techniques", "dtypes", "targets", "params", "overs")
    } == {
        "schema": 1,
        "title": "a title",
        "workloads": ["softmax.forward"],
        "techniques": ["eager", "ours"],
        "dtypes": ["bfloat16"],
        "targets": ["h100-sxm"],
        "params": ["rows", "cols"],
        "overs": [BEST, "eager"],
    }
    assert data["metrics"] == {"time": {"unit": "s"}, "error": {"unit": "1"}}
    assert data["environments"] == [
        {
            "text": "NVIDIA H100 80GB HBM3, device time; torch 2.11.0, driver 580.",
            "device": "NVIDIA H100 80GB HBM3",
            "elsewhere": "",
        }
    ]
    cells, rows = opened(data)
    assert cells["params"] == {"rows": [4096], "cols": [1024]}
    (bound,) = cells["bound"]
    assert bound == number(16384 * 1024 / 3.35e12)
    assert (cells["copy"], cells["floor_low"], cells["floor_high"]) == ([3e-5], [0.99], [1.02])
    assert (cells["flops"], cells["bytes"], cells["at"]) == ([20972000], [16777000], ["2026-11-22"])
    texts = {name: said(data, cells[name][0]) for name in ("bound_source", "arithmetic", "cache")}
    assert texts == {"bound_source": f"modelled: {SOURCE}", "arithmetic": "float32", "cache": "cold"}
    assert rows["cell"] == [0, 0]
    assert rows["technique"] == [0, 1]
    assert (rows["processes"], rows["blocks"], rows["baseline"]) == ([1, 1], [40, 40], [1, 0])
    assert rows["metrics"]["time"] == {
        "value": [2e-4, 1e-4],
        "low": [1.98e-4, 9.9e-5],
        "high": [2.02e-4, 1.01e-4],
        "provenance": [0, 0],
    }
    assert rows["ratios"][BEST] == rows["ratios"]["eager"]
    found = rows["ratios"][BEST]
    assert (found["value"][0], found["low"][0], found["high"][0], found["over"]) == (1, 1, 1, [0, 0])
    assert [data["verdicts"][i] for i in found["verdict"]] == ["SAME", "FASTER"]


def test_a_column_of_one_value_is_that_value():
    data = columns(PAIR)
    assert data["rows"]["status"] == 0
    assert data["rows"]["cell"] == [0, 0]
    assert data["cells"]["workload"] == [0]
    assert data["cells"]["params"]["rows"] == 4096


def check_ratios(trials, data):
    """Every number of every ratio against kpt_lab.ratios, found by cell, label and over."""
    cells, rows = opened(data)
    for over in data["overs"]:
        expected = {
            (s.cell.workload, s.cell.dtype, frozenset(s.cell.params), s.label): s for s in ratios.speedups(trials, over)
        }
        found = rows["ratios"][over]
        assert len(rows["cell"]) == len(expected)
        for i, (cell, technique) in enumerate(zip(rows["cell"], rows["technique"], strict=True)):
            params = {name: column[cell] for name, column in cells["params"].items() if column[cell] is not None}
            key = data["workloads"][cells["workload"][cell]], data["dtypes"][cells["dtype"][cell]]
            s = expected[(*key, frozenset(params.items()), data["techniques"][technique])]
            numbers = [found[name][i] for name in ("value", "low", "high")]
            if s.ratio is None:
                assert numbers == [None] * 3
                assert found["verdict"][i] == -1
                assert said(data, found["reason"][i]) == s.reason
            else:
                assert numbers == [number(s.ratio.value), *ends(s.ratio)]
                assert all(
                    b is None or b == pytest.approx(a, rel=5.1e-4)
                    for a, b in zip((s.ratio.low, s.ratio.high), numbers[1:], strict=True)
                )
                assert numbers[1] <= numbers[0] <= (numbers[2] or math.inf)
                assert data["verdicts"][found["verdict"][i]] == s.ratio.verdict
                assert data["techniques"][found["over"][i]] == s.over[0].label
                assert said(data, found["reason"][i]) == s.ratio.note


def test_every_recorded_ratio_is_the_one_that_ratios_forms():
    trials = kpt.load(RESULTS)
    data = columns(trials)
    assert {BEST, "eager", "liger"} <= set(data["overs"])
    assert "copy" not in data["techniques"]
    check_ratios(trials, data)


KINDS = {
    "measured": {},
    "noisy": {"spread": 0.05},
    "elsewhere": {"cell": "another run"},
    "failed": {"status": "failed", "advice": "broke"},
    "bare": {"samples": {}},
}
RECIPES = st.lists(
    st.tuples(
        st.sampled_from(["eager", "torch.compile", "a", "b"]),
        st.sampled_from([256, 512]),
        st.sampled_from(sorted(KINDS)),
        st.integers(1, 50),
        st.integers(0, 6),
    ),
    max_size=10,
)


def made(recipe):
    return Trials(
        trial(name, cols, 1e-5 * n, process=process, at=f"2026-11-22T10:00:{i:02}Z", **KINDS[kind])
        for i, (name, cols, kind, n, process) in enumerate(recipe)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES)
def test_any_trials_become_json_with_the_ratios_that_the_rules_allow(recipe):
    trials = made(recipe)
    data = columns(trials)
    json.dumps(data, allow_nan=False)
    check_ratios(trials, data)


@given(RECIPES, st.randoms(use_true_random=False))
def test_the_order_of_the_trials_does_not_matter(recipe, rng):
    trials = list(made(recipe))
    first = columns(trials)
    rng.shuffle(trials)
    again = columns(trials)
    assert {**again, "texts": 0, "rows": 0, "cells": 0} == {**first, "texts": 0, "rows": 0, "cells": 0}
    for name in ("cell", "technique", "status"):
        assert again["rows"][name] == first["rows"][name]
    check_ratios(trials, again)


def test_several_processes_are_one_row_with_the_span_of_their_medians():
    trials = Trials(
        trial(name, time=base * (1 + p / 100), process=p) for p in range(6) for name, base in (("eager", 2e-4), ("ours", 1e-4))
    )
    data = columns(trials)
    _, rows = opened(data)
    time = rows["metrics"]["time"]
    assert rows["processes"] == [6, 6]
    assert rows["blocks"] == [6 * BLOCKS] * 2
    assert (time["value"][1], time["low"][1], time["high"][1]) == (1.025e-4, 1e-4, 1.05e-4)
    assert opened(data)[0]["command"] != [-1]
    assert said(data, data["cells"]["command"]).endswith("--processes 6")


def test_what_is_not_finite_is_null_and_an_unbounded_interval_is_open_above():
    few = {"samples": {"time": (100_000, 100_100, 99_900)}}
    odd = {"metrics": {"error": Metric(math.nan, "1", "measured", -math.inf, math.inf)}}
    trials = Trials([trial("eager", **few), trial("ours", **few, **odd)])
    data = columns(trials)
    _, rows = opened(data)
    found, error = rows["ratios"][BEST], rows["metrics"]["error"]
    assert found["low"] == [0, 0]
    assert found["high"] == [None, None]
    assert [data["verdicts"][i] for i in found["verdict"]] == ["UNCLEAR", "UNCLEAR"]
    assert [error[name][1] for name in ("value", "low", "high")] == [None, None, None]
    json.dumps(data, allow_nan=False)


def test_a_technique_that_failed_keeps_its_row_with_the_reason_and_no_number():
    trials = Trials(
        [trial("eager"), trial("ours", status="unsupported", advice="a row is\ntoo long", process=1), trial("ours")]
    )
    data = columns(trials)
    _, rows = opened(data)
    assert data["statuses"][rows["status"][1]] == "unsupported"
    assert said(data, rows["advice"][1]) == "a row is too long"
    assert rows["metrics"]["time"]["value"] == [1e-4, None]
    assert rows["metrics"]["time"]["provenance"] == [0, -1]
    assert "unsupported" in said(data, rows["ratios"][BEST]["reason"][1])


def test_the_copy_is_a_yardstick_and_never_a_row():
    data = columns(Trials([*PAIR, trial("copy", time=5e-5)]))
    cells, _ = opened(data)
    assert data["techniques"] == ["eager", "ours"]
    assert cells["predicted"]["eager"]["copy"] == [number(kpt.speedup(trial("copy", time=5e-5), PAIR[0]).value)] == [4]
    assert columns([trial("copy")])["rows"]["cell"] == []


def test_the_prediction_is_the_bounds_and_says_so():
    cells, rows = opened(data := columns(PAIR))
    limit = cells["predicted"][BEST]
    assert limit["value"] == [number(2e-4 / (16384 * 1024 / 3.35e12))]
    assert said(data, limit["text"][0]).startswith(
        "At most this, if nothing is faster than the bound (modelled: bytes over bandwidth"
    )
    assert said(data, limit["text"][0]).endswith("may stay in a cache, and then the bound can be beaten")
    large = columns(Trials([trial("eager", cols=65536)]))
    assert not said(large, opened(large)[0]["predicted"][BEST]["text"][0]).endswith("beaten")
    assert rows["predicted"][BEST] == {"value": [None, None], "text": [-1, -1]}


def test_a_technique_with_other_arithmetic_has_a_bound_and_a_modelled_prediction_of_its_own():
    half = Metric(16384 * 1024 / 6.7e12, "s", "modelled", source="FLOPs over peak of h100-sxm (data sheet)")
    ours = trial("ours", metrics={"bound": half})
    cells, rows = opened(data := columns(Trials([trial("eager"), ours])))
    assert cells["bound"] == [number(16384 * 1024 / 3.35e12)]
    assert rows["metrics"]["bound"]["value"] == [None, number(half.value)]
    assert rows["predicted"]["eager"]["value"] == [None, number(kpt.compare(trial("eager"), ours, "bound").value)] == [None, 2]
    assert "modelled" in said(data, rows["predicted"]["eager"]["text"][1])
    assert "other arithmetic has a bound of its own, and may pass it" in said(data, cells["predicted"]["eager"]["text"][0])
    alone = columns(PAIR)
    assert "other arithmetic" not in said(alone, opened(alone)[0]["predicted"]["eager"]["text"][0])


def test_modelled_and_quoted_trials_have_rows_without_a_machine():
    modelled = kpt.predict(softmax.forward, softmax.eager, targets.h200_sxm, rows=4096, cols=1024, dtype="bfloat16")
    quoted = kpt.quote(
        softmax.forward, softmax.eager, "a chip", {"time": Metric(1e-3, "s", "quoted", source="p. 3")}, "A paper"
    )
    data = columns([*PAIR, modelled, quoted])
    assert set(data["targets"]) == {"h100-sxm", "h200-sxm, not measured", "a chip, not measured"}
    texts = {e["device"]: e["text"] for e in data["environments"]}
    assert texts["h200-sxm"] == "Modelled for h200-sxm; nothing was measured."
    assert texts["a chip"] == "Quoted from A paper."
    cells, _ = opened(data)
    named = {data["targets"][t]: c for t, c in zip(cells["target"], cells["ceiling"], strict=True)}
    names = [ceiling["name"] for ceiling in data["ceilings"]]
    assert names == ["h100-sxm", "h200-sxm", "a chip"][: len(names)]
    assert names[named["h200-sxm, not measured"]] == "h200-sxm"
    assert said(data, cells["command"][cells["target"].index(data["targets"].index("a chip, not measured"))]) == ""


def test_stale_and_unknown_code_are_told_apart():
    fresh = hashes(softmax.forward, softmax.triton)
    ours = {"technique": "kpt triton", "source": fresh}
    data = columns(
        [trial(**{**ours, "technique": "a"}), trial("b", source={**fresh, "technique": "0" * 12}), trial("c", source={})]
    )
    _, rows = opened(data)
    assert [said(data, i) for i in rows["stale"]] == ["", STALE, ""]
    assert [said(data, i) for i in rows["unknown"]] == ["", "", UNKNOWN]


def test_this_very_host_with_other_versions_says_what_changed():
    here = environment("cpu")
    ours = {"device": "cpu", "target": "", "env": {**here, "torch": "2.0.0"}}
    (found,) = columns([trial("eager", **ours)])["environments"]
    assert found["elsewhere"] == f"Recorded on this machine with torch 2.0.0; it now has torch {here['torch']}."
    for env in (here, {**here, "host": "another", "torch": "2.0.0"}):
        (found,) = columns([trial("eager", **{**ours, "env": env})])["environments"]
        assert found["elsewhere"] == ""


def test_a_cells_command_is_one_that_the_command_line_takes():
    data = columns(kpt.load(RESULTS))
    cells, _ = opened(data)
    for i, index in enumerate(cells["command"]):
        program, *words = shlex.split(said(data, index))
        asked = cli._parser().parse_args(words)
        workload, techniques = of_module(asked.target, asked.step, asked.device)
        assert program == "kpt-lab"
        assert workload.name == data["workloads"][cells["workload"][i]]
        assert {t.label for t in techniques} >= {"eager", "kpt triton"}
        params = {name: column[i] for name, column in cells["params"].items() if column[i] is not None}
        assert cli.parse_grid(asked.grid) == {name: [value] for name, value in params.items()}
        assert (asked.device, asked.dtype) == ("cuda", data["dtypes"][cells["dtype"][i]])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"source": {"workload_at": "my_file:model"}}, "kpt-lab sweep my_file.py:model --grid rows=4096 cols=1024 --device cuda --dtype bfloat16"),
        ({"device": "cpu", "dtype": "float32", "chosen": {"cache": "warm"}, "seed": 3}, "kpt-lab sweep kernels.softmax:forward --grid rows=4096 cols=1024 --seed 3"),
        ({"params": {"rows": "a b"}}, "kpt-lab sweep kernels.softmax:forward --grid 'rows=a b' --device cuda --dtype bfloat16"),
        ({"params": {}}, "kpt-lab sweep kernels.softmax:forward --device cuda --dtype bfloat16"),
        ({"params": {"sizes": (1, 2)}}, ""),
        ({"params": {"rows": "1,2"}}, ""),
        ({"chosen": {"cache": "warm"}}, ""),
        ({"source": {"workload_at": "__main__:model"}}, ""),
        ({"source": {"workload_at": "kpt_lab.models:workload(fn)"}}, ""),
        ({"source": {}}, ""),
    ],
)  # fmt: skip
def test_the_command_or_nothing_where_the_command_line_cannot_say_it(fields, text):
    data = columns([trial("eager", **fields)])
    assert said(data, opened(data)[0]["command"][0]) == text


def test_ceilings_of_a_probed_machine_are_what_its_bounds_imply():
    name = "Some CPU, 2 threads"
    by_bytes = Metric(2e-3, "s", "modelled", source=f"bytes over bandwidth of {name} (a probe)")
    by_flops = Metric(4e-3, "s", "modelled", source=f"FLOPs over peak of {name} (a probe)")
    trials = [trial("eager", target=name, device="cpu", metrics={"bound": by_bytes})]
    trials += [trial("eager", cols=2048, target=name, device="cpu", metrics={"bound": by_flops})]
    probed = columns(trials)["ceilings"][-1]
    assert probed == {
        "name": name,
        "text": name,
        "peaks": {"float32": number(5 * 4096 * 2048 / 4e-3)},
        "bandwidth": number(16384 * 1024 / 2e-3),
        "source": by_bytes.source,
        "provenance": "measured",
    }
    sheet = columns(PAIR)["ceilings"][0]
    assert (sheet["name"], sheet["bandwidth"], sheet["provenance"]) == ("h100-sxm", 3.35e12, "quoted")
    assert targets.h100_sxm.source["bandwidth"] in sheet["source"]


def test_columns_never_probe_this_machine(monkeypatch):
    def refuse(**_):
        raise AssertionError("probed")

    monkeypatch.setattr(targets, "this_cpu", refuse)
    columns([trial("eager", device="cpu", target=targets._cpu_name())])


def test_overs_are_those_that_were_asked_for_or_a_sentence():
    assert columns(PAIR, overs=["ours"])["overs"] == ["ours"]
    with pytest.raises(ValueError, match="overs holds 'theirs'; accepted are best baseline, eager, ours"):
        columns(PAIR, overs=["theirs"])
    with pytest.raises(ValueError, match="trials holds a str; accepted are Trials"):
        columns("results")


def test_no_trials_are_empty_columns():
    data = columns(Trials())
    assert data["rows"]["cell"] == data["cells"]["workload"] == data["workloads"] == []
    assert data["overs"] == [BEST]
    assert data["rows"]["ratios"][BEST]["value"] == []
    assert columns(Trials(), overs=["to come"])["overs"] == ["to come"]


def test_known_cells_are_not_formed_again(monkeypatch):
    kept = {}
    more = trial("eager", cols=2048)
    first = columns(PAIR, kept=kept)
    seen = []
    real = ratios.speedups
    monkeypatch.setattr("kpt_lab.pieces.speedups", lambda held, over: seen.append((held, over)) or real(held, over))
    assert columns(PAIR, kept=kept) == first
    assert seen == []
    assert columns([*PAIR, more], kept=kept) == columns([*PAIR, more])
    assert seen[0][0] == Trials([more])
    columns(Trials([more]), kept=kept)
    assert len(kept) == 1


def test_ten_thousand_trials_stay_under_two_megabytes():
    path = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic", path)
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    data = columns(synthetic.many_trials(10_000))
    assert len(data["rows"]["cell"]) == 10_000
    assert len(json.dumps(data, separators=(",", ":"), allow_nan=False)) < 2_000_000


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_keep_five_digits(value):
    found = number(value)
    if not math.isfinite(value):
        assert found is None
    else:
        assert found == float(f"{value:.5g}")
        assert json.loads(json.dumps(found)) == found
