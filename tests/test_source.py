"""The source hash changes when, and only when, something that the technique reaches changes."""

import ast
import functools
import importlib
import linecache
import pickle
import subprocess
import sys
import textwrap
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab import baselines, syntax
from kpt_lab.core import Problem, Technique, Workload
from kpt_lab.models import workload
from kpt_lab.pickled import pickled
from kpt_lab.source import locate, reaches, resolve, source_hash
from kpt_lab.syntax import facts_of, is_library, strip_docstrings

INIT = """
from fakelab.fast import apply
"""
FAST = '''
"""A module docstring."""
import torch
import fakelab.tables
from fakelab import helpers, fast_extra as extra
from fakelab.helpers import scale as rescale
from kpt_lab.core import Problem, Technique, Workload

BLOCK = 64
SIZES = {"small": BLOCK * 2}
UNUSED = 1


class Kernel:
    """Calls."""

    factor = BLOCK

    def __call__(self, x):
        return rescale(x) * self.factor + extra.offset(x)


def unrelated(x):
    return x


def apply(fn, args, size="small"):
    """Docstring."""
    # a comment
    kernel = Kernel()
    return lambda x: kernel(helpers.shift(x)) + SIZES[size] + fakelab.tables.TABLE[0]


def make(*, device, dtype, seed, n=3):
    return Problem(torch.relu, [(torch.ones(n),)] * 3)


fast = Technique("fast", apply)
model = Workload("model", make)
by_lambda = Technique("by lambda", lambda fn, args: helpers.shift)
'''
HELPERS = """
GAIN = 2.0

def scale(x):
    return deeper(x) * GAIN

def deeper(x):
    return x + 1

def shift(x):
    from fakelab.late import bias
    return x + bias(x)

def unrelated(x):
    return x
"""
FILES = {
    "__init__": INIT,
    "fast": FAST,
    "helpers": HELPERS,
    "fast_extra": "def offset(x):\n    return 0\n",
    "tables": "TABLE = [1, 2]\nOTHER = 5\n",
    "late": "def bias(x):\n    return 0.5\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes the package `fakelab` with some text replaced, imports it anew and returns its module `fast`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fakelab").mkdir()

    def write(**edits):
        for name, text in FILES.items():
            old, new = edits.get(name, ("", ""))
            assert old in text
            (tmp_path / "fakelab" / f"{name}.py").write_text(text.replace(old, new) if old else text)
        for name in [n for n in sys.modules if n.split(".")[0] == "fakelab"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return importlib.import_module("fakelab.fast")
        finally:
            sys.dont_write_bytecode = before

    yield write
    for name in [n for n in sys.modules if n.split(".")[0] == "fakelab"]:
        del sys.modules[name]


CHANGES = {
    "body": {"fast": ("helpers.shift(x)) +", "helpers.shift(x)) -")},
    "constant": {"fast": ("BLOCK = 64", "BLOCK = 65")},
    "constant of a constant": {"fast": ("BLOCK * 2", "BLOCK * 3")},
    "class": {"fast": ("+ extra.offset", "- extra.offset")},
    "default": {"fast": ('size="small"', 'size="large"')},
    "helper by module": {"helpers": ("x + bias(x)", "x - bias(x)")},
    "helper by name": {"helpers": ("deeper(x) * GAIN", "deeper(x) / GAIN")},
    "helper of a helper": {"helpers": ("return x + 1", "return x + 2")},
    "constant of a helper": {"helpers": ("GAIN = 2.0", "GAIN = 2.5")},
    "module under another name": {"fast_extra": ("return 0", "return 1")},
    "module by dots": {"tables": ("[1, 2]", "[1, 3]")},
    "import inside a function": {"late": ("0.5", "0.25")},
}
SAME = {
    "comment": {"fast": ("# a comment", "# another comment")},
    "docstring": {"fast": ('"""Docstring."""', '"""Another one."""')},
    "module docstring": {"fast": ('"""A module docstring."""', '"""Another."""\n\n\n')},
    "layout": {"fast": ("BLOCK * 2", "(BLOCK    * 2)")},
    "unrelated function": {"fast": ("def unrelated(x):\n    return x", "def unrelated(x):\n    return -x")},
    "unrelated function of a helper's module": {
        "helpers": ("def unrelated(x):\n    return x", "def unrelated(y):\n    return 0")
    },
    "unused constant": {"fast": ("UNUSED = 1", "UNUSED = 2")},
    "other name of a module": {"tables": ("OTHER = 5", "OTHER = 6")},
    "workload": {"fast": ("torch.relu", "torch.tanh")},
}


@pytest.mark.parametrize("edit", CHANGES)
def test_an_edit_of_what_is_reached_changes_the_hash(package, edit):
    before = source_hash(package().fast)
    assert source_hash(package(**CHANGES[edit]).fast) != before
    assert source_hash(package().fast) == before


@pytest.mark.parametrize("edit", SAME)
def test_an_edit_of_anything_else_does_not(package, edit):
    before = source_hash(package().fast)
    assert source_hash(package(**SAME[edit]).fast) == before


def test_a_workload_follows_its_make_but_not_its_bound_parameters(package):
    before = source_hash(package().model)
    assert source_hash(package(fast=("torch.relu", "torch.tanh")).model) != before
    assert source_hash(package(fast=("BLOCK = 64", "BLOCK = 1")).model) == before
    assert source_hash(package().model(n=7)) == before


def test_a_lambda_of_the_module_is_followed(package):
    before = source_hash(package().by_lambda)
    assert source_hash(package(helpers=("x + bias(x)", "x - bias(x)")).by_lambda) != before
    assert source_hash(package(fast=("BLOCK = 64", "BLOCK = 1")).by_lambda) == before


def test_knobs_count():
    technique = Technique("t", lambda fn, args, bits=8: fn)
    assert source_hash(technique(bits=4)) != source_hash(technique(bits=6))
    assert source_hash(technique(bits=4)) == source_hash(technique(bits=4))


def test_partial_arguments_and_closures_count():
    def maker(gain, helper):
        def apply(fn, args):
            return lambda x: fn(x) * gain + helper(x)

        return apply

    def one(x):
        return x

    def two(x):
        return x

    assert source_hash(maker(1.0, one)) == source_hash(maker(1.0, one))
    assert source_hash(maker(1.0, one)) != source_hash(maker(2.0, one))
    assert source_hash(functools.partial(baselines._compile, mode="a")) != source_hash(
        functools.partial(baselines._compile, mode="b")
    )
    assert (
        len({source_hash(t) for t in (baselines.eager, baselines.compiled, baselines.max_autotune, baselines.cuda_graph)}) == 4
    )


CUSTOM_OP = """
import torch
from torch import Tensor

@torch.library.custom_op("fakelab::double", mutates_args=())
def double(x: Tensor) -> Tensor:
    return compute(x)

def compute(x):
    return x * 2

@double.register_fake
def _(x):
    return torch.empty_like(x)

def backward(ctx, grad):
    return grad * 2

double.register_autograd(backward)

def by_object(fn, args):
    return double

def by_name(fn, args):
    return lambda x: torch.ops.fakelab.double(x)

def neither(fn, args):
    return fn
"""


def from_text(tmp_path, monkeypatch, name, text):
    """A module written to tmp_path and registered without running its decorators' side effects twice."""
    path = tmp_path / f"{name}.py"
    path.write_text(textwrap.dedent(text))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


EDITS = {
    "body": ("return compute(x)", "return compute(-x)"),
    "callee": ("return x * 2", "return x + x"),
    "fake": ("torch.empty_like(x)", "torch.ones_like(x)"),
    "backward": ("return grad * 2", "return grad + grad"),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("entry", ["by_object", "by_name"])
def test_a_custom_op_brings_what_is_registered_on_it(tmp_path, monkeypatch, entry, edit):
    name = f"custom_{entry}_{edit}"
    module = from_text(tmp_path, monkeypatch, name, CUSTOM_OP.replace("fakelab", name))
    before, other = source_hash(getattr(module, entry)), source_hash(module.neither)
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text().replace(*EDITS[edit]) + "\n# longer\n")
    assert source_hash(getattr(module, entry)) != before
    assert source_hash(module.neither) == other
    assert len(source_hash(module.double)) == 12


TRITON = """
WIDTH = 4

def jit(f):
    return f

@jit
def _callee(x):
    return x + WIDTH

@jit
def _kernel(x):
    return _callee(x)

def apply(fn, args):
    def run(x):
        _kernel[(1,)](x)
        return x
    return run
"""


@pytest.mark.parametrize(("old", "new"), [("x + WIDTH", "x - WIDTH"), ("WIDTH = 4", "WIDTH = 8")])
def test_a_kernel_launched_by_subscript_brings_its_callees(tmp_path, monkeypatch, old, new):
    module = from_text(tmp_path, monkeypatch, "fakekernel", TRITON)
    before = source_hash(module.apply)
    (tmp_path / "fakekernel.py").write_text(TRITON.replace(old, new))
    assert source_hash(module.apply) != before


def test_a_live_triton_kernel_hashes_as_the_function_it_wraps():
    triton = pytest.importorskip("triton")

    def kernel(x):
        return x

    assert source_hash(triton.jit(kernel)) == source_hash(kernel)


def test_a_conditional_binding_and_a_changed_table_count(tmp_path, monkeypatch):
    text = "TABLE = {}\nTABLE['a'] = 1\nif TABLE:\n    K = 1\nelse:\n    K = 2\ndef f():\n    return K, TABLE\n"
    module = from_text(tmp_path, monkeypatch, "faketable", text)
    before = source_hash(module.f)
    seen = set()
    for old, new in (("K = 2", "K = 3"), ("['a'] = 1", "['a'] = 2")):
        (tmp_path / "faketable.py").write_text(text.replace(old, new))
        seen.add(source_hash(module.f))
    assert len(seen | {before}) == 3
    (tmp_path / "faketable.py").write_text(text)
    module.TABLE["filled while running"] = 1
    assert source_hash(module.f) == before


@pytest.mark.parametrize("has_text", [True, False])
def test_a_definition_of_a_notebook_is_followed_through_live_names(monkeypatch, has_text):
    def build(gain, body):
        module = types.ModuleType("__main__")
        code = f"GAIN = {gain}\ndef helper(x):\n    return {body}\ndef f(x):\n    return helper(x) * GAIN\n"
        if has_text:  # as IPython does for its cells
            monkeypatch.setitem(linecache.cache, "<cell>", (len(code), None, code.splitlines(True), "<cell>"))
        exec(compile(code, "<cell>", "exec"), module.__dict__)
        monkeypatch.setitem(sys.modules, "__main__", module)
        return source_hash(module.f)

    same = build(1, "x")
    assert build(1, "x") == same
    assert len({same, build(2, "x"), build(1, "-x")}) == 3


def test_an_imported_name_of_a_library_counts(tmp_path, monkeypatch):
    text = "from torch.nn.functional import gelu as op\ndef f(x):\n    return op(x)\n"
    module = from_text(tmp_path, monkeypatch, "fakeimport", text)
    before = source_hash(module.f)
    (tmp_path / "fakeimport.py").write_text(text.replace("gelu", "silu"))
    assert source_hash(module.f) != before
    assert not any(name.startswith("torch.") for name in reaches(module.f))


def test_a_module_counts_by_class_and_shape():
    def make(layer):
        return lambda **settings: Problem(layer, [()] * 3)

    assert source_hash(make(torch.nn.Linear(3, 4))) == source_hash(make(torch.nn.Linear(3, 4)))
    assert source_hash(make(torch.nn.Linear(3, 4))) != source_hash(make(torch.nn.Linear(3, 5)))
    assert source_hash(make(torch.nn.ReLU())) != source_hash(make(torch.nn.GELU()))
    assert source_hash(make(torch.nn.GELU())) != source_hash(make(torch.nn.GELU(approximate="tanh")))


def test_hashes_do_not_depend_on_the_process():
    code = (
        "from kpt_lab import baselines, source; from kpt_lab.core import Technique\n"
        "print(*(source.source_hash(t) for t in (*baselines.ladder, baselines.compiled >> baselines.cuda_graph)))"
    )
    here = [source_hash(t) for t in (*baselines.ladder, baselines.compiled >> baselines.cuda_graph)]
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == here


def test_locate_finds_bound_and_unbound_forms(package):
    module = package()
    assert locate(module.fast) == locate(module.fast(size="large")) == "fakelab.fast:fast"
    assert locate(module.model) == locate(module.model(n=4)) == "fakelab.fast:model"
    assert resolve("fakelab.fast:fast") is module.fast
    assert locate(Technique("fast", lambda fn, args: fn)) == ""
    assert locate(Workload("model", lambda **settings: None)) == ""


def test_locate_a_stack_by_its_parts():
    stacked = baselines.compiled >> baselines.cuda_graph
    at = locate(stacked)
    assert at == "kpt_lab.baselines:compiled >> kpt_lab.baselines:cuda_graph"
    assert source_hash(resolve(at)) == source_hash(stacked)
    assert locate(baselines.compiled(mode="reduce-overhead") >> baselines.cuda_graph) == ""


@pytest.mark.parametrize(
    ("at", "sentence"),
    [
        ("kpt_lab.baselines", "accepted is 'module:attribute'"),
        ("kpt_lab.nowhere:x", "module 'kpt_lab.nowhere' can't be imported"),
        ("kpt_lab.baselines:nothing", "has no 'nothing'"),
    ],
)
def test_resolve_says_what_is_missing(at, sentence):
    with pytest.raises(ValueError, match=sentence):
        resolve(at)


def test_libraries_are_told_from_the_users_own_files():
    assert is_library("torch.nn")
    assert is_library("json")
    assert is_library("sys")
    assert not is_library(__name__)


@given(st.sampled_from(sorted(CHANGES)), st.text("abc xyz", max_size=20), st.integers(0, 3))
def test_comments_and_blank_lines_never_reach_the_canonical_text(edit, words, blanks):
    text = FAST.replace(*CHANGES[edit].get("fast", ("", "")) if "fast" in CHANGES[edit] else ("\0", ""))
    noisy = "\n".join(line + (f"  # {words}" + "\n" * blanks if line.startswith("def ") else "") for line in text.split("\n"))
    assert facts_of(strip_docstrings(ast.parse(noisy))).dump == facts_of(strip_docstrings(ast.parse(text))).dump


MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = torch.nn.Linear(3, width)
        self.gain = 2.0

    def forward(self, x):
        return scaled(self.linear(x)) * self.gain

def scaled(x):
    return x * 2

def loss(output):
    return output.sum()
"""


def test_a_users_model_counts_by_its_code_and_settings_not_its_weights(tmp_path, monkeypatch):
    module = from_text(tmp_path, monkeypatch, "fakemodel", MODEL)

    def made(width=4):
        return source_hash(workload(module.Net(width), torch.ones(2, 3), loss=module.loss))

    before = made()
    assert made() == before
    assert made(5) != before
    seen = {before}
    for old, new in (("x * 2", "x * 3"), ("self.gain\n", "self.gain + 1\n"), ("output.sum()", "output.mean()")):
        (tmp_path / "fakemodel.py").write_text(MODEL.replace(old, new))
        seen.add(made())
    assert len(seen) == 4


def test_pickled_names_are_read_without_running_them():
    class_names, settings = pickled(pickle.dumps([torch.nn.GELU("tanh"), OrderedThing("red", 17)]))
    assert ("torch.nn.modules.activation", "GELU") in class_names
    assert (__name__, "OrderedThing") in class_names
    assert {"tanh", "red", 17} <= set(settings)
    assert pickled(pickle.dumps({"a": print}, protocol=2))[0] == [("__builtin__", "print")]


class OrderedThing:
    def __init__(self, color, size):
        self.color, self.size = color, size


@pytest.mark.parametrize("technique", [*baselines.ladder, baselines.cuda_graph, baselines.compiled >> baselines.cuda_graph])
def test_a_child_process_finds_the_same_place_and_hash(technique):
    copied = pickle.loads(pickle.dumps(technique))
    assert locate(copied) == locate(technique) != ""
    assert source_hash(copied) == source_hash(technique)


def test_a_workload_of_a_users_model_is_found_in_its_file(tmp_path, monkeypatch):
    text = MODEL + "\nimport kpt_lab as kpt\nmodel = kpt.workload(Net(), torch.ones(2, 3))\n"
    module = from_text(tmp_path, monkeypatch, "fakefile", text)
    copied = pickle.loads(pickle.dumps(module.model))
    assert locate(copied) == locate(module.model(mode="step")) == "fakefile:model"
    assert source_hash(copied) == source_hash(module.model)


@pytest.mark.parametrize(
    ("text", "of_comprehensions"),
    [
        ("NAMES = {function: name for name, function in TABLE.items()}", {"name", "function"}),
        ("a, b = (x(name) for name in (first, second))", {"name"}),
        ("rows = [[cell for cell in row if cell] for row in rows_of(cell)]", {"row"}),
        ("rows = [n for n in n]", set()),
        ("def f(x=[i for i in range(3)]):\n    return [j for j in i]", {"i"}),
        ("table = [lambda k=k: [m for m in k] for k in keys]", {"k"}),
        ("@given([s for s in names])\nclass C(*[b for b in bases]):\n    rows = [t for t in s]", {"s", "b"}),
    ],
)
def test_variables_of_comprehensions_are_no_names_of_the_module(text, of_comprehensions):
    tree = ast.parse(text)
    assert syntax._of_comprehensions(tree) == of_comprehensions
    elsewhere = {"i", "s"} if text.startswith(("def", "@")) else set()  # read in a scope of its own as well
    assert facts_of(tree).names & of_comprehensions == elsewhere & of_comprehensions
