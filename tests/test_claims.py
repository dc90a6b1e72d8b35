"""Figures in prose: planted ones are found, innocent sentences pass, roles read the records, the ledger judges by its Trials.

Trials are made by hand; nothing here is measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from kpt_lab import claims, cli
from kpt_lab.claims import figures, prose, query
from kpt_lab.core import Metric, Trial, Trials
from kpt_lab.records import record

ROOT = Path(__file__).parents[1]

PLANTED = [
    "Our kernel is 4.2x faster than eager.",
    "It is 1.5-fold quicker.",
    "The kernel is twice as fast.",
    "It halves memory.",
    "It needs 40% less.",
    "A call takes 3 ms.",
    "It reaches 2.4 TB/s.",
    "The model has 99.1% accuracy.",
    "A step costs 12 mJ.",
    "That gives x2.",
    "That gives 2× over eager.",
    "It runs 1.5 times as fast.",
    "A gain of 1.5 times was seen.",
    "It is three times faster.",
    "Throughput doubles.",
    "Ten-fold speedup.",
    "It's a tenfold improvement.",
    "A speedup of 3 was seen.",
    "Speedup: 2.7",
    "It cuts the time in half.",
    "It is two orders of magnitude faster.",
    "Thirty percent less memory is used.",
    "It is 20 % faster.",
    "Accuracy of 0.991 is reached.",
    "Perplexity falls to 12.3 after it.",
    "The error is 3e-5.",
    "Training takes 3 hours.",
    "It takes 12.5 s here.",
    "It needs twelve seconds.",
    "It does 1200 tokens/s.",
    "It does 3,000 tokens per second.",
    "It reaches 700 TFLOPS.",
    "It reaches 650 TFLOP/s.",
    "Memory peaks at 12.5 GB.",
    "It uses 300 MB instead of 900 MB.",
    "It draws 350 W.",
    "It reaches 92% of the bound.",
    "It comes within 5% of peak bandwidth.",
    "Up to 6.1x in production.",
    "It is 10X.",
    "2–4x faster.",
    "It lies between 1.8 and 2.5x.",
    "It is faster by a factor of 3.",
    "Half the memory of eager.",
    "It needs a third less memory.",
    "**4.2**x faster",
    "It is `4.2x` faster.",
    "It is $4.2\\times$ faster.",
    "It is 4.2&times; faster.",
    "It takes a tenth of the time.",
    "Energy falls by 35%.",
    "It saves 45 percent.",
    "It is 1.8 to 2.5 times the speed.",
    "The loss rises by 0.3 percentage points in accuracy.",
    "It gives 2.1 speedup.",
    "We measured 4.2x; theirs is 3x (quoted from Dao 2022).",
    "It is at least 2x faster.",
    "It is more than twice as fast.",
    "It is over 30% faster.",
    "1.3x",
    "It ran in 812 µs.",
    "A 1.25x speedup",
    "one and a half times faster",
    "<b>4.2x</b> faster",
    "![4.2x faster](plot.png)",
    "[4.2x faster](page.md)",
    "> It is 4.2x faster.",
    "It is 4.2&nbsp;x faster.",
    "It is 4.2 × faster.",
    "The step time is 1.2e-3 s.",
    "Each image takes 40 ms to classify.",
    "One GPU serves 200 requests per second.",
    "It is a third faster.",
    "The run took two minutes and ten seconds.",
    "Peak memory drops from 80 to 45 GB.",
    "It doubles the throughput.",
    "Latency halves.",
    "The gain is 15 percent.",
    "Roughly 6× over eager, the best baseline.",
    "It is 3 times quicker than before.",
    "It was measured at 1.5 TFLOPS.",
    "It needs 0.8 pJ per operation, says nobody.",
    "They report an F1 of 0.93.",
    "Half as slow as eager.",
    "It reaches 4.2x (quoted from ).",
    "It comes near 80 percent of the roofline.",
    "It needs a quarter of the time.",
    "A sixfold gain.",
    "Latency: 12ms",
    "It's at 3.35TB/s.",
    "It makes 1.3 × 10^3 tokens/s.",
    "A 5-point drop in accuracy.",
    "An error rate of 3.2%.",
    "0.2 pJ/MAC",
    "45 TOPS/W",
    "It renders at 120 fps.",
    "60 frames per second",
    "A throughput of 5000 was seen.",
    "It needs 1/3 of the memory.",
    "It needs ½ the memory.",
    "It speeds softmax up by 40%.",
    "It accelerates by a factor of 3.",
    "It gives x1.5.",
    "It is 4,2x faster.",
    "a speedup of about 3",
    "98.7 accuracy",
    "99.1 % top-1",
    "You must see this: it is 4.2x faster.",
    "A 4x GPU throughput.",
    "It is `4.2x faster than eager`.",
    "It is faster.[^1]\n\n[^1]: By 4.2x.",
    "We got 40% here.",
    "```{raw} html\n<p>It is 4.2x faster</p>\n```",
    "Memory went from 80 GB to 52 GB.",
    "It is 87 % of peak",
    "Ours took 5 minutes.",
    "It cut the loss to 2.31.",
    "Softmax: 181 µs vs 290 µs.",
    "1.6x-2x",
    "2 to 3 times faster",
    "speedup was 3",
    "an 8x improvement",
    "It wins by 12 %.",
    "10 percent slower",
    "Its footprint is 3 GB.",
    "Model flops utilisation of 54%.",
    "With 60 tokens per joule.",
    "5 times less energy",
    "uses five times less energy",
    "reduces latency fourfold",
    "is now three times as fast",
    "gets us half the latency",
    "fifty-percent savings",
]

INNOCENT = [
    "Each notebook runs in under 60 s.",
    "At most 2% of the accuracy may be lost.",
    "It stores weights in 8 bits.",
    "Pass `--budget 4` for more.",
    "Inputs of 16384 x 512 were used.",
    "A matrix of 16384 × 512 values.",
    "A 4x4 matrix.",
    "The 1x line is drawn.",
    "The whole interval lies above 1x.",
    "The verdict is SAME when the interval lies within 2%.",
    "The 95% interval of the speedup.",
    "Looks at the 99% level.",
    "It needs at least six fresh processes.",
    "The time budget is 10 s per cell.",
    "It has a budget of 10 s.",
    "It waits for 5 seconds.",
    "The H100 has more.",
    "Recorded on 2026-11-22 with torch 2.11.0.",
    "CUDA 12.6 and Python 3.11 are faster to install.",
    "It ran 3 times.",
    "Each was measured five times.",
    "2:4 sparsity.",
    "See figure 3 and table 2 for the speedup.",
    "A file stays under 5 MB.",
    "An 80 GB card.",
    "It works on x86-64.",
    "Use 4x H100.",
    "Section 7.1 explains the interval.",
    "It multiplies twice for everybody else.",
    "An eighth of the rows are no blend.",
    "30 of 30 cheating runs caught.",
    "Caught unchanged: 3 of 6.",
    "50% sparsity is faster.",
    "Called different in 62 to 91% of runs in a fixed order.",
    "The kernel must be at least 2x faster to be kept.",
    "The page is 390 px wide.",
    "Drop 10% of the rows.",
    "A speedup needs 6 processes.",
    "A list of 2 speedups",
    "It runs for 30 seconds, then stops.",
    "Half of the rows are skipped.",
    "5-fold cross-validation.",
    "It stops compiling after 8 shapes.",
    "The 1990s were slower.",
    "float32 and bfloat16 are faster than float64.",
    "Compare 1.0 and 2.0.",
    "A time limit of 3 minutes.",
    "It takes a minute.",
    "Their kernel is 4.2x faster (quoted from Dao 2022, table 3).",
    "The roadmap claims 6.3x, from 50 to 8 ms (quoted from [the roadmap](x.md)).",
    "It takes 16 bytes per element.",
    "Line length is 128.",
    "no function over 10 lines, a set-up cell of at most 8 lines",
    "one in three",
    "A second call reads it back.",
    "`y = 2x` is fine",
    "Python 3.11 or newer takes less memory.",
    "$y = 2x$ costs less",
    "```\nIt is 4.2x faster.\n```",
    "    It is 4.2x faster.\n",
    "<!-- 4.2x faster -->",
    "See [the table](https://example.org/4.2x-faster-100ms).",
    "1. Count again.\n2. Is it faster?",
    "```{code-block} text\n4.2x faster\n```",
    "- A list:\n\n      indented code is 4.2x faster",
    "Version 2.0 is faster than version 1.9.",
    "It must finish within 100 ms.",
    "Seeds 0 to 4 were used in 5 runs.",
    "The interval holds the median in 97% of cases.",
    "The block size is 1024 and the number of warps 8.",
    "It loses at most 2% accuracy.",
    "A PCIe x16 slot.",
    "The page is at most 2 MB.",
    "Its latency is measured after 10 warm-up calls.",
    "The 8-bit format has 4 exponent bits.",
    "The threshold is 20%.",
    "An interval of 60 s passes between looks, a pause.",
    "Take 5% of the rows.",
    "A table of 5 rows.",
    "It must be at least 2x faster.",
    "The limit is 2 GB.",
    "Keep it below 2%.",
    "SAME within 2%, else UNCLEAR.",
    "The 95% confidence interval is wide.",
    "At 50% sparsity nothing changes.",
    "Every second call is checked.",
    "A second is a long time.",
    "The first second counts.",
    "A file under 300 lines.",
    "Phase 1 has 3 notebooks.",
    "It runs on 8 GPUs.",
    "It has 132 SMs.",
    "A GPU with 80 GB.",
    "Width 390 px.",
    "1x",
    "below 1x",
    "Level 0.95",
    "three kinds of memory",
    "two baselines",
    "The best of 20 variants.",
    "Two of three runs were slower.",
    "One process is exploratory.",
    "Six processes make a headline.",
    "It takes three arguments.",
    "The pass takes two inputs.",
    "float8 has 3 mantissa bits.",
    "The 2:4 pattern saves memory.",
    "Half of the weights are zero.",
    "It doubles as a test.",
    "The time is rounded to 3 digits.",
    "A factor of safety.",
    "It has a memory of its own.",
    "Chapter 2 is about speed.",
    "See section 3.2 for the time.",
    "Issue #12 is slow.",
    "torch 2.12 is faster.",
    "9 of 10 tests passed.",
    "A 3-layer network.",
    "A batch of 32.",
    "Sequence length 4096.",
    "It drops 5 of 6 rows.",
    "Rows of 64 kB each.",
]


def found(text: str) -> list[str]:
    return [figure.text for sentence in prose.read(text).sentences for figure in figures.find(sentence)[0]]


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_figure_is_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize("text", INNOCENT)
def test_an_innocent_sentence_passes(text: str) -> None:
    assert found(text) == []


def test_a_figure_is_named_whole_and_once() -> None:
    assert found("From 1.8 to 2.5x faster, 40% less memory.") == ["1.8 to 2.5x", "40%"]


def test_numbers_under_the_heading_of_a_result_are_found() -> None:
    table = "| op | rows | time (ms) | speedup |\n|---|---|---|---|\n| softmax | 4096 | 3.2 | 4.1 |\n| gelu | 7 | - | `code` |"
    assert found(table) == ["3.2", "4.1"]


def test_a_quotation_covers_its_own_clause_only() -> None:
    assert found("Theirs is 4.2x faster, 24 ms a layer (quoted from Dao 2022, table 3).") == []
    assert found("We reach 5x, but theirs is 4.2x faster (quoted from Dao 2022).") == ["5x"]
    assert found("Theirs is 4.2x faster (quoted from Dao 2022) and ours 5x.") == ["5x"]
    assert found("Theirs is 4.2x faster. (quoted from Dao 2022)") == ["4.2x"]
    assert found("Theirs is 4.2x faster, says [Dao](https://arxiv.org/abs/2205.14135).") == ["4.2x"]
    assert found("Theirs is 4.2x faster (quoted from [Dao](https://arxiv.org/abs/2205.14135)).") == []


# ---- whole files


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder in ("notebooks/phase1/results", "kpt_lab", "docs", "benchmarks/recorded"):
        (tmp_path / folder).mkdir(parents=True)
    record(
        Trials(six("eager", 2.0, baseline=True, drift=0.01) + six("fused", 1.0)), tmp_path / "notebooks/phase1/results/op.jsonl"
    )
    (tmp_path / "benchmarks/recorded/team.json").write_text(
        json.dumps({
            "device": "cpu", "at": "2026-01-02T00:00:00", "A/A": {"largest": 0.0125},
            "cheats": [{"name": "a", "escape": "", "speedup": 1.5}, {"name": "b", "escape": "ok", "speedup": 2.25}],
        })
    )  # fmt: skip
    return tmp_path


def six(
    name: str,
    microseconds: float,
    *,
    processes: int = 6,
    workload: str = "op",
    rows: int = 4,
    memory: float = 0,
    drift: float = 0,
    **fields,
):
    """Trials of one technique in several processes, each slower than the one before by `drift`, a share."""
    made = []
    for process in range(processes):
        ns = round(microseconds * 1000 * (1 + drift * process))
        metrics = {"time": Metric(ns / 1e9, "s", "measured"), "bound": Metric(5e-7, "s", "modelled", source="a data sheet")}
        if memory:
            metrics["memory.peak"] = Metric(memory, "B", "measured")
        jitter = tuple(ns + (i % 3) for i in range(40))
        made.append(
            Trial(workload, name, params={"rows": rows}, metrics=metrics, samples={"time": jitter}, cell="c", process=process,
                  at="2026-01-02T00:00:00Z", env={"host": "h", "device_name": "a device"}, **fields)
        )  # fmt: skip
    return Trials(made)


def test_a_failure_names_file_line_and_sentence(repository: Path) -> None:
    (repository / "README.md").write_text("# Title\n\nFirst line,\nthen it is 4.2x faster.\n")
    (repository / "docs/page.md").write_text("It takes\n3 ms.\n")
    cells = [
        {"cell_type": "code", "source": "x", "outputs": []},
        {"cell_type": "markdown", "source": ["Text.\n", "\n", "It is 3x."]},
    ]
    (repository / "notebooks/n.ipynb").write_text(json.dumps({"cells": cells}))
    report = claims.check(repository)
    readme, docs, notebook = report.failures
    assert readme.startswith("README.md:4: '4.2x' (ratio) in 'First line, then it is 4.2x faster.'")
    assert docs.startswith("docs/page.md:2: '3 ms'")
    assert "{trial}" in docs
    assert notebook.startswith("notebooks/n.ipynb: cell 2 line 3: '3x'")


def test_roles_are_counted_and_their_mistakes_told(repository: Path) -> None:
    (repository / "docs/page.md").write_text(
        "It is {trial}`op rows=4 technique=fused` faster, theirs {quoted}`3x <Dao 2022>`.\n\n"
        "{recorded}`benchmarks/recorded/team.json#cheats count` cheats.\n\n{trial}`op rows=5 technique=fused`\n\n{quoted}`3x`\n"
    )
    report = claims.check(repository)
    assert (report.generated, report.quoted) == (2, 1)
    missing, bare = report.failures
    assert missing.startswith("docs/page.md:5: {trial}: no recorded Trial")
    assert "'rows' is 4 there" in missing
    assert "FIGURE <SOURCE>" in bare


def test_a_role_outside_of_docs_shows_as_its_own_text(repository: Path) -> None:
    (repository / "README.md").write_text("It is {trial}`op rows=4 technique=fused` faster.")
    assert "shows as its own text" in claims.check(repository).failures[0]


def test_a_table_between_markers_must_be_the_generated_one(repository: Path) -> None:
    page = repository / "README.md"
    page.write_text("<!-- trials:begin -->\n| op | 9.9x [9.9, 9.9] |\n<!-- trials:end -->\n")
    assert "python -m kpt_lab.tables" in claims.check(repository).failures[0]
    from kpt_lab.tables import headline_table, insert, recorded

    page.write_text(insert(page.read_text(), headline_table(recorded(repository / "notebooks/phase1/results"))))
    report = claims.check(repository)
    assert (report.failures, report.generated) == ([], 1)


def test_a_stale_record_is_a_warning_with_its_command(repository: Path) -> None:
    old = {
        "workload": "0",
        "workload_at": "kpt_lab.kernels.softmax:forward",
        "technique": "0",
        "technique_at": "kpt_lab.baselines:eager",
    }
    trials = six("eager", 2.0, baseline=True, source=old, workload="old") + six("fused", 1.0, workload="old", source=old)
    record(trials, repository / "notebooks/phase1/results/old.jsonl")
    (repository / "docs/page.md").write_text("It is {trial}`old technique=fused`.")
    report = claims.check(repository)
    assert report.failures == []
    role, file = report.warnings
    assert "python -m kpt_lab record kernels.softmax --only forward" in role
    assert "12 of 12 Trials are stale" in file
    assert "--out notebooks/phase1/results" in file


def test_stale_cells_that_no_record_grid_holds_take_a_sweep_into_their_file() -> None:
    at = {"workload": "0", "workload_at": "kpt_lab.kernels.softmax:forward"}
    common = {"workload": "softmax.forward", "device": "cuda", "dtype": "bfloat16", "source": at}
    odd = [Trial(technique="eager", params={"rows": rows, "cols": cols}, **common) for rows in (16, 128) for cols in (256, 512)]
    known = Trial(technique="eager", params={"rows": 16384, "cols": 4096}, **common)
    path = "notebooks/phase1/results/grid/x.jsonl"
    command = "python -m kpt_lab record kernels.softmax --only forward --out notebooks/phase1/results/grid"
    assert query.record_commands([known], path) == [command]
    assert query.record_commands([odd[0], known, *odd[1:]], path) == [
        "python -m kpt_lab sweep kernels.softmax:forward --grid rows=16,16384,128 cols=256,4096,512 --device cuda "
        f"--dtype bfloat16 --into {path}",
    ]


def test_the_command_line_fails_with_a_list(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / "docs/page.md"
    page.write_text("It is 4.2x faster.")
    assert cli.main(["claims", str(page)]) == 1
    assert "docs/page.md" not in capsys.readouterr().err
    page.write_text("It is faster.")
    assert cli.main(["claims", str(page)]) == 0
    assert "none without a source" in capsys.readouterr().out
    assert cli.main(["claims", str(repository / "nowhere.md")]) == 2
    assert "which is not there" in capsys.readouterr().err


def test_the_repository_has_no_figure_without_a_source() -> None:
    report = claims.check(ROOT)
    assert [line for line in report.failures if "kpt_lab.tables" not in line or "between the markers" not in line] == []
    assert report.generated > 0


def test_what_is_typed_into_a_code_cell_is_prose_and_its_output_is_not(repository: Path) -> None:
    source = "x = 1  # it is 3x faster\nprint('it is 4.2x faster')\nprint(f'{x:.0%} and 5x, {x:.2f}x')\n%magic"
    cells = [{"cell_type": "code", "source": source.split("\n%")[0], "outputs": [{"text": "It is 9x faster."}]}]
    (repository / "notebooks/n.ipynb").write_text(json.dumps({"cells": cells}))
    places = [line.split(" (")[0] for line in claims.check(repository).failures]
    assert sorted(places) == [
        f"notebooks/n.ipynb: cell 1 line {n}: {what!r}" for n, what in ((1, "3x"), (2, "4.2x"), (3, "5x"))
    ]


# ---- what the roles show


def test_a_speedup_shows_its_interval_and_conditions(repository: Path) -> None:
    shown = claims.trial("op rows=4 technique=fused", claims.recorded_trials(repository))
    assert shown.text.startswith("2.05x [2.00, 2.10]")
    for part in ("fused over eager", "rows 4", "a device", "2026-01-02", "6 processes", "FASTER"):
        assert part in shown.title


def test_few_processes_say_so_and_a_weak_baseline_stands_beside_the_best() -> None:
    trials = six("eager", 4.0, baseline=True, processes=1) + six("compiled", 2.0, baseline=True, processes=1)
    trials += six("fused", 1.0, processes=1)
    shown = claims.trial("op technique=fused over=eager", trials)
    assert "exploratory (1 process)" in shown.text
    assert shown.text.startswith("4.00x")
    assert "over eager (2.00x" in shown.text
    assert "over the best baseline, compiled)" in shown.text


def test_a_metric_shows_its_unit() -> None:
    trials = six("fused", 1.5, memory=268435456)
    assert claims.trial("op technique=fused metric=time", trials).text == "1.5 µs"
    assert claims.trial("op technique=fused metric=memory.peak", trials).text == "268.4 MB"
    assert claims.trial("op technique=fused metric=bound", trials).text == "500 ns, modelled"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("op technique=fused", "2 cells .* rows is 4, 8"),
        ("op rows=9 technique=fused", "'rows' is 4, 8 there"),
        ("op color=red technique=fused", "'color' is no parameter of it there"),
        ("op rows=4 technique=other", "its techniques are eager, fused"),
        ("nothing technique=fused", "recorded workloads are op"),
        ("op rows=4 technique=fused over=sdpa", "no technique labelled 'sdpa'"),
        ("op rows=4 technique=fused metric=energy", "its metrics are time, bound"),
        ("op rows=4", "names no technique"),
        ("technique=fused", "accepted is WORKLOAD"),
        ("op rows=4 rows=8 technique=fused", "gives 'rows' twice"),
        ("op technique='fused", "can't be read"),
    ],
)
def test_a_query_for_nothing_or_too_much_says_so(asked: str, message: str) -> None:
    trials = Trials(t for rows in (4, 8) for t in six("eager", 2.0, baseline=True, rows=rows) + six("fused", 1.0, rows=rows))
    with pytest.raises(ValueError, match=message):
        claims.trial(asked, trials)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("#cheats count", "2"),
        ("#cheats[escape=] count", "1"),
        ("#cheats[name=b]/speedup as x", "2.25x"),
        ("#cheats/0/speedup as x", "1.50x"),
        ("#cheats[name=b]/speedup range as x", "2.25x"),
        ("#A~1A/largest as %", "1.25%"),
        ("#A~1A/largest as s", "12.5 ms"),
    ],
)
def test_a_path_into_a_benchmark_is_read(repository: Path, content: str, text: str) -> None:
    shown = claims.recorded("benchmarks/recorded/team.json" + content, repository)
    assert shown.text == text
    assert "2026-01-02" in shown.title


def test_ranges_span_the_chosen_entries(repository: Path) -> None:
    path = repository / "benchmarks/recorded/team.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"cheats": [row | {"kind": "all"} for row in data["cheats"]]}))
    assert (
        claims.recorded("benchmarks/recorded/team.json#cheats[kind=all]/speedup range as x", repository).text
        == "1.50x to 2.25x"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("benchmarks/recorded/none.json#a", "there are team.json"),
        ("notebooks/../pyproject.json#a", "no file in benchmarks/recorded"),
        ("benchmarks/recorded/team.json#nothing", "there are device, at, A/A, cheats"),
        ("benchmarks/recorded/team.json#cheats", "no number"),
        ("benchmarks/recorded/team.json#cheats[colour=red] count", "which the entries there don't have"),
        ("benchmarks/recorded/team.json", "accepted is"),
    ],
)
def test_a_wrong_path_into_a_benchmark_is_told(repository: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claims.recorded(content, repository)


def test_a_quotation_links_to_its_address() -> None:
    shown = claims.quoted("4.2x <Dao 2022, https://arxiv.org/abs/2205.14135>")
    assert (shown.text, shown.link) == ("4.2x", "https://arxiv.org/abs/2205.14135")
    assert "Dao 2022" in shown.title


def test_sphinx_gets_nodes_with_titles_and_warnings(repository: Path) -> None:
    pytest.importorskip("sphinx")
    from kpt_lab.claims import roles

    added: dict = {}
    roles.setup(SimpleNamespace(add_role=added.__setitem__))
    errors: list[str] = []
    inliner = SimpleNamespace(
        document=SimpleNamespace(
            settings=SimpleNamespace(env=SimpleNamespace(srcdir=str(repository / "docs"), docname="page"))
        ),
        reporter=SimpleNamespace(error=lambda message, line: errors.append(message)),
        problematic=lambda text, raw, message: text,
    )
    (node,), messages = added["trial"]("trial", "raw", "op technique=fused", 1, inliner)
    assert (node.astext()[:5], messages) == ("2.05x", [])
    assert "fused over eager" in node["explanation"]
    (link,), _ = added["quoted"]("quoted", "raw", "4.2x <https://example.org/a>", 1, inliner)
    assert link["refuri"] == "https://example.org/a"
    added["trial"]("trial", "raw", "op technique=other", 1, inliner)
    assert "its techniques are eager, fused" in errors[0]


# ---- the ledger

PAIR = {"query": "op technique=fused over=eager", "id": "c", "row": "1", "statement": "It is faster.", "claimed": "3x"}
TIMED = six("eager", 2.0, baseline=True, memory=100) + six("fused", 1.0, memory=90)


@pytest.mark.parametrize(
    ("limits", "outcome"),
    [
        ({"least": 1.8}, "measured (holds)"),
        ({"least": 3.0}, "refuted"),
        ({"least": 2.0}, "undecided"),
        ({"query": "op technique=fused over=eager metric=memory.peak", "most": 0.8}, "refuted"),
        ({"query": "op technique=fused over=eager metric=memory.peak", "most": 0.95}, "measured (holds)"),
        ({"query": "other technique=fused", "least": 2.0}, "not yet"),
        ({"query": ""}, "not yet"),
        ({"query": "", "not_testable": "no such device was within reach."}, "not testable here"),
    ],
)
def test_a_claim_is_judged_by_its_trials(limits: dict, outcome: str) -> None:
    trials = Trials(six("eager", 2.0, baseline=True, memory=100)[:5] + six("eager", 2.04, baseline=True, memory=100)[5:])
    trials = trials + TIMED.where(label="fused")
    finding = claims.judge(claims.Claim(**PAIR | limits), trials)
    assert finding.outcome == outcome
    assert bool(finding.measured) == (outcome not in ("not yet", "not testable here"))
    assert finding.why


def test_a_refuted_speedup_tells_the_bound() -> None:
    finding = claims.judge(claims.Claim(**PAIR, least=6.3), TIMED)
    assert "leaves room for 4.00x at most" in finding.why
    assert "2.00x" in finding.measured
    assert "fails in 1 of 1 cell" in finding.why


def test_headline_cells_decide_and_losing_cells_are_counted() -> None:
    losing = six("eager", 1.0, baseline=True, rows=8) + six("fused", 1.0, rows=8)
    alone = six("eager", 9.0, baseline=True, rows=16, processes=1) + six("fused", 1.0, rows=16, processes=1)
    finding = claims.judge(claims.Claim(**PAIR, least=1.5), TIMED + losing + alone)
    assert finding.outcome == "measured (holds)"
    assert "holds in 1 and fails in 1 of 2 cells" in finding.why
    exploratory = claims.judge(claims.Claim(**PAIR, least=1.5), alone)
    assert "exploratory" in exploratory.measured


def test_a_failed_technique_leaves_the_claim_open_with_the_reason() -> None:
    failed = Trials([Trial("op", "fused", params={"rows": 4}, status="failed", advice="it broke", cell="c", env={"host": "h"})])
    finding = claims.judge(claims.Claim(**PAIR, least=1.5), TIMED.where(label="eager") + failed)
    assert finding.outcome == "not yet"
    assert "it broke" in finding.why


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"least": 1.0, "most": 2.0}, "exactly one of least and most"),
        ({}, "exactly one of least and most"),
        ({"least": 1.0, "not_testable": "why"}, "give one of them"),
        ({"query": "op technique=fused metric=time", "least": 1.0}, "add over="),
    ],
)
def test_a_claim_that_can_not_be_judged_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        claims.Claim(**PAIR | wrong)


def test_the_repositorys_ledger_is_whole() -> None:
    path = ROOT / "docs/claims.toml"
    known = claims.claims(path)
    assert len(known) >= 25
    table = claims.ledger(path)
    assert len(table.splitlines()) == len(known) + 2
    gelu = next(line for line in table.splitlines() if line.startswith("| gelu-time"))
    ours = claims.trial(
        "gelu.forward rows=16384 cols=8192 dtype=bfloat16 technique='kpt triton' over=eager", claims.recorded_trials(ROOT)
    )
    assert "**refuted**" in gelu
    assert ours.text.split(" over ")[0] in gelu


def test_a_ledger_with_a_mistake_names_the_claim(tmp_path: Path) -> None:
    path = tmp_path / "claims.toml"
    path.write_text('[[claim]]\nid = "a"\nrow = "1"\nstatement = "s"\nclaimed = "c"\nclaim = 3\n')
    with pytest.raises(ValueError, match=r"claim 'a': .*unexpected keyword argument 'claim'"):
        claims.claims(path)
    path.write_text('[[claim]]\nid = "a"\nrow = "1"\nstatement = "s"\nclaimed = "c"\n' * 2)
    with pytest.raises(ValueError, match="two claims have the id 'a'"):
        claims.claims(path)


def test_live_results_are_no_record(repository: Path) -> None:
    record(six("fused", 1.0), repository / "notebooks/phase1/results/live/02.jsonl")
    assert [path.name for path in query.files(repository)] == ["op.jsonl"]
