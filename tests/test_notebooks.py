"""The rules that a notebook keeps, each shown to catch a notebook that breaks it, and nbval's comparison of figures."""

from __future__ import annotations

import ast
import base64
import copy
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path for path in ROOT.glob("notebooks/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users|tmp|opt|mnt)/|[A-Z]:\\\\Users")
RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8}")
LIMIT_BYTES = 1_000_000


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def syntax(notebook: NotebookNode) -> Iterator[ast.AST]:
    """All syntax nodes of the code cells; lines for IPython alone ("%magic", "!shell") count as `pass`."""
    for cell in code_cells(notebook):
        if not cell.source.startswith("%%"):
            yield from ast.walk(ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.MULTILINE)))


def breaks_kernel(notebook: NotebookNode) -> str:
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return "" if name == "python3" else f"its kernel is {name!r}; name it 'python3', so that it runs in any environment"


def breaks_outputs(notebook: NotebookNode) -> str:
    unrun = [cell.id for cell in code_cells(notebook) if cell.execution_count is None]
    if unrun:
        return f"cells {', '.join(unrun)} were not run; `make notebooks` runs them and stores their outputs"
    silent = code_cells(notebook) and not any(cell.outputs for cell in code_cells(notebook))
    return "it has no outputs; `make notebooks` stores them" if silent else ""


def breaks_widget_state(notebook: NotebookNode) -> str:
    return "its metadata holds widget state; store it without (`make notebooks`)" if "widgets" in notebook.metadata else ""


def breaks_ids(notebook: NotebookNode) -> str:
    random = [cell.id for cell in notebook.cells if RANDOM_ID.fullmatch(cell.id)]  # nbformat itself refuses shared ids
    return f"cells {', '.join(random)} have random ids; name them for what they do, such as 'predict'" if random else ""


def breaks_classes(notebook: NotebookNode) -> str:
    names = [node.name for node in syntax(notebook) if isinstance(node, ast.ClassDef)]
    return f"it defines the class {names[0]}; that belongs into the library" if names else ""


def breaks_functions(notebook: NotebookNode) -> str:
    for node in syntax(notebook):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > 10:
                return f"its function {node.name} has {lines} lines; beyond 10 it belongs into the library"
    return ""


def breaks_setup(notebook: NotebookNode) -> str:
    """The set-up is the first code cell that is not the parameters cell."""
    first = next((cell for cell in code_cells(notebook) if "parameters" not in cell.metadata.get("tags", [])), None)
    lines = len(first.source.strip().splitlines()) if first else 0
    return f"its set-up cell has {lines} lines; 8 is the most" if lines > 8 else ""


def breaks_parameters(notebook: NotebookNode) -> str:
    found = tagged(notebook, "parameters")
    if len(found) != 1:
        return f"{len(found)} of its cells have the tag 'parameters'; exactly one must"
    return "" if re.search(r"^QUICK\s*=", found[0].source, flags=re.MULTILINE) else "its parameters cell sets no QUICK"


def breaks_size(notebook: NotebookNode) -> str:
    size = len(nbformat.writes(notebook).encode())
    return f"it has {size / 1e6:.1f} MB; under {LIMIT_BYTES / 1e6:.0f} MB is accepted" if size >= LIMIT_BYTES else ""


def breaks_paths(notebook: NotebookNode) -> str:
    found = MACHINE_PATH.search(nbformat.writes(notebook))
    return f"it holds a path of one machine, {found.group()!r}" if found else ""


RULES: tuple[Callable[[NotebookNode], str], ...] = (
    breaks_kernel,
    breaks_outputs,
    breaks_widget_state,
    breaks_ids,
    breaks_classes,
    breaks_functions,
    breaks_setup,
    breaks_parameters,
    breaks_size,
    breaks_paths,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__.removeprefix("breaks_"))
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path: Path, rule: Callable[[NotebookNode], str]) -> None:
    if rule is breaks_parameters and path.parent.name == "notebooks":
        return  # the map of notebooks has nothing to set
    complaint = rule(nbformat.read(path, as_version=4))
    assert not complaint, f"{path.relative_to(ROOT)}: {complaint}"


def good_notebook() -> NotebookNode:
    stream = nbformat.v4.new_output("stream", text="4096\n")
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# Is it faster?", id="title"),
        nbformat.v4.new_code_cell("QUICK = True", id="parameters", execution_count=1, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import math", id="setup", execution_count=2),
        nbformat.v4.new_code_cell("%time\nprint(4096)", id="predict", execution_count=3, outputs=[stream]),
    ]
    return notebook


def spoil_kernel(notebook: NotebookNode) -> None:
    notebook.metadata.kernelspec.name = "kpt-lab"


def spoil_outputs(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs = []


def spoil_counts(notebook: NotebookNode) -> None:
    notebook.cells[2].execution_count = None


def spoil_widget_state(notebook: NotebookNode) -> None:
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}


def spoil_ids(notebook: NotebookNode) -> None:
    notebook.cells[1].id = "0f3a91c2"


def spoil_classes(notebook: NotebookNode) -> None:
    notebook.cells[3].source = "if True:\n    class Model:\n        pass"


def spoil_functions(notebook: NotebookNode) -> None:
    notebook.cells[3].source = "def long():\n" + "    print()\n" * 10


def spoil_setup(notebook: NotebookNode) -> None:
    notebook.cells[2].source = "import math\n" * 9


def spoil_parameters(notebook: NotebookNode) -> None:
    notebook.cells[1].metadata = {}


def spoil_quick(notebook: NotebookNode) -> None:
    notebook.cells[1].source = "ROWS = 3"


def spoil_size(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs[0].text = "x" * LIMIT_BYTES


def spoil_paths(notebook: NotebookNode) -> None:
    notebook.cells[3].outputs[0].text = "/" + "home/someone/kpt_lab/core.py:3: UserWarning"


SPOILED = (
    (breaks_kernel, spoil_kernel),
    (breaks_outputs, spoil_outputs),
    (breaks_outputs, spoil_counts),
    (breaks_widget_state, spoil_widget_state),
    (breaks_ids, spoil_ids),
    (breaks_classes, spoil_classes),
    (breaks_functions, spoil_functions),
    (breaks_setup, spoil_setup),
    (breaks_parameters, spoil_parameters),
    (breaks_parameters, spoil_quick),
    (breaks_size, spoil_size),
    (breaks_paths, spoil_paths),
)


def test_every_rule_is_shown_to_catch_something() -> None:
    assert {rule for rule, _ in SPOILED} == set(RULES)


@pytest.mark.parametrize(("rule", "spoil"), SPOILED, ids=[spoil.__name__ for _, spoil in SPOILED])
def test_rule_catches_its_notebook_and_no_other_does(rule: Callable[..., str], spoil: Callable[..., None]) -> None:
    notebook = good_notebook()
    assert [check.__name__ for check in RULES if check(notebook)] == []
    spoil(notebook)
    assert [check.__name__ for check in RULES if check(notebook)] == [rule.__name__]


def test_ten_lines_and_eight_lines_are_accepted() -> None:
    notebook = good_notebook()
    notebook.cells[2].source = "import math\n" * 8
    notebook.cells[3].source = "def short():\n" + "    print()\n" * 9
    assert not breaks_setup(notebook)
    assert not breaks_functions(notebook)


# How nbval compares figures: notebooks/conftest.py


@pytest.fixture(scope="module")
def comparison() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_conftest", ROOT / "notebooks" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = _nbval_cell().compare_outputs
    spec.loader.exec_module(module)
    _nbval_cell().compare_outputs = before  # this copy is for calling its functions, not for a second patch
    return module


def _nbval_cell() -> Any:
    from nbval.plugin import IPyNbCell

    return IPyNbCell


def encoded(values: np.ndarray) -> dict[str, str]:
    return {"dtype": values.dtype.str[1:], "bdata": base64.b64encode(values.tobytes()).decode()}


WAVE = np.sin(np.arange(8.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_roundoff_is_the_same_figure_and_a_thousandth_is_not(comparison: ModuleType, dtype: type) -> None:
    wave = WAVE.astype(dtype)
    for changed, same in ((np.nextafter(wave, dtype(9)), True), (wave * dtype(1.001), False), (wave[:-1], False)):
        figures = [{"data": [{"type": "scatter", "y": encoded(values)}]} for values in (wave, changed)]
        assert comparison.same_figure(*figures) is same


@pytest.mark.parametrize(
    ("theirs", "same"),
    [
        ({"y": [1.0, np.nextafter(2.0, 3.0)], "name": "a"}, True),
        ({"y": [1.0, 2.001], "name": "a"}, False),
        ({"y": [1.0, 2.0], "name": "b"}, False),
        ({"y": [1.0, 2.0]}, False),
        ({"y": [1.0], "name": "a"}, False),
        ({"y": encoded(np.array([1.0, 2.0])), "name": "a"}, False),
    ],
)
def test_all_but_roundoff_in_a_figure_must_be_equal(comparison: ModuleType, theirs: dict, same: bool) -> None:
    assert comparison.same_figure({"y": [1.0, 2.0], "name": "a"}, theirs) is same


def test_integers_and_nan_are_compared_exactly(comparison: ModuleType) -> None:
    whole = np.arange(5, dtype=np.int32)
    assert comparison.same_figure(encoded(whole), encoded(whole))
    assert not comparison.same_figure(encoded(whole), encoded(whole + 1))
    gaps = np.array([1.0, np.nan, np.inf])
    assert comparison.same_figure(encoded(gaps), encoded(gaps))
    assert not comparison.same_figure(encoded(gaps), encoded(np.array([1.0, 1.0, np.inf])))


PLOT = "import numpy as np\nimport plotly.graph_objects as go\n\ngo.Figure(go.Scatter(y=np.sin(np.arange(8.0))))"


def executed() -> NotebookNode:
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    notebook.cells = [nbformat.v4.new_code_cell(PLOT, id="plot")]
    return NotebookClient(notebook).execute()


def test_nbval_passes_a_roundoff_and_fails_a_changed_curve(tmp_path: Path) -> None:
    """Runs nbval as `make test` does, on one notebook stored with three different curves."""
    pytest.importorskip("plotly")
    reference = executed()
    for name, values in (("same", WAVE), ("jitter", np.nextafter(WAVE, 9.0)), ("changed", np.cos(np.arange(8.0)))):
        notebook = copy.deepcopy(reference)
        stored = notebook.cells[0].outputs[0].data["application/vnd.plotly.v1+json"]["data"][0]["y"]
        assert np.array_equal(np.frombuffer(base64.b64decode(stored["bdata"])), WAVE)
        stored["bdata"] = encoded(values)["bdata"]
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    (tmp_path / "conftest.py").write_text((ROOT / "notebooks" / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-rA", "--color=no", "--tb=no"]
    run = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=tmp_path, capture_output=True, text=True)
    found = {name: kind for kind, name in re.findall(r"^(PASSED|FAILED) .*?(\w+)\.ipynb", run.stdout, flags=re.MULTILINE)}
    assert found == {"same": "PASSED", "jitter": "PASSED", "changed": "FAILED"}, f"{run.stdout}\n{run.stderr}"
