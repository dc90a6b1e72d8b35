"""The nouns check their fields, bind by call, and stack by stage."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab.core import (
    STAGES,
    Cost,
    Metric,
    Problem,
    Target,
    Technique,
    Trial,
    Trials,
    Workload,
    stack,
    to_dtype,
)


def make(*, device, dtype, seed, rows=4, cols):
    x = torch.ones(rows, cols, device=device, dtype=dtype)
    return Problem(torch.exp, [(x,)] * 3)


def same(fn, args, block=128):
    return fn


work = Workload("exp", make)


def test_a_modelled_or_quoted_metric_needs_a_source():
    for provenance in ("modelled", "quoted"):
        with pytest.raises(ValueError, match="needs a source"):
            Metric(1.0, "s", provenance)
    with pytest.raises(ValueError, match="accepted are measured"):
        Metric(1.0, "s", "guessed")


def test_bound_is_the_larger_of_arithmetic_and_memory():
    target = Target("toy", {"float32": 100.0}, 10.0, {"float32": "made up", "bandwidth": "made up"}, count=2)
    assert target.bound(Cost({"float32": 400.0}, 20.0)).value == pytest.approx(2.0)
    assert target.bound(Cost({"float32": 40.0}, 200.0)).value == pytest.approx(10.0)
    assert target.bound(Cost({}, 200.0)).provenance == "modelled"
    with pytest.raises(ValueError, match="no peak for int8"):
        target.bound(Cost({"int8": 1.0}, 1.0))
    with pytest.raises(ValueError, match="gives no source for bandwidth"):
        Target("toy", {}, 1.0, {})


def test_costs_add():
    total = Cost({"float32": 1.0}, 2.0) + Cost({"float32": 3.0, "int8": 4.0}, 5.0)
    assert (dict(total.flops), total.bytes) == ({"float32": 4.0, "int8": 4.0}, 7.0)


def test_a_workload_names_unknown_and_missing_parameters():
    with pytest.raises(ValueError, match="has no parameter 'columns'; it takes rows, cols"):
        work.complete({"columns": 3})
    with pytest.raises(ValueError, match="needs a value for 'cols'"):
        work.complete({})
    with pytest.raises(ValueError, match="no parameter 'columns'"):
        work(columns=3)
    assert work(cols=7).complete({}) == {"rows": 4, "cols": 7}
    assert work(cols=7).complete({"cols": 9}) == {"rows": 4, "cols": 9}


def test_a_problem_needs_three_input_sets():
    with pytest.raises(ValueError, match="inputs holds 2 sets; at least 3"):
        Problem(torch.exp, [(torch.ones(1),)] * 2)


def test_knobs_bind_by_call_and_unknown_ones_are_refused():
    technique = Technique("t", same)
    assert technique(block=64).label == "t(block=64)"
    assert technique.label == "t"
    with pytest.raises(ValueError, match="no knob 'bits'; it takes block"):
        technique(bits=3)


def test_techniques_refuse_what_they_are_not():
    with pytest.raises(ValueError, match="stage of technique 't' is 'magic'"):
        Technique("t", same, stage="magic")
    with pytest.raises(ValueError, match="lossy and needs a definition"):
        Technique("t", same, contract="lossy")


def add(fn, args, by=1.0):
    return lambda *inputs: fn(*inputs) + by


def double(fn, args):
    return lambda *inputs: 2 * fn(*inputs)


def test_a_stack_is_ordered_by_stage_and_takes_the_loosest_contract():
    late = Technique("late", add, stage="compile", knobs={"by": 3.0})
    early = Technique("early", double, stage="rewrite", contract="lossy", definition=double)
    for both in (late >> early, early >> late):
        assert both.name == "early >> late(by=3.0)"
        assert both.contract == "lossy"
        assert both.apply(lambda x: x, (1,))(5) == 13
        assert both.definition(lambda x: x, (1,))(5) == 10
    assert pickle.loads(pickle.dumps(both)).label == both.label


def test_two_parts_of_a_stack_may_not_replace_the_same_thing():
    a, b = (Technique(name, same, replaces={"attention"}) for name in "ab")
    with pytest.raises(ValueError, match="'a' and 'b' both replace attention"):
        a >> b


@given(st.lists(st.sampled_from(STAGES), min_size=2, max_size=6))
def test_stacking_orders_any_stages(stages):
    parts = [Technique(f"{i}{stage}", same, stage=stage) for i, stage in enumerate(stages)]
    order = [STAGES.index(part.stage) for part in stack(*parts).parts]
    assert order == sorted(order)


def test_trials_are_frozen_picklable_and_selectable():
    trial = Trial("w", "t", params={"cols": 3}, knobs={"block": 2}, metrics={"time": Metric(2e-6, "s", "measured")})
    assert pickle.loads(pickle.dumps(trial)) == trial
    with pytest.raises(TypeError, match="frozen"):
        trial.params["cols"] = 4
    both = Trials([trial, Trial("w", "u", params={"cols": 5}, status="wrong", advice="a")])
    assert both.where(cols=[3, 4]) == (trial,)
    assert both.where(label="t(block=2)") == both.ok == (trial,)
    assert trial.time == 2e-6


def test_a_simulating_trial_may_not_hold_a_time():
    with pytest.raises(ValueError, match="its clock is simulation_time, never time"):
        Trial("w", "t", simulates="photonic", metrics={"time": Metric(1.0, "s", "measured")})
    with pytest.raises(ValueError, match="status is 'fine'"):
        Trial("w", "t", status="fine")


def test_dtypes_by_name():
    assert to_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'bf17'"):
        to_dtype("bf17")


def test_a_part_may_absorb_the_one_after_it():
    def absorb(part):
        return (lambda fn, args: ("both", fn)) if part.name == "after" else None

    first = Technique("first", lambda fn, args: ("first", fn), stage="rewrite", absorb=absorb)
    after = Technique("after", lambda fn, args: ("after", fn), stage="compile")
    other = Technique("other", lambda fn, args: ("other", fn), stage="compile")
    assert (first >> after).apply("fn", ()) == ("both", "fn")
    assert (first >> after).label == "first >> after"
    assert (first >> after).parts == (first, after)
    assert (first >> other).apply("fn", ()) == ("other", ("first", "fn"))
    between = Technique("between", lambda fn, args: ("between", fn), stage="precision")
    assert (first >> between >> after).apply("fn", ()) == ("after", ("between", ("first", "fn")))
