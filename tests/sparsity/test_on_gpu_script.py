"""benchmarks/sparsity_on_gpu.py without a GPU: what it explores, which cells it records in which order, and its tables."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fakes
import pytest
import torch

from kpt_lab import records, source
from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.sparsity import layer

PATH = Path(__file__).parents[2] / "benchmarks/sparsity_on_gpu.py"


@pytest.fixture
def script(monkeypatch, tmp_path):
    fakes.install(monkeypatch, lambda name: 2.0 if "dense" in str(name) else 1.0 + getattr(name, "algorithm", 0))
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(PATH.parent))  # as when it is run
    spec = importlib.util.spec_from_file_location("sparsity_on_gpu", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OUT, module.DEVICE, module.SHAPES, module.TOKENS = tmp_path, "cpu", ((64, 96), (128, 64)), (48, 16)
    return module


def test_exploring_goes_on_after_a_failure(script, tmp_path, monkeypatch, capsys):
    plain = torch._cslt_compress
    monkeypatch.setattr(torch, "_cslt_compress", lambda w: plain(w) if w.shape != (64, 128) else fakes._mm(w, w, alg_id=99))
    script.explore(1e9)
    rows = json.loads((tmp_path / "sparsity_explore.json").read_text())["rows"]
    assert len(rows) == 8
    good, bad = ([r for r in rows if (r["in"] == 64) == kind] for kind in (True, False))
    assert all(r["best"] == "algorithm 0" and r["wrong"] == [1] for r in good)
    assert all(fakes.REFUSED in r["errors"]["layer"] for r in bad)
    assert "ERRORS" in capsys.readouterr().out
    remembered = json.loads((tmp_path / "cache/sparse_24.json").read_text())["found"]
    assert len(remembered) == 4


def test_every_cell_is_recorded_once_a_process_first_processes_first(script):
    found = list(script.jobs("all"))
    assert [job.process for job in found] == sorted(job.process for job in found)
    sizes = Counter((job.workload.name, tuple(job.params.items()), job.process) for job in found)
    assert set(sizes.values()) == {1}
    assert len(found) == sum(len(list(script.jobs(part))) for part in ("headline", "few", "rest"))
    processes = Counter(job.cell for job in found)
    assert set(processes.values()) == {1, 6}
    assert len(processes) == len([job for job in found if job.process == 0])
    assert set(Counter(job.cell for job in script.jobs("headline")).values()) == {6}


def test_the_summary_takes_the_best_dense_and_the_worst_dispatch(script, tmp_path, capsys):
    gains = {layer.dense.label: 1.0, layer.dense_autotuned.label: 1.25, layer.searched_bf16.label: 2.5}
    made = []
    for tokens, dispatch in ((16, 1.2), (4096, 2.5), (8192, 2.5)):
        for technique in (layer.dense, layer.dense_autotuned, layer.searched_bf16, layer.dispatch_bf16):
            times = tuple(round(1e6 / gains.get(technique.label, dispatch)) for _ in range(30))
            made.append(
                Trial(
                    layer.forward.name, technique.name, {"tokens": tokens, "in_features": 64, "out_features": 96},
                    technique.knobs, technique.contract, technique.baseline, device="cuda", dtype="bfloat16", cell=str(tokens),
                    metrics={"time": Metric(times[0] / 1e9, "s", "measured")}, samples={"time": times},
                )
            )  # fmt: skip
    records.record(Trials(made), tmp_path / "r.jsonl")
    script.summary(tmp_path / "r.jsonl")
    told = capsys.readouterr().out
    assert "sparsity.layer.forward 2:4 bf16: 2.000x over 2 cells, lowest 2.000x" in told
    assert "dispatch bf16, sparsity.layer.forward: 0.960x at forward 16 x 64 -> 96" in told


def test_a_record_goes_on_where_it_stopped(script, tmp_path, monkeypatch):
    """What the file holds of such a device is not measured again; what it holds of another, of older code, or in part, is."""
    import resumable

    asked, file = [], tmp_path / "layer.jsonl"
    todo = list(script.jobs("headline"))

    def trials(job, **env):
        metric = {"time": Metric(1e-6, "s", "measured")}
        return [
            Trial(
                job.workload.name, technique.label, job.params, device="cpu", dtype="bfloat16", metrics=metric, cell=job.cell,
                process=job.process, samples={"time": (1000,) * 8}, env=here | env,
                source={"workload": source.source_hash(job.workload), "workload_at": "kpt_lab.sparsity.layer:forward"},
            )
            for technique in job.techniques
        ]  # fmt: skip

    here = dict(resumable.environment("cpu"))
    old = [replace(trial, source=trial.source | {"method": -1}) for trial in trials(todo[3])]
    held = [*trials(todo[0], host="elsewhere"), *trials(todo[1], device_name="another"), *trials(todo[2])[1:], *old]
    records.record(Trials(held), file)
    monkeypatch.setattr(resumable, "run_jobs", lambda jobs, **options: asked.extend(jobs))
    script.record(file, "headline", 60.0)
    place = [(job.workload.name, job.params, job.process) for job in asked]
    assert place == [(job.workload.name, job.params, job.process) for job in todo[1:]]


def test_cells_recorded_later_take_the_place_of_earlier_ones(script, tmp_path):
    """A joined file holds each cell once, and every cell of either."""
    import resumable

    def trial(label, tokens, ns, device="a", cell="", **more):
        return Trial(
            "w", label, {"tokens": tokens}, device="cuda", dtype="bfloat16", metrics={"time": Metric(ns / 1e9, "s", "measured")},
            cell=cell or f"c{tokens}", samples={"time": (ns,) * 8}, env={"device_name": device}, **more,
        )  # fmt: skip

    into, file = tmp_path / "r.jsonl", tmp_path / "new.jsonl"
    records.record([trial("x", 16, 10), trial("y", 16, 20), trial("x", 64, 30), trial("x", 16, 40, "b")], into)
    records.record([trial("x", 16, 50), trial("z", 128, 60)], file)
    told = resumable.join(into, [file])
    assert told.endswith("2 Trials of 2 cells came in, 2 went, 2 stay")
    found = [(t.label, t.params["tokens"], t.env["device_name"], t.samples["time"][0]) for t in records.load(into)]
    assert found == [("x", 64, "a", 30), ("x", 16, "b", 40), ("x", 16, "a", 50), ("z", 128, "a", 60)]
    assert sorted(tmp_path.iterdir()) == [file, into]
    with pytest.raises(FileNotFoundError):
        resumable.join(into, [tmp_path / "missing.jsonl"])

    old = {"source": {"method": -1}}
    first = [trial("x", 16, 70, cell="first", **old), trial("peer", 16, 75, cell="first")]
    again, alone = [trial("x", 16, 80), trial("peer", 16, 85)], [trial("x", 256, 90, **old), trial("peer", 256, 95)]
    records.record([*first, *again, *alone], tmp_path / "again.jsonl")
    assert resumable.join(tmp_path / "again.jsonl").endswith("came in, 2 went, 4 stay")
    assert [t.samples["time"][0] for t in records.load(tmp_path / "again.jsonl")] == [80, 85, 90, 95]

    records.record([trial("x", 16, 10, process=1)], into)
    with pytest.raises(ValueError, match=r"holds 2 processes of w \{'tokens': 16\}, the files 1"):
        resumable.join(into, [file])
