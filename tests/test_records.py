"""Records come back as they were, survive killed and competing writers, and say what is wrong with a line."""

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kpt_lab import baselines, records, source
from kpt_lab.core import Metric, Trial, Trials, Workload
from kpt_lab.environment import environment
from kpt_lab.records import CorruptRecord, NewerSchema, from_dict, load, newest, record, status_of, statuses, to_dict

ENV = {"host": "h1", "torch": "2.13", "before": {"sm_mhz": 1980.0, "throttle": "none"}, "after": {"sm_mhz": 1755.5}}


def trial(technique="eager", *, value=1e-5, at="2026-01-02T03:04:05Z", **fields):
    given = {
        "params": {"rows": 7, "cols": 3},
        "metrics": {"time": Metric(value, "s", "measured", value * 0.9, value / 3)},
        "samples": {"time": (10, 20, 30)},
        "cell": "c1",
        "env": ENV,
    }
    return Trial("softmax.forward", technique, at=at, **{**given, **fields})


def write_lines(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))


# ---- round trip

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.tuples(inner, inner) | st.dictionaries(st.text("ab", max_size=2), inner), max_leaves=6
)
mappings = st.dictionaries(st.text(max_size=5), values, max_size=3)
metrics = st.builds(
    Metric, st.floats(allow_nan=False), st.sampled_from(["s", "1", "B"]), st.just("measured"), st.none() | st.floats(allow_nan=False),
    st.none() | st.floats(allow_nan=False), st.text(max_size=5),
)  # fmt: skip
trials_strategy = st.builds(
    Trial, workload=st.text(max_size=5), technique=st.text(max_size=5), params=mappings, knobs=mappings,
    contract=st.sampled_from(["same", "lossy", "random"]), baseline=st.booleans(), target=st.sampled_from(["", "same", "h100"]),
    device=st.sampled_from(["cpu", "cuda"]), seed=st.integers(), at=st.text(max_size=5),
    status=st.sampled_from(["ok", "wrong", "timeout"]), advice=st.text(max_size=9), metrics=st.dictionaries(st.text(max_size=5), metrics, max_size=3),
    samples=st.dictionaries(st.text(max_size=5), st.lists(st.integers(0, 2**62), max_size=5).map(tuple), max_size=2),
    cell=st.text(max_size=4), process=st.integers(0, 9), chosen=mappings, source=mappings, env=mappings,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=60)
@given(st.lists(trials_strategy, max_size=4))
def test_what_is_recorded_comes_back_equal(tmp_path, made):
    path = tmp_path / "round.jsonl"
    path.unlink(missing_ok=True)
    record(made, path)
    assert (load(path) if made else Trials()) == Trials(made)
    assert [from_dict(json.loads(json.dumps(to_dict(t)))) for t in made] == made


def test_lists_come_back_as_tuples_and_objects_as_names():
    made = trial(params={"shape": [1, [2]], "dtype": torch.bfloat16, "device": torch.device("cpu"), "act": torch.nn.GELU})
    back = from_dict(to_dict(made))
    assert dict(back.params) == {
        "shape": (1, (2,)), "dtype": "bfloat16", "device": "cpu", "act": "torch.nn.modules.activation.GELU",
    }  # fmt: skip
    assert from_dict(to_dict(trial(chosen={"n": torch.tensor(3)}))).chosen["n"] == 3


def test_not_finite_numbers_come_back_and_the_file_stays_json(tmp_path):
    made = trial(metrics={"x": Metric(math.inf, "s", "measured", -math.inf, None)}, chosen={"y": math.nan})
    record(made, tmp_path / "a.jsonl")

    def refuse(name):
        raise AssertionError(name)

    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (back,) = load(tmp_path / "a.jsonl")
    assert back.metrics == made.metrics
    assert math.isnan(back.chosen["y"])


@pytest.mark.parametrize("bad", [{"k": object()}, {"k": {1: 2}}, {"k": [b"bytes"]}])
def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(TypeError, match="params"):
        record([trial(), trial(params=bad)], tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_text_that_is_not_unicode_can_still_be_recorded(tmp_path):
    record(trial(advice="a file named \udcff"), tmp_path / "a.jsonl")
    assert load(tmp_path / "a.jsonl")[0].advice == "a file named \udcff"


def test_the_format_is_the_one_described(tmp_path):
    path = tmp_path / "deep" / "er" / "a.jsonl"
    record([trial(), trial("b")], path)
    record(trial("c", env={**ENV, "before": {"sm_mhz": 1.0}}), path)
    record(trial("d", env={**ENV, "torch": "2.14"}), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["env", "trial", "trial", "trial", "env", "trial"]
    assert {line["schema"] for line in lines} == {1}
    assert lines[1]["env"] == lines[3]["env"] == lines[0]["id"] != lines[4]["id"] == lines[5]["env"]
    assert lines[1]["samples"] == {"time": [10, 20, 30]}
    assert lines[1]["metrics"]["time"] == {
        "value": 1e-05,
        "unit": "s",
        "provenance": "measured",
        "low": 9e-06,
        "high": 1e-05 / 3,
    }
    assert "knobs" not in lines[1]
    assert load(path)[2].env["before"] == {"sm_mhz": 1.0}


# ---- where to read


def test_several_files_and_folders(tmp_path):
    for name in ("b", "a"):
        record(trial(name), tmp_path / f"{name}.jsonl")
    (tmp_path / "other.txt").write_text("not a record")
    assert [t.technique for t in load(tmp_path)] == ["a", "b"]
    assert [t.technique for t in load([tmp_path / "b.jsonl", str(tmp_path / "a.jsonl")])] == ["b", "a"]
    assert len(load([tmp_path, tmp_path / "a.jsonl"])) == 2


def test_nothing_to_read_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"holds no \*.jsonl"):
        load(tmp_path)
    with pytest.raises(IsADirectoryError, match="give a file"):
        record(trial(), tmp_path)


def test_recording_nothing_makes_no_file(tmp_path):
    record([], tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


# ---- damage


def test_unknown_keys_are_ignored(tmp_path):
    write_lines(tmp_path / "a.jsonl", {**to_dict(trial()), "colour": "red", "metrics": {"time": {"value": 1.5, "unit": "s", "provenance": "measured", "mode": 1}}})  # fmt: skip
    assert load(tmp_path / "a.jsonl")[0].time == 1.5


def test_a_newer_schema_is_refused_with_one_sentence(tmp_path):
    write_lines(tmp_path / "a.jsonl", to_dict(trial()), {"kind": "trial", "schema": 2})
    with pytest.raises(NewerSchema, match=r"a\.jsonl line 2 has schema 2; this kpt_lab reads up to 1"):
        load(tmp_path / "a.jsonl")


CORRUPT = {
    "not json": b"{{{",
    "half a line": b'{"kind":"trial","schema":1,"wor',
    "not an object": b"[1, 2]",
    "bytes": b"\xff\xfe\x00",
    "no kind": {"schema": 1},
    "no schema": {**to_dict(trial("x")), "schema": None},
    "unknown kind": {"kind": "poem", "schema": 1},
    "a field is missing": {"kind": "trial", "schema": 1, "workload": "w"},
    "unknown status": {**to_dict(trial("x")), "status": "excellent"},
    "a number is text": {**to_dict(trial("x")), "metrics": {"time": {"value": "fast", "unit": "s", "provenance": "measured"}}},
    "metrics are a number": {**to_dict(trial("x")), "metrics": 3},
}


@pytest.mark.parametrize("what", CORRUPT)
def test_a_corrupt_line_in_the_middle_is_reported_and_the_others_load(tmp_path, what):
    write_lines(tmp_path / "a.jsonl", to_dict(trial("a")), CORRUPT[what], to_dict(trial("b")), b"")
    with pytest.warns(CorruptRecord, match=r"a\.jsonl line 2 .*skipped") as caught:
        found = load(tmp_path / "a.jsonl")
    assert len(caught) == 1
    assert [t.technique for t in found] == ["a", "b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.data())
def test_a_file_cut_anywhere_loses_only_its_last_line_and_can_be_continued(tmp_path, data):
    path = tmp_path / "cut.jsonl"
    path.unlink(missing_ok=True)
    made = [trial(name) for name in "abc"]
    for t in made:
        record(t, path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(1, len(whole)))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].split(b"\n")
    complete = sum(b'"kind":"trial"' in line for line in whole[: cut + 1].split(b"\n")[:-1])  # a lost newline loses nothing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(path) if lines else Trials()
    assert list(found) == made[:complete]
    assert len(caught) <= 1
    record(trial("d"), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert list(load(path)) == [*made[:complete], trial("d")]
    assert len(caught) <= 1


def test_a_last_line_without_newline_is_read(tmp_path):
    record(trial(), tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes().rstrip(b"\n"))
    assert load(tmp_path / "a.jsonl") == (trial(),)


def test_a_torn_environment_is_written_again(tmp_path):
    path = tmp_path / "a.jsonl"
    record(trial(), path)
    path.write_bytes(path.read_bytes().split(b"\n")[0][:-5])
    record(trial(), path)
    with pytest.warns(CorruptRecord, match="line 1"):
        assert load(path) == (trial(),)


def test_a_lost_environment_is_reported_once_and_the_trials_load(tmp_path):
    path = tmp_path / "a.jsonl"
    record([trial("a"), trial("b")], path)
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])
    with pytest.warns(CorruptRecord, match="names the environment") as caught:
        found = load(path)
    assert len(caught) == 1
    assert [t.host for t in found] == ["", ""]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    record(trial(), path)
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(records.os, "write", lambda fd, data: write(fd, data[:20]))
    with pytest.raises(OSError, match="is the disk full"):
        record(trial("b"), path)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_without_locks_recording_says_so_and_reading_works(tmp_path, monkeypatch):
    record(trial(), tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="needs POSIX file locks"):
        record(trial(), tmp_path / "a.jsonl")
    assert len(load(tmp_path / "a.jsonl")) == 1


# ---- several writers

WRITER = """
import sys
from kpt_lab.core import Metric, Trial
from kpt_lab.records import record
name, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
for i in range(count):
    metrics = {"time": Metric(1e-6 * i, "s", "measured")}
    record(Trial("w", name, {"i": i}, metrics=metrics, samples={"time": tuple(range(i % 50))}, env={"host": name}), path)
    print(i, flush=True)
"""


def writer(name, count, path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, name, str(count), str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_four_writers_tear_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    children = [writer(f"writer{i}", 60, path) for i in range(4)]
    for child in children:
        child.communicate()
        assert child.returncode == 0
    found = load(path)
    for i in range(4):
        mine = found.where(technique=f"writer{i}")
        assert [t.params["i"] for t in mine] == list(range(60))
        assert {t.host for t in mine} == {f"writer{i}"}


def test_a_killed_writer_loses_nothing_that_it_had_written(tmp_path):
    path = tmp_path / "a.jsonl"
    child = writer("killed", 10**6, path)
    said = ""
    while said.strip() != "25":
        said = child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0].split()
    last = int(rest[-1]) if rest else 25
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load(path)
    assert [t.params["i"] for t in found][: last + 1] == list(range(last + 1))
    assert len(found) <= last + 2
    assert len(caught) <= 1


# ---- newest


def at(second):
    return f"2026-01-02T03:04:{second:02d}Z"


def test_newest_replaces_a_cell_that_was_measured_again():
    old = [trial(name, at=at(1)) for name in ("eager", "fast")]
    new = [trial(name, at=at(9)) for name in ("eager", "fast")]
    assert list(newest([*new, *old])) == new
    assert list(newest(old + [replace(t, cell="c2") for t in new])) == [replace(t, cell="c2") for t in new]


def test_newest_keeps_a_cell_whole_while_one_of_its_techniques_was_not_measured_again():
    old = [trial(name, at=at(1), cell="c1") for name in ("eager", "fast", "other")]
    new = [trial(name, at=at(9), cell="c2") for name in ("eager", "fast")]
    assert list(newest(old + new)) == old + new


@pytest.mark.parametrize(
    "other",
    [{"process": 1}, {"seed": 1}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"params": {"rows": 8}}, {"knobs": {"bits": 4}}, {"env": {"host": "h2"}}],
)  # fmt: skip
def test_newest_keeps_what_differs(other):
    assert len(newest([trial(at=at(1)), trial(at=at(2), cell="c2", **other)])) == 2


def test_newest_of_trials_without_a_cell_goes_by_target_and_publication():
    modelled = [trial(cell="", device="", env={}, target=name, at=at(i)) for i, name in enumerate(["h100", "h200", "h100"])]
    assert list(newest(modelled)) == modelled[1:]
    quoted = [trial(cell="", device="", env={}, source={"publication": p}) for p in "ab"]
    assert len(newest(quoted)) == 2


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.sampled_from(["c1", "c2"]), st.integers(0, 1)), max_size=12)
)
def test_newest_is_a_subsequence_that_holds_every_identity_and_changes_nothing_when_repeated(rows):
    made = [trial(name, at=at(second), cell=cell, process=process) for name, second, cell, process in rows]
    found = newest(made)
    remaining = iter(made)
    assert all(any(t is m for m in remaining) for t in found)
    assert {(t.label, t.process) for t in found} == {(t.label, t.process) for t in made}
    assert newest(found) == found
    for label, process in {(t.label, t.process) for t in made}:
        assert max(t.at for t in found.where(label=label, process=process)) == max(
            t.at for t in made if (t.label, t.process) == (label, process)
        )


# ---- standing

WORKLOAD = Workload("here", lambda *, device, dtype, seed: None)


def measured(technique=baselines.eager, **changes):
    sources = {
        "technique": source.source_hash(technique), "technique_at": source.locate(technique),
        "workload": source.source_hash(baselines.compiled), "workload_at": source.locate(baselines.compiled),
        "method": records._method(), **changes.pop("source", {}),
    }  # fmt: skip
    env = {**environment("cpu"), **changes.pop("env", {})}
    return Trial("w", technique.name, knobs=technique.knobs, source=sources, env=env, **changes)


def test_a_trial_made_now_stands_also_after_reading_it_back(tmp_path):
    assert status_of(measured()) == ""
    assert status_of(measured(baselines.compiled(mode="reduce-overhead"))) == ""
    assert status_of(measured(baselines.compiled >> baselines.cuda_graph)) == ""
    record(measured(), tmp_path / "a.jsonl")
    assert [status_of(t) for t in load(tmp_path / "a.jsonl")] == [""]


@pytest.mark.parametrize("changed", [{"technique": "0" * 12}, {"workload": "0" * 12}, {"method": -1}])
def test_a_changed_source_or_method_is_stale(changed):
    assert status_of(measured(source=changed)) == "stale"


@pytest.mark.parametrize(
    "changed",
    [{"technique_at": ""}, {"workload_at": "nowhere:x"}, {"technique_at": "kpt_lab.baselines:gone"}, {"workload": ""}],
)
def test_what_cannot_be_found_is_of_unknown_source(changed):
    assert status_of(measured(source=changed)) == "unknown source"


def test_a_trial_without_a_technique_of_its_own_goes_by_its_workload():
    copy = measured()
    kept = {key: value for key, value in copy.source.items() if not key.startswith("technique")}
    assert status_of(replace(copy, source=kept)) == ""
    assert status_of(replace(copy, source={**kept, "workload": "0" * 12})) == "stale"


@pytest.mark.parametrize("name", ["torch", "triton", "driver"])
def test_another_version_on_this_host_is_another_environment_elsewhere_it_is_not(name):
    assert status_of(measured(env={name: "0.1"})) == "another environment"
    assert status_of(measured(env={name: "0.1", "host": "elsewhere"})) == ""


def test_live_objects_are_compared_where_nothing_can_be_found_by_place():
    unknown = measured(source={"workload_at": "", "workload": source.source_hash(WORKLOAD)})
    assert status_of(unknown) == "unknown source"
    assert status_of(unknown, workload=WORKLOAD) == ""
    assert status_of(unknown, workload=WORKLOAD, technique=baselines.cuda_graph) == "stale"


def test_quoted_trials_have_no_source_to_go_stale():
    assert status_of(trial(source={"publication": "a paper"}, env={})) == ""


def test_statuses_agree_with_status_of():
    made = [measured(), measured(source={"method": -1}), measured(source={"technique_at": ""}), measured(baselines.cuda_graph)]
    assert statuses(made) == [status_of(t) for t in made] == ["", "stale", "unknown source", ""]


def test_an_edited_technique_is_stale(tmp_path, monkeypatch):
    text = "from kpt_lab.core import Technique\ndef apply(fn, args):\n    return fn\nmine = Technique('mine', apply)\n"
    (tmp_path / "my_technique.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = source.resolve("my_technique:mine")
    try:
        recorded = measured(mine)
        assert recorded.source["technique_at"] == "my_technique:mine"
        assert status_of(recorded) == ""
        (tmp_path / "my_technique.py").write_text(text.replace("return fn", "return lambda x: fn(x)"))
        assert status_of(recorded) == "stale"
        (tmp_path / "my_technique.py").write_text("# only a comment\n" + text)
        assert status_of(recorded) == ""
    finally:
        del sys.modules["my_technique"]
