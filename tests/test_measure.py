"""measure: what it refuses before work starts, what it records, and what becomes of techniques that fail.

Cells run in this process (processes=0) with tiny budgets; nothing here asserts a time.
"""

import math
import os
import signal
import time

import pytest
import torch

import kpt_lab as kpt
from kpt_lab import baselines
from kpt_lab.core import Metric, Problem, Technique, Unsupported, Workload

HERE = {"processes": 0, "budget": 0.05}


def make(*, device, dtype, seed, rows=3, cols=65):
    generator = torch.Generator().manual_seed(seed)
    sets = [(torch.randn(rows, cols, generator=generator, dtype=torch.float64).to(device, dtype),) for _ in range(3)]
    return Problem(row_softmax, sets)


def row_softmax(x):
    return torch.softmax(x, -1)


work = Workload("softmax", make, cost=lambda *, dtype, rows=3, cols=65: kpt.Cost({dtype: 5.0 * rows * cols}, 8.0 * rows * cols))


def same(fn, args):
    return fn


def by_hand(fn, args):
    return lambda x: (x - x.amax(-1, keepdim=True)).exp() / (x - x.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)


def test_a_trial_holds_what_the_rules_need():
    trials = kpt.measure(work, [baselines.eager, Technique("by hand", by_hand)], rows=3, cols=65, seed=7, **HERE)
    eager, hand, copy = trials
    assert [t.label for t in trials] == ["eager", "by hand", "copy"]
    assert all(t.status == "ok" for t in trials)
    assert len({t.cell for t in trials}) == 1
    assert len(eager.samples["time"]) == len(hand.samples["time"]) == len(copy.samples["time"]) >= 3
    assert dict(eager.params) == {"rows": 3, "cols": 65}
    assert (eager.device, eager.dtype, eager.seed, eager.process) == ("cpu", "float32", 7, 0)
    assert {"time", "error", "bound", "memory.peak", "memory.held", "copy_time"} <= set(eager.metrics)
    assert eager.metrics["time"].provenance == "measured"
    assert eager.metrics["bound"].provenance == "modelled"
    assert eager.metrics["bound"].source
    assert eager.metrics["memory.peak"].value >= 3 * 65 * 4
    assert 0 < hand.metrics["error"].value <= hand.chosen["error_limit"]
    assert hand.chosen["audits"] >= 1
    assert eager.env["host"]
    assert eager.source["technique"] != hand.source["technique"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workload": row_softmax}, "make one from your own function or module by kpt.workload"),
        ({"techniques": []}, "at least one Technique"),
        ({"techniques": ["eager"]}, "at least one Technique"),
        ({"techniques": [baselines.eager] * 2}, "more than once"),
        ({"device": "tpu"}, "device is 'tpu'; accepted are 'cpu' and 'cuda'"),
        ({"dtype": "float17"}, "dtype is 'float17'"),
        ({"cache": "hot"}, "cache is 'hot'"),
        ({"budget": 0}, "budget must be above 0"),
        ({"columns": 4}, "has no parameter 'columns'; it takes rows, cols"),
        ({"group": True}, "torch.distributed to be initialised"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(change, message):
    arguments = {"workload": work, "techniques": [baselines.eager], **HERE, **change}
    with pytest.raises(ValueError, match=message):
        kpt.measure(arguments.pop("workload"), arguments.pop("techniques"), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_no_gpu_is_said_plainly():
    with pytest.raises(ValueError, match="no usable CUDA GPU here; use device='cpu'"):
        kpt.measure(work, [baselines.eager], device="cuda", **HERE)


def test_a_dtype_that_the_workload_lacks_is_refused():
    narrow = Workload("narrow", make, dtypes=("float32",))
    with pytest.raises(ValueError, match="dtype is float16; workload 'narrow' accepts float32"):
        kpt.measure(narrow, [baselines.eager], dtype="float16", **HERE)


def unsupported(fn, args):
    raise Unsupported("takes 1 column only")


def fails(fn, args):
    return lambda x: [][1]


def no_memory(fn, args):
    return lambda x: torch.empty(2**60, dtype=torch.int8)


def test_failures_become_trials_and_the_cell_goes_on():
    techniques = [
        baselines.eager,
        Technique("u", unsupported),
        Technique("f", fails),
        Technique("m", no_memory),
        Technique("x", same, requires=("no_such_package_here",)),
        Technique("c", same, requires=("cuda",)),
    ]
    found = {t.label: t for t in kpt.measure(work, techniques, **HERE)}
    assert {name: t.status for name, t in found.items() if name != "copy"} == {
        "eager": "ok", "u": "unsupported", "f": "failed", "m": "out_of_memory", "x": "unavailable", "c": "unavailable",
    }  # fmt: skip
    assert found["u"].advice == "takes 1 column only"
    assert "IndexError" in found["f"].advice
    assert "use a smaller size" in found["m"].advice
    assert "pip install no-such-package-here" in found["x"].advice
    assert "pass device='cuda'" in found["c"].advice


def shift(fn, args, by=0.0):
    return lambda x: fn(x) + by


def test_lossy_is_held_to_its_definition_and_reports_its_error():
    right = Technique("lossy", shift, contract="lossy", definition=shift, knobs={"by": 0.25})
    broken = Technique("broken", shift, contract="lossy", definition=same_with_knob, knobs={"by": 0.25})
    _, ok, bad, _ = kpt.measure(work, [baselines.eager, right, broken], **HERE)
    assert ok.status == "ok"
    assert ok.metrics["error"].value > 1
    assert bad.status == "wrong"


def same_with_knob(fn, args, by=0.0):
    return fn


def make_dropout(*, device, dtype, seed):
    x = torch.randn(40, 25, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    return Problem(lambda x: torch.nn.functional.dropout(x, 0.5), [(x,), (2 * x,), (3 * x,)])


def not_rescaled(fn, args):
    return lambda x: fn(x) / 2


def wider(fn, args):
    return lambda x: torch.nn.functional.dropout(x, 0.8)


class KeyBias(torch.nn.Module):
    """Attention whose keys have a bias: a softmax over keys does not see it, so that its gradient is rounding alone."""

    def __init__(self, dropped=1.0):
        super().__init__()
        torch.manual_seed(3)
        self.project, self.bias, self.dropped = (
            torch.nn.Linear(16, 48, bias=False),
            torch.nn.Parameter(torch.randn(16)),
            dropped,
        )

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return torch.softmax(q @ (k + self.bias).mT / 4, -1) @ (v * self.dropped)


def test_a_gradient_that_is_zero_but_for_rounding_is_no_yardstick():
    def otherwise(fn, args, dropped=1.0):
        module = KeyBias(dropped)
        module.load_state_dict(fn.state_dict())
        module.to(next(fn.parameters()).dtype)
        module.forward = lambda x: torch.nn.functional.scaled_dot_product_attention(
            *(y + part for y, part in zip(module.project(x).chunk(3, -1), (0, module.bias, 0), strict=True))
        ) * module.dropped  # fmt: skip
        return module

    workload = kpt.workload(KeyBias(), torch.randn(2, 33, 16), name="key bias")(mode="backward")
    _, right, wrong, _ = kpt.measure(
        workload, [baselines.eager, Technique("sdpa", otherwise), Technique("wrong", otherwise)(dropped=1.5)], **HERE
    )
    assert right.status == "ok"
    assert right.chosen["error_limit"] < 1e-3  # not what the bias alone would set
    assert wrong.status == "wrong"


def test_random_workloads_are_compared_in_distribution():
    dropout = Workload("dropout", make_dropout, random=True)
    techniques = [
        baselines.eager,
        Technique("again", by_hand_dropout),
        Technique("half", not_rescaled),
        Technique("wide", wider),
    ]
    found = {t.label: t for t in kpt.measure(dropout, techniques, **HERE)}
    assert found["again"].status == "ok"
    assert "mean of its random outputs" in found["half"].advice or "spread" in found["half"].advice
    assert found["half"].status == "wrong"
    assert found["wide"].status == "wrong"
    assert "spread of its random outputs" in found["wide"].advice or "mean" in found["wide"].advice


def by_hand_dropout(fn, args):
    return lambda x: x * (torch.rand_like(x) < 0.5) * 2


def test_a_simulation_keeps_its_clock_apart():
    technique = Technique("light", same, simulates="a photonic core", report=energy)
    _, trial, _ = kpt.measure(work, [baselines.eager, technique], **HERE)
    assert "time" not in trial.metrics
    assert trial.metrics["simulation_time"].provenance == "measured"
    assert trial.metrics["error"].provenance == "simulated"
    assert trial.metrics["energy.compute"].provenance == "modelled"


def energy(candidate):
    return {"energy.compute": Metric(1e-9, "J", "modelled", source="a toy")}


def claims_measured(candidate):
    return {"speed": Metric(10.0, "1", "measured")}


def claims_time(candidate):
    return {"time": Metric(10.0, "s", "modelled", source="hope")}


@pytest.mark.parametrize("report", [claims_measured, claims_time])
def test_a_report_may_not_claim_a_measurement_or_a_time(report):
    _, trial, _ = kpt.measure(work, [baselines.eager, Technique("t", same, report=report)], **HERE)
    assert trial.status == "rejected"
    assert "only measure may claim" in trial.advice


def test_predict_and_quote():
    target = kpt.Target(
        "toy", {"float32": 1e9}, 1e9, {"float32": "a", "bandwidth": "b", "energy.float32": "e", "energy.byte": "f"},
        energy={"float32": 1e-12, "byte": 1e-10},
    )  # fmt: skip
    trial = kpt.predict(work, baselines.eager, target, rows=10, cols=10)
    assert trial.metrics["bound"].value == pytest.approx(8.0 * 100 / 1e9)
    assert trial.metrics["energy.compute"].value == pytest.approx(500e-12)
    assert trial.metrics["energy.with_memory"].value == pytest.approx(500e-12 + 800e-10)
    assert "e; f" in trial.metrics["energy.with_memory"].source
    with pytest.raises(ValueError, match="states no cost"):
        kpt.predict(Workload("w", make), baselines.eager, target)
    quoted = kpt.quote(work, baselines.eager, "H100", {"time": Metric(1e-3, "s", "quoted", source="paper")}, "paper", rows=4)
    assert quoted.source["publication"] == "paper"
    with pytest.raises(ValueError, match="quote takes quoted Metrics only"):
        kpt.quote(work, baselines.eager, "H100", {"time": Metric(1e-3, "s", "measured")}, "paper")


def hangs(fn, args):
    return lambda x: time.sleep(1000)


def dies(fn, args):
    return lambda x: os.kill(os.getpid(), signal.SIGKILL)


def test_hangs_and_crashes_are_ended_in_children_and_the_others_are_measured():
    techniques = [baselines.eager, Technique("hangs", hangs), Technique("dies", dies)]
    found = {t.label: t for t in kpt.measure(kernel_free, techniques, budget=0.05, processes=1, limit=8)}
    assert found["eager"].status == "ok"
    assert found["hangs"].status == "timeout"
    assert "no sign of life for 8 s while checking" in found["hangs"].advice
    assert found["dies"].status == "failed"
    assert "killed by signal 9 while checking" in found["dies"].advice


kernel_free = Workload("softmax", make)


def test_what_a_child_cannot_import_runs_here_and_says_so():
    local = Technique("local", lambda fn, args: fn)
    _, trial = kpt.measure(kernel_free, [baselines.eager, local], budget=0.05, processes=6)
    assert trial.status == "ok"
    assert "runs in this process" in trial.advice


def test_settings_are_put_back():
    before = torch.get_num_threads()
    kpt.measure(work, [baselines.eager, Technique("t", changes_threads)], **HERE)
    assert torch.get_num_threads() == before


def changes_threads(fn, args):
    torch.set_num_threads(torch.get_num_threads() + 1)
    return fn


def test_a_specification_that_breaks_is_an_error_not_a_trial():
    broken = Workload("broken", make_broken)
    with pytest.raises(RuntimeError, match="boom"):
        kpt.measure(broken, [baselines.eager], **HERE)


def make_broken(*, device, dtype, seed):
    return Problem(boom, [(torch.ones(2),)] * 3)


def boom(x):
    raise RuntimeError("boom")


def test_the_level_of_intervals_is_recorded_and_finite():
    eager, *_ = kpt.measure(work, [baselines.eager], **HERE)
    metric = eager.metrics["time"]
    assert math.isfinite(metric.value)
    assert metric.low is None or metric.low <= metric.value <= metric.high
