"""The repository's own promises: set-up files that agree, prose that runs, an import that stays light."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from kpt_lab.core import Metric, Trial, Trials

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
TOOLS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, in all its extras, without itself."""
    lines = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    return [req for req in map(Requirement, lines) if canonicalize_name(req.name) != "kpt-lab"]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(req.name): req for req in found}


# Set-up files


def disagreements(environment: dict[str, Any]) -> list[str]:
    """Where a conda environment file says something else than pyproject.toml; conda's ranges are read as pip's."""
    known = {canonicalize_name(req.name): req.specifier for req in requirements()}
    known |= {"python": SpecifierSet(PROJECT["requires-python"]), "pip": SpecifierSet()}
    found = []
    for line in environment["dependencies"]:
        if isinstance(line, str):
            asked = Requirement(line)
            if asked.name not in known:
                found.append(f"{asked.name} is not in pyproject.toml")
            elif asked.specifier != known[asked.name]:
                found.append(f"{asked.name} is {asked.specifier or 'any'}, in pyproject.toml {known[asked.name] or 'any'}")
            continue
        for entry in line["pip"]:
            option, value = shlex.split(entry)
            extras = Requirement(value.replace(".", "kpt-lab", 1)).extras if option == "--editable" else set()
            found += [f"extra {extra} is not in pyproject.toml" for extra in sorted(extras - set(EXTRAS))]
            if option == "--constraint" and not (ROOT / value).is_file():
                found.append(f"{value} does not exist")
    return found


def test_environment_agrees_with_pyproject() -> None:
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    assert disagreements(environment) == []
    assert environment["name"] == PROJECT["name"]
    assert "--editable .[lab]" in environment["dependencies"][-1]["pip"]
    assert "No conda solve was run" in text


@pytest.mark.parametrize(
    ("dependency", "complaint"),
    [
        ("python >=3.10", "python is >=3.10, in pyproject.toml >=3.11"),
        ("numpy", "numpy is any, in pyproject.toml >=2.0"),
        ("tensorflow", "tensorflow is not in pyproject.toml"),
        ({"pip": ["--editable .[lba]"]}, "extra lba is not in pyproject.toml"),
        ({"pip": ["--constraint pins.txt"]}, "pins.txt does not exist"),
    ],
)
def test_a_wrong_environment_is_noticed(dependency: Any, complaint: str) -> None:
    assert disagreements({"dependencies": ["python >=3.11", "torch >=2.11", "pip", dependency]}) == [complaint]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda req: req.name)
def test_constraint_lies_in_its_range(requirement: Requirement) -> None:
    pinned = constraints().get(canonicalize_name(requirement.name))
    assert pinned is not None, f"constraints.txt has no release of {requirement.name}"
    (pin,) = pinned.specifier
    assert pin.operator == "=="
    assert requirement.specifier.contains(pin.version)
    if requirement.marker and pinned.marker:
        assert pinned.marker == requirement.marker


def test_torch_is_pinned_so_that_cpu_and_cuda_builds_both_fit() -> None:
    pin = constraints()["torch"].specifier
    assert pin.contains("2.13.0")
    assert pin.contains("2.13.0+cpu")
    assert pin.contains("2.13.0+cu130")


def test_extras_are_those_that_the_readme_and_make_use() -> None:
    assert set(EXTRAS) == {"lab", "frontier", "models", "test", "e2e", "docs"}
    assert "'.[$(EXTRA)]'" in (ROOT / "Makefile").read_text()
    assert "kpt-lab[lab,models,frontier]" in EXTRAS["test"]


def test_every_package_is_in_the_wheel() -> None:
    folders = [path.parent.relative_to(ROOT) for path in ROOT.glob("kpt_lab/**/__init__.py")]
    names = {".".join(folder.parts) for folder in folders} | {"kpt_lab.widgets"}
    assert set(TOOLS["setuptools"]["packages"]) == names


def test_widgets_are_never_a_package_of_their_own() -> None:
    import kpt_lab.widgets

    assert kpt_lab.widgets.__doc__
    (folder,) = kpt_lab.widgets.__path__
    assert Path(folder) == ROOT / "widgets"
    assert "widgets" not in TOOLS["setuptools"]["packages"]


def bare(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run code as in a bare checkout: this repository on the path and what is installed, but kpt_lab not installed."""
    import torch

    paths = [str(ROOT), str(Path(torch.__file__).parents[1])]
    start = f"import sys; sys.path[:0] = {paths!r}\n"
    # -S leaves out the .pth files by which an editable install works
    return subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, cwd=tmp_path)


def test_import_works_in_a_bare_checkout_and_widgets_say_what_is_missing(tmp_path: Path) -> None:
    run = bare("import kpt_lab; print('imported'); import kpt_lab.widgets", tmp_path)
    assert run.stdout.strip() == "imported", run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: kpt_lab.widgets")
    assert "install" in last


def test_import_loads_no_optional_package() -> None:
    optional = ("plotly", "jupyterlab", "IPython", "ipywidgets", "anywidget", "qiskit", "snntorch", "triton", "transformers")
    code = f"import sys, torch; import kpt_lab; print([name for name in {optional} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Make


def make(*arguments: str, **environment: str) -> str:
    """What make would run, without running it."""
    settings = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", **environment}
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=True).stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed")


@needs_make
def test_lab_passes_arguments_and_opens_a_browser_only_with_a_display() -> None:
    command = "-m jupyterlab --LabApp.default_url=/lab/tree/notebooks/index.ipynb"
    assert command in make("lab", "LAB_ARGS=--port 8899")
    assert "--port 8899" in make("lab", "LAB_ARGS=--port 8899")
    assert "--no-browser" not in make("lab", DISPLAY=":0")
    assert "--no-browser" not in make("lab", WAYLAND_DISPLAY="wayland-0")
    assert ("--no-browser" in make("lab")) == sys.platform.startswith("linux")


@needs_make
def test_make_test_runs_every_check_and_installs_by_the_constraints() -> None:
    steps = make("test")
    checks = (
        "-m ruff check .",
        "-m ruff format --check .",
        "-m mypy",
        "-m pytest kpt_lab tests --ignore=tests/kernels\n",
        "-m pytest -p no:cacheprovider tests/kernels\n",
        "--nbval ",
        ".cfg notebooks\n",
    )
    for step in checks:
        assert step in steps
    assert "-m pip install --quiet --constraint constraints.txt --editable '.[test]'" in steps
    assert "uv pip install" not in steps
    assert "uv pip install" in make("test", "UV=1")
    options = TOOLS["pytest"]["ini_options"]
    assert "error" in options["filterwarnings"]
    assert "--doctest-modules" in options["addopts"]
    assert {"kpt_lab", "widgets"} <= set(TOOLS["mypy"]["files"])


@needs_make
def test_old_python_is_refused_in_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text(
        "#!/bin/sh\n" + f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10); exec(sys.argv[1])" "$2"\n'
    )
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", f"PYTHON={old}", "test"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0
    assert "kpt_lab needs Python 3.11 or newer" in run.stderr
    assert not (tmp_path / ".venv").exists()


# Prose


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_named_in_prose_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert named
    assert named <= targets


def names_used(code: str, of: str) -> set[str]:
    """Dotted names below `of` in this code: {"sweep", "figures.speedup"}."""
    found = {ast.unparse(node) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    return {name.removeprefix(f"{of}.") for name in found if name.startswith(f"{of}.")}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_name_in_an_example_exists(page: str) -> None:
    import kpt_lab

    pytest.importorskip("plotly")
    used = set().union(*(names_used(code, "kpt") for code in blocks(page, "python")))
    assert used
    for dotted in used:
        found: Any = kpt_lab
        for part in dotted.split("."):
            found = getattr(found, part)


def test_own_model_takes_five_lines_and_runs(tmp_path: Path) -> None:
    code = next(code for code in blocks("README.md", "python") if "kpt.workload" in code)
    assert sum(bool(line.strip()) and not line.startswith("import") for line in code.splitlines()) <= 5
    last = code.strip().splitlines()[-1]
    # eager alone, in this process and with a small budget: the ladder's compilers would take most of a minute
    quick = "trials = kpt.measure(model, [kpt.baselines.eager], processes=0, budget=0.2)\nassert trials.ok, trials"
    assert last == "print(kpt.measure(model, kpt.baselines.ladder))"
    (tmp_path / "my_file.py").write_text(code.replace(last, quick))
    run = subprocess.run([sys.executable, "my_file.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_contributing_example_is_complete_and_measured_right(tmp_path: Path) -> None:
    (tmp_path / "silu.py").write_text(blocks("CONTRIBUTING.md", "python")[0])
    (tmp_path / "try_it.py").write_text(
        "import kpt_lab as kpt, silu\n"
        "quick = [technique for technique in silu.techniques if technique.stage != 'compile']\n"
        "trials = kpt.measure(silu.forward, quick, rows=33, cols=257, processes=0, budget=0.2)\n"
        "print(*(f'{t.label}:{t.status}' for t in trials if t.label in ('eager', 'F.silu')))\n"
    )
    run = subprocess.run([sys.executable, "try_it.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "eager:ok F.silu:ok", run.stdout + run.stderr


def test_readme_table_is_what_the_recorded_trials_give() -> None:
    from kpt_lab import tables

    page = (ROOT / "README.md").read_text(encoding="utf-8")
    table = tables.headline_table(tables.recorded(ROOT / "notebooks" / "phase1" / "results"))
    assert page == tables.insert(page, table), "run python -m kpt_lab.tables"


WHERE: dict[str, Any] = {
    "params": {"rows": 4096},
    "device": "cuda",
    "dtype": "bfloat16",
    "at": "2026-01-02T03:04:05Z",
    "env": {"host": "f00d", "device_name": "Some GPU", "torch": "2.11.0", "triton": "3.6.0"},
}


def six_processes(label: str, nanoseconds: int, *, baseline: bool = False, processes: int = 6) -> list[Trial]:
    """Trials of one technique in one cell whose process p takes p per mille longer."""
    found = []
    for process in range(processes):
        samples = tuple(nanoseconds * (1000 + process) // 1000 for _ in range(30))
        times = {"metrics": {"time": Metric(samples[0] / 1e9, "s", "measured")}, "samples": {"time": samples}}
        found.append(Trial("silu.forward", label, cell="c1", process=process, baseline=baseline, **times, **WHERE))
    return found


def test_table_lists_headlines_over_the_best_baseline() -> None:
    from kpt_lab import tables

    eager = six_processes("eager", 4_000_000, baseline=True)
    compiled = six_processes("torch.compile", 2_000_000, baseline=True)
    table = tables.headline_table(Trials(eager + compiled + six_processes("mine | fast", 1_000_000)))
    assert table.splitlines() == [
        "Some GPU, device time; torch 2.11.0, triton 3.6.0; 2026-01-02.",
        "",
        "| operation | inputs | technique | best baseline | speedup | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        "| silu.forward | rows 4096, bfloat16 | mine &#124; fast | torch.compile | 2.00x [2.00, 2.00] | FASTER |",
    ]


def test_table_says_when_the_code_was_edited_after_recording() -> None:
    from kpt_lab import baselines, tables

    eager = six_processes("eager", 2000, baseline=True)
    edited = {"technique": "0" * 12, "technique_at": "kpt_lab.baselines:compiled", "workload": "", "workload_at": ""}
    mine = [replace(trial, source=edited) for trial in six_processes(baselines.compiled.label, 1000)]
    assert tables.headline_table(Trials(eager + mine)).endswith("FASTER when recorded; the code was edited since |")


def test_table_leaves_out_what_is_exploratory() -> None:
    from kpt_lab import tables

    five = six_processes("eager", 4000, baseline=True, processes=5) + six_processes("mine", 1000, processes=5)
    assert tables.headline_table(Trials(five)) == tables.NONE_YET


@pytest.mark.parametrize("page", ["no markers", "<!-- trials:end --> <!-- trials:begin -->"])
def test_a_page_without_markers_is_refused(page: str) -> None:
    from kpt_lab import tables

    with pytest.raises(ValueError, match="trials:begin"):
        tables.insert(page, "table")


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: the files that belong to the repository are not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_path_of_one_machine() -> None:
    private = re.compile(r"(?<![\w.:-])/(?:" + "|".join(("work", "root", "home")) + r")/\w")
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in private.finditer(text)]
    assert found == []


def test_recorded_results_are_kept_and_live_ones_ignored() -> None:
    tracked()
    names = ("results/a.jsonl", "notebooks/phase1/results/live/a.jsonl", "notebooks/phase1/results/softmax.h100.jsonl")
    command = ["git", "check-ignore", "--no-index", *names]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert ignored == list(names[:2])
