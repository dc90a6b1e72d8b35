"""optimize: what is chosen and what is not, where times are those of a clock that the models themselves move."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import pickle
import types
import warnings

import pytest
import torch
from torch import nn

import kpt_lab as kpt
from kpt_lab import baselines
from kpt_lab.core import Technique, Unsupported
from kpt_lab.hardware import CustomHardwareAdapter
from kpt_lab.optimize import Optimised, optimize, stacks
from kpt_lab.optimize.calls import queued, unseen
from kpt_lab.optimize.live import Held, canonical, shared_copy
from kpt_lab.optimize.search import not_measurable

CLOCK = None
APPLIED: list[str] = []


@pytest.fixture(autouse=True, scope="module")
def quick():
    """One thread, which tiny layers want; and what others have made so far is no garbage to look through around each cell."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def clock(fake_clock, monkeypatch):
    """The models of this file move this clock by what they cost; nobody waits for another thread."""
    global CLOCK
    CLOCK = fake_clock
    monkeypatch.setattr("kpt_lab.timer._sleep", lambda seconds: None)
    APPLIED.clear()
    yield fake_clock
    CLOCK = None


class Ticking(nn.Module):
    """A layer whose call takes `cost` nanoseconds of the fake clock, and a fifth more for each column beyond 8."""

    def __init__(self, cost: int = 1_000_000, drop: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(13, 7)
        self.norm = nn.BatchNorm1d(7)
        self.drop = nn.Dropout(drop)
        self.cost = cost

    def forward(self, x, scale=1.0):
        CLOCK.advance(self.cost)
        return self.drop(self.norm(self.linear(x))) * scale


def quicker(fn, args, times=2.0, name="quicker"):
    APPLIED.append(name)
    fn.cost = int(fn.cost / times)
    return fn


def fast(times: float, name: str = "") -> Technique:
    return Technique(name or f"{times}x", quicker, stage="rewrite", knobs={"times": times})


def lucky(fn, args):
    APPLIED.append("lucky")
    fn.cost = fn.cost // 2 if APPLIED.count("lucky") == 1 else fn.cost
    return fn


def refuses(fn, args):
    raise Unsupported("takes models with wings only")


def wrong(fn, args):
    fn.cost //= 4
    fn.linear = copy.deepcopy(fn.linear)
    with torch.no_grad():
        fn.linear.weight.mul_(1.01)
    return fn


def rounded(fn, args, times=1.0):
    fn.linear = copy.deepcopy(fn.linear)
    with torch.no_grad():
        fn.linear.weight.copy_(fn.linear.weight.bfloat16())
    fn.cost = int(fn.cost / times)
    return fn


def rounds(times: float) -> Technique:
    return Technique("rounded", rounded, stage="precision", knobs={"times": times}, contract="lossy", definition=rounded)


def rough(model):
    """A loss that grows with the distance of the weights from the float32 ones."""
    weight = model.linear.weight
    return 1.0 + float((weight.bfloat16().float() == weight).float().mean())


def model(**given):
    torch.manual_seed(3)
    return Ticking(**given).eval()


X = torch.randn(5, 13, generator=torch.Generator().manual_seed(1))


def same_as(optimised, plain, x=X):
    with torch.no_grad():
        torch.testing.assert_close(optimised(x), plain(x), rtol=1e-5, atol=1e-6)


# ---- what is chosen ----------------------------------------------------------------------------------------------------------


def test_the_fastest_stack_is_kept_and_the_model_stays_what_it_was(clock):
    plain = model()
    before = copy.deepcopy(plain)
    found = optimize(plain, inputs=X, techniques=[fast(1.5), fast(4.0), fast(2.0), Technique("none", refuses)])
    assert found.chosen == "4.0x(times=4.0)"
    assert "4.000x" in found.reason
    assert found.model is plain
    assert plain.cost == before.cost
    assert "takes models with wings only" in found.report()
    assert {"1.5x(times=1.5)", "none", "eager"} <= {t.label for t in found.trials}
    start = clock.now_ns()
    found(X)
    assert clock.now_ns() - start == plain.cost // 4
    same_as(found, before)
    assert not found.as_passed


@pytest.mark.parametrize("times", [0.5, 1.0, 1.019])
def test_a_gain_too_small_is_not_kept(times, clock):
    plain = model()
    found = optimize(plain, inputs=X, techniques=[fast(times)])
    assert found.chosen == "as passed"
    assert "no stack's interval lies above 1.02x" in found.reason
    start = clock.now_ns()
    found(X)
    assert clock.now_ns() - start == plain.cost


def test_what_a_first_look_leaves_open_is_measured_for_longer():
    """Too few blocks for an interval must not leave the fastest stack out of the race, as it once did on a GPU."""
    found = optimize(model(), inputs=X, techniques=[fast(1.5), fast(4.0), fast(2.0)], budget=0.02)
    looked = [line for line in found._found.lines if line.step == "lossless"]
    assert all(line.ratio.verdict == "UNCLEAR" for line in looked)
    assert found.chosen == "4.0x(times=4.0)"
    confirmed = [line.label for line in found._found.lines if line.step == "confirm"]
    assert len(confirmed) == 4  # two leaders, twice
    assert not any("1.5x" in label for label in confirmed)


def test_what_wins_by_luck_fails_the_second_measurement():
    found = optimize(model(), inputs=X, techniques=[Technique("lucky", lucky, stage="rewrite")])
    assert found.chosen == "as passed"
    assert "lucky won the search, but measured afresh on new values it came to 1.000x" in found.reason


def test_a_fast_wrong_stack_is_a_line_in_the_report():
    found = optimize(model(), inputs=X, techniques=[Technique("bad", wrong, stage="rewrite"), fast(1.5)])
    assert found.chosen.startswith("1.5x")
    (bad,) = found.trials.where(label="bad")
    assert bad.status == "wrong"
    assert f"bad: {bad.advice}" in found.report()


def test_what_the_returned_model_costs_counts(clock, monkeypatch):
    """A stack twice as fast is worth nothing where finding out whether it may be used takes as long as it saves."""
    asked = Held.changed
    monkeypatch.setattr(Held, "changed", lambda self: clock.advance(500_000) or asked(self))
    found = optimize(model(), inputs=X, techniques=[fast(2.0)])
    assert found.chosen == "as passed"
    assert "won the search, but measured afresh on new values it came to 1.000x" in found.reason


@pytest.mark.parametrize(("times", "ratio"), [(4.0, 4.0), (1.0, 1.0)])
def test_what_is_returned_can_be_measured_beside_others(times, ratio):
    plain = model()
    found = optimize(plain, inputs=X, techniques=[fast(times)])
    work = dataclasses.replace(kpt.workload(plain, X), cost=None)  # its bound would probe with this clock
    named = dataclasses.replace(kpt.workload(plain, {"x": X, "scale": 1.0}), cost=None)
    found = optimize(plain, inputs={"x": X, "scale": 1.0}, techniques=[fast(times)])
    trials = kpt.measure(named, [baselines.eager, found.technique()], processes=0)
    assert kpt.speedup(trials[1], trials[0]).value == pytest.approx(ratio)  # a call of another form would warn
    found = optimize(plain, inputs=X, techniques=[fast(times)])
    trials = kpt.measure(work, [baselines.eager, found.technique()], processes=0)
    assert kpt.speedup(trials[1], trials[0]).value == pytest.approx(ratio)
    assert trials[1].technique.endswith(", as returned")
    assert found.chosen != "as passed" or trials[1].technique.startswith("as passed")


def test_nothing_that_ran_is_said():
    found = optimize(model(), inputs=X, techniques=[Technique("none", refuses)])
    assert (found.chosen, found.reason) == ("as passed", "no stack ran here")


def test_a_model_that_cannot_be_copied_is_returned_as_passed_with_the_reason():
    plain = model()
    plain.extra = lambda: None
    found = optimize(plain, inputs=X, techniques=[fast(4.0)])
    assert found.chosen == "as passed"
    assert "can't be copied by pickle" in found.reason
    same_as(found, plain)


def fails_on_the_live_model(fn, args):
    if fn.cost != 1_000_000 or not isinstance(args, tuple):
        return fn
    APPLIED.append("live")
    if len(APPLIED) == 3:  # search, confirmation, then the model itself
        raise RuntimeError("no room")
    fn.cost //= 2
    return fn


def test_a_stack_that_fails_on_the_model_itself_is_dropped():
    plain = model()
    found = optimize(plain, inputs=X, techniques=[Technique("shy", fails_on_the_live_model, stage="rewrite")])
    assert found.chosen == "as passed"
    assert "shy won, but not on the model itself: no room" in found.reason
    assert plain.cost == 1_000_000


# ---- lossy ---------------------------------------------------------------------------------------------------------------------


def test_lossy_stacks_are_not_tried_without_a_quality():
    found = optimize(model(), inputs=X, techniques=[fast(2.0), rounds(8.0)])
    assert found.chosen.startswith("2.0x")
    assert "rounded" not in {t.technique for t in found.trials}
    assert (
        "rounded(times=8.0): not tried: it changes the numbers, for which quality and loss_budget are needed" in found.report()
    )


@pytest.mark.parametrize(
    ("times", "budget", "chosen"),
    [
        (8.0, 1.0, "2.0x(times=2.0) >> rounded(times=8.0)"),
        (8.0, 0.5, "2.0x(times=2.0)"),  # twice the loss is above a budget of half
        (1.01, 1.0, "2.0x(times=2.0)"),  # faster than as passed, not than the best lossless stack
    ],
)
def test_lossy_needs_the_budget_and_a_gain_over_the_best_lossless(times, budget, chosen, monkeypatch):
    monkeypatch.setattr(stacks, "compiled", Technique("again", refuses, stage="compile"))
    plain = model()
    found = optimize(plain, inputs=X, techniques=[fast(2.0), rounds(times)], quality=rough, loss_budget=budget)
    assert found.chosen == chosen
    assert "loss 1 before, 2 after" in found.report().replace("1.0", "1") or "not tried" in found.report()
    assert not bool((plain.linear.weight.bfloat16().float() == plain.linear.weight).all())


def test_a_lossy_stack_alone_and_one_that_is_over_budget(monkeypatch):
    monkeypatch.setattr(stacks, "compiled", Technique("again", refuses, stage="compile"))
    found = optimize(model(), inputs=X, techniques=[rounds(3.0)], quality=rough, loss_budget=1)
    assert found.chosen == "rounded(times=3.0)"
    assert found._found.limit is None
    found = optimize(model(), inputs=X, techniques=[rounds(3.0)], quality=rough, loss_budget=0)
    assert found.chosen == "as passed"
    assert "not tried: loss" in found.report()


def test_a_quality_that_is_not_finite_for_the_model_is_refused():
    with pytest.raises(ValueError, match=r"quality\(model\) gave nan"):
        optimize(model(), inputs=X, techniques=[rounds(2.0)], quality=lambda m: float("nan"), loss_budget=0.1)


def test_a_quality_may_set_modes_but_not_weights():
    plain = Ticking()
    before = copy.deepcopy(plain.state_dict())

    def evaluates(m):
        m.eval()
        return rough(m)

    found = optimize(plain, inputs=X, techniques=[rounds(3.0)], quality=evaluates, loss_budget=1)
    assert plain.training
    assert plain.norm.training
    assert found.chosen == "rounded(times=3.0)"

    def normalises(m):
        m(X)
        return 1.0

    optimize(plain, inputs=X, techniques=[rounds(3.0)], quality=normalises, loss_budget=1)
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())

    def trains(m):
        with torch.no_grad():
            m.linear.bias.add_(1.0)
        return 1.0

    with pytest.raises(ValueError, match="quality changed the model's weights; it must only evaluate"):
        optimize(plain, inputs=X, techniques=[rounds(3.0)], quality=trains, loss_budget=1)


def test_a_packed_form_of_weights_is_left_when_they_change():
    plain = model()
    found = optimize(plain, inputs=X, techniques=[rounds(3.0)], quality=rough, loss_budget=1)
    found(X)
    with torch.no_grad():
        plain.linear.bias.add_(1.0)
    with pytest.warns(UserWarning, match="packed form"):
        torch.testing.assert_close(found(X), plain(X).detach(), rtol=0, atol=0)


# ---- calls of another form -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tuned():
    return optimize(model(), inputs=X, techniques=[fast(4.0)])


@pytest.mark.parametrize(("args", "named"), [((X[:3],), {}), ((X.clone(),), {"scale": 2.0}), ((), {"x": X})])
def test_other_calls_run_the_model_as_passed_and_say_so_once(tuned, clock, args, named):
    what = "another form of inputs than the one measured"
    start = clock.now_ns()
    with pytest.warns(UserWarning, match=f"runs the model as passed: {what}"):
        tuned(*args, **named)
    assert clock.now_ns() - start == tuned.model.cost
    tuned(*args, **named)  # warnings are errors here
    assert tuned.as_passed == {what: 2}
    assert f"2 calls ran the model as passed: {what}" in tuned.report()


def test_modes_autocast_and_moved_weights_are_noticed(tuned):
    for change, back, said in (
        (lambda: tuned.train(), lambda: tuned.eval(), "train"),
        (lambda: tuned.model.norm.train(), lambda: tuned.model.norm.eval(), "of norm"),
    ):
        change()
        with pytest.warns(UserWarning, match=said):
            tuned(X)
        back()
    count = sum(tuned.as_passed.values())
    tuned(X)
    assert sum(tuned.as_passed.values()) == count
    with pytest.warns(UserWarning, match="autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
        tuned(X)
    seen = []
    hook = tuned.model.linear.register_forward_hook(lambda *given: seen.append(1))
    with pytest.warns(UserWarning, match="hook was registered"):
        tuned(X)
    assert seen == [1]
    hook.remove()
    tuned.model.linear.weight.data = tuned.model.linear.weight.data.clone()
    with pytest.warns(UserWarning, match="moved in memory"):
        tuned(X)
    tuned.model.linear = nn.Linear(13, 7)
    with pytest.warns(UserWarning, match="module 'linear' was replaced"):
        same_as(tuned, tuned.model)


def test_a_graph_is_replayed_while_the_model_is_looked_at_and_dropped_where_it_changed():
    plain, replays = model(), []

    def graph(fn, args):
        fn = quicker(copy.deepcopy(fn), args)

        def replay(*inputs):
            replays.append(1)
            return fn(*inputs)

        return replay

    found = optimize(plain, inputs=X, techniques=[Technique("replayed", graph, stage="graph")])
    assert found.chosen == "replayed"
    assert found._ahead
    count = len(replays)
    same_as(found, plain)
    assert len(replays) == count + 1
    hook = found.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    torch.testing.assert_close(found(X), plain(X + 1).detach())  # not what was launched with X
    hook.remove()
    assert len(replays) == count + 3
    with pytest.warns(UserWarning, match="another form of inputs"):
        assert found(X[:2]).shape == (2, 7)
    found.as_passed.clear()
    count = len(replays) - 1
    plain.linear.weight.data = 2 * plain.linear.weight.data
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same_as(found, plain)
    assert len(replays) == count + 2  # in vain once; after that it looks first
    assert found.as_passed.total() == 2
    assert not found._held._storages


def test_without_inputs_it_is_tuned_on_the_first_call(clock):
    plain = model()
    found = optimize(plain, techniques=[fast(4.0)])
    assert found.chosen == "as passed"
    assert not found.trials
    with pytest.warns(UserWarning, match="autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
        found(X)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with torch.inference_mode():
        first = found(X, scale=2.0)
    assert torch.equal(torch.rand(1), expected)  # tuning draws no random numbers of the user's
    assert found.chosen.startswith("4.0x")
    with torch.no_grad():
        torch.testing.assert_close(first, plain(X, scale=2.0))
    start = clock.now_ns()
    found(X, scale=2.0)
    found(scale=2.0, x=X)
    assert clock.now_ns() - start == 2 * (plain.cost // 4)


def test_inference_records_no_gradients(tuned):
    assert not tuned(X).requires_grad


# ---- training ------------------------------------------------------------------------------------------------------------------


def test_training_keeps_parameters_gradients_and_the_optimiser_made_before(clock):
    torch.manual_seed(3)
    plain = Ticking()
    twin = copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (plain, twin)]
    found = optimize(plain, workload_type="training", inputs=X, techniques=[fast(3.0)])
    assert found.chosen.startswith("3.0x")
    assert {t.params["mode"] for t in found.trials} == {"backward"}
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), twin.buffers(), strict=True))  # running statistics
    for _ in range(3):
        for m, optimizer in zip((found, twin), optimizers, strict=True):
            optimizer.zero_grad()
            m(X).square().sum().backward()
            optimizer.step()
    assert not found.as_passed
    for a, b in zip(plain.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.warns(UserWarning, match="gradients are off"), torch.no_grad():
        found(X)


def test_training_with_dropout_is_compared_in_distribution():
    found = optimize(Ticking(drop=0.3), workload_type="training", inputs=X, techniques=[fast(3.0)])
    assert found.chosen.startswith("3.0x")
    assert found._found.limit is None


def test_gradients_that_are_held_keep_reduce_overhead_away():
    plain = Ticking()
    name = "torch.compile reduce-overhead"
    found = optimize(plain, workload_type="training", inputs=X, techniques=[fast(3.0, name)])
    assert found.chosen.startswith(name)
    found(X).sum().backward()
    with pytest.warns(UserWarning, match="still held"):
        found(X).sum().backward()
    found.zero_grad()
    found(X)
    assert sum(found.as_passed.values()) == 1


@pytest.fixture
def every_call_takes_a_microsecond(monkeypatch):
    monkeypatch.setattr("kpt_lab.timer._clock", itertools.count(0, 1000).__next__)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it
def test_a_compiled_stack_on_the_model_itself(every_call_takes_a_microsecond):
    plain, x = nn.Sequential(nn.Linear(13, 7), nn.Tanh()), X
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    found = optimize(plain, workload_type="training", techniques=[Technique("free", free_of_charge, stage="compile")], inputs=x)
    assert found.chosen == "as passed"
    assert found._fast is None
    found._keep(baselines.compiled, 1e-4, (x,))
    assert (found.chosen, found.reason[:8]) == ("torch.compile", "no stack")
    found(x).sum().backward()
    grads = [p.grad.clone() for p in plain.parameters()]
    plain.zero_grad()
    plain(x).sum().backward()
    torch.testing.assert_close(grads, [p.grad for p in plain.parameters()])
    assert all(torch.equal(before[name], value) for name, value in found.state_dict().items())
    plain[0].weight.data = 2 * plain[0].weight.data  # torch.compile reads it anew
    torch.testing.assert_close(found(x), plain(x))
    assert not found.as_passed
    hook = plain[0].register_forward_hook(lambda module, given, output: 2 * output)  # which torch.compile would not see
    with pytest.warns(UserWarning, match="hook was registered"):
        torch.testing.assert_close(found(x), plain(x), rtol=0, atol=0)
    hook.remove()
    plain[1] = nn.ReLU()
    with pytest.warns(UserWarning, match="module '1' was replaced"):
        torch.testing.assert_close(found(x), plain(x), rtol=0, atol=0)


def free_of_charge(fn, args):
    return fn


# ---- being the model ---------------------------------------------------------------------------------------------------------------


def test_state_dict_parameters_and_attributes_are_the_models(tuned):
    plain = tuned.model
    assert list(tuned.state_dict()) == list(plain.state_dict())
    assert [id(p) for p in tuned.parameters()] == [id(p) for p in plain.parameters()]
    assert tuned.cost == plain.cost
    assert tuned.linear is plain.linear
    with pytest.raises(AttributeError):
        _ = tuned.no_such_thing
    other = Ticking()
    tuned.load_state_dict(other.state_dict())
    same_as(tuned, other.eval())
    assert not tuned.as_passed
    outer = nn.Sequential(tuned, nn.Linear(7, 2))
    twin = nn.Sequential(plain, outer[1])
    assert list(outer.state_dict()) == list(twin.state_dict())
    outer.load_state_dict(twin.state_dict())
    tuned.double()
    assert plain.linear.weight.dtype == torch.float64
    with pytest.warns(UserWarning, match="another form"):
        tuned(X.double())
    assert "chosen='4.0x(times=4.0)'" in repr(tuned)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_holds_no_stack_and_is_tuned_again(tuned, how):
    other = how(tuned)
    assert isinstance(other, Optimised)
    assert other.chosen == "as passed"
    assert other.linear.weight is not tuned.linear.weight
    other(X)
    assert other.chosen == tuned.chosen


def test_a_shared_copy_has_modules_of_its_own_and_the_same_tensors():
    plain = model()
    other = shared_copy(plain)
    assert other.linear is not plain.linear
    assert other.linear.weight is plain.linear.weight
    assert other.norm.running_mean is plain.norm.running_mean
    held = Held(plain, values=True)
    other.linear = nn.Identity()
    assert held.changed() == ""


# ---- pieces --------------------------------------------------------------------------------------------------------------------------


def test_unseen_inputs_have_the_form_and_other_values():
    mask = torch.tensor([0.0, -torch.inf])
    ids = torch.arange(12).reshape(3, 4)
    given = ({"ids": ids, "x": X, "mask": mask, "flag": True, "one": torch.tensor(2)},)
    (other,) = unseen(given, seed=1)
    assert other["flag"] is True
    assert other["one"] == 2
    assert sorted(other["ids"].flatten().tolist()) == list(range(12))
    assert not torch.equal(other["ids"], ids)
    assert other["x"].shape == X.shape
    assert not torch.isin(other["x"], X).any()
    assert set(other["mask"].tolist()) == {0.0, -torch.inf}


def test_calls_are_brought_into_one_form():
    assert canonical(["x", "scale"], (1,), {"scale": 2}) == ({"scale": 2, "x": 1},)
    assert canonical([], (1,), {"scale": 2}) is None
    assert canonical(["x"], ({"x": 1},), {}) is None
    assert canonical(["x"], (1, 2), {}) == (1, 2)


def test_throughput_calls_follow_one_another():
    from kpt_lab.models import workload

    work = workload(model(), X)
    problem = queued(work.make, device="cpu", dtype=torch.float32, seed=0)
    calls = []
    step = problem.drive(lambda x: calls.append(1) or problem.fn(x))
    assert step(X).shape == (5, 7)
    assert len(calls) == 4
    assert optimize(model(), performance_target="throughput", inputs=X, techniques=[fast(4.0)]).chosen.startswith("4.0x")


def mixed():
    layers = nn.Sequential(nn.Linear(13, 7), nn.Linear(7, 3))
    layers[1].bfloat16()
    return layers


def test_models_that_one_cell_cannot_hold_are_left_as_passed(monkeypatch):
    assert "several dtypes (bfloat16, float32)" in not_measurable(mixed(), (X,))
    assert "its inputs are float64" in not_measurable(model(), (X.double(),))
    there = types.SimpleNamespace(dtype=torch.float32, device=torch.device("cuda:1"), is_floating_point=lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    assert "it lies on cuda:1" in not_measurable(types.SimpleNamespace(parameters=lambda: [there]), (X,))
    found = optimize(mixed(), techniques=[fast(2.0)])
    with pytest.raises(RuntimeError):
        found(X)
    assert "several dtypes" in found.reason


def test_too_large_a_model_is_left_as_passed(monkeypatch):
    monkeypatch.setattr("kpt_lab.optimize.search.free", lambda device: 1000.0)
    found = optimize(model(), inputs=X, techniques=[fast(4.0)])
    assert found.chosen == "as passed"
    assert "more than 60% of what is free on cpu; optimize a part of it" in found.reason


def test_stacks_are_split_into_cells_where_memory_is_short(monkeypatch):
    size = sum(t.nbytes for t in (*model().parameters(), *model().buffers()))
    monkeypatch.setattr("kpt_lab.optimize.search.free", lambda device: 6.5 * size / 0.6)
    found = optimize(model(), inputs=X, techniques=[fast(1.5), fast(4.0), fast(2.0)])
    assert found.chosen.startswith("4.0x")
    assert len({t.cell for t in found.trials}) == 3


# ---- the stacks that exist -----------------------------------------------------------------------------------------------------------


def test_stacks_by_device_and_kind_of_work():
    labels = [t.label for t in stacks.lossless(model(), "inference", "cpu")]
    assert labels == ["torch.compile", "torch.compile max-autotune"]
    labels = [t.label for t in stacks.lossless(model(), "inference", "cuda")]
    assert labels == [
        "CUDA graph", "torch.compile", "torch.compile >> CUDA graph",
        "torch.compile max-autotune", "torch.compile max-autotune >> CUDA graph",
    ]  # fmt: skip
    labels = [t.label for t in stacks.lossless(nn.Sequential(nn.Conv2d(3, 4, 3)), "training", "cuda")]
    assert "torch.compile reduce-overhead" in labels
    assert "channels last >> torch.compile" in labels
    over = stacks.over(baselines.compiled >> stacks.cuda_graph, stacks.lossy("inference"))
    assert any("fp8" in t.label and "CUDA graph" in t.label for t in over)
    assert all(t.contract == "lossy" for t in over)


def test_what_needs_a_gpu_says_so_on_a_cpu(monkeypatch):
    monkeypatch.setattr(stacks, "lossless", lambda *a: (fast(2.0),))
    found = optimize(model(), inputs=X, quality=rough, loss_budget=0.1)
    assert found.chosen.startswith("2.0x")
    assert found.report().count("not tried: needs a CUDA device") == 3


def test_channels_last_gives_the_same_values():
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    image = torch.randn(2, 3, 9, 11)
    turned = stacks.channels_last.apply(plain, (image,))
    torch.testing.assert_close(turned(image), plain(image))
    assert turned(image).is_contiguous(memory_format=torch.channels_last)
    assert plain[0].weight.is_contiguous()
    with pytest.raises(Unsupported, match="4 dimensions"):
        stacks.channels_last.apply(plain, (image[0],))


def test_sdpa_switches_transformers_attention_on_a_copy(every_call_takes_a_microsecond):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
        attn_implementation="eager",
    )  # fmt: skip
    plain = transformers.BertModel(config, add_pooling_layer=False).eval()
    batch = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    labels = [t.label for t in stacks.lossless(plain, "inference", "cpu")]
    assert labels[2:4] == ["SDPA", "SDPA >> torch.compile"]
    other = shared_copy(plain)
    stacks.sdpa.apply(other, (batch,))
    assert other.config._attn_implementation == "sdpa"
    assert plain.config._attn_implementation == "eager"
    assert other.encoder.layer[0].attention.self.config._attn_implementation == "sdpa"
    with torch.no_grad():
        torch.testing.assert_close(other(**batch)[0], plain(**batch)[0])
    with pytest.raises(Unsupported, match="nothing to switch"):
        stacks.sdpa.apply(other, (batch,))
    found = optimize(plain, inputs=batch, techniques=[stacks.sdpa])
    assert "SDPA" in {t.label for t in found.trials.ok}


def test_two_of_four_refuses_what_it_cannot_prune():
    with pytest.raises(Unsupported, match="2:4 fits no layer"):
        stacks.two_of_four.apply(nn.Sequential(nn.Linear(13, 7)), (X,))
    pruned = stacks.two_of_four.definition(nn.Sequential(nn.Linear(16, 8)), (X,))
    assert ((pruned[0].weight.unflatten(1, (-1, 4)) != 0).sum(-1) <= 2).all()


# ---- wrong input -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.functional.relu}, "model is function; an nn.Module is needed"),
        ({"model": nn.ReLU()}, "no floating-point parameters"),
        ({"model": Ticking().requires_grad_(False), "workload_type": "training"}, "no parameter that requires a gradient"),
        ({"workload_type": "serving"}, "workload_type is 'serving'; accepted are 'inference', 'training'"),
        ({"performance_target": "speed"}, "performance_target is 'speed'; accepted are 'latency', 'throughput'"),
        ({"quality": rough}, "quality is given without loss_budget"),
        ({"loss_budget": 0.1}, "loss_budget is given without quality"),
        ({"quality": 3, "loss_budget": 0.1}, "quality is int; a function"),
        ({"quality": rough, "loss_budget": 1.5}, "loss_budget is 1.5; accepted are numbers from 0 to 1"),
        ({"quality": rough, "loss_budget": float("nan")}, "loss_budget is nan"),
        ({"inputs": 3}, "inputs is int; a tensor, a tuple of positional inputs or a mapping"),
        ({"inputs": (3,)}, "inputs holds no tensor"),
        ({"inputs": ({"x": X},)}, "inputs holds one mapping in a sequence"),
        ({"inputs": {1: X}}, "inputs has the key 1; a mapping is passed by name"),
        ({"inputs": X.to("meta")}, "inputs holds a tensor on 'meta', and the model is on 'cpu'"),
        ({"device": "tpu"}, "device is 'tpu'; accepted are 'cpu' and 'cuda'"),
        ({"budget": 0}, "budget is 0"),
        ({"techniques": ["fast"]}, "techniques holds a str"),
        ({"techniques": [fast(2.0), fast(2.0)]}, "techniques holds '2.0x.times=2.0.', which is there already"),
        ({"techniques": [Technique("s", refuses, on="step")]}, "wraps a whole timed step"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(change, message):
    arguments = {"model": model(), **change}
    with pytest.raises(ValueError, match=message):
        optimize(arguments.pop("model"), **arguments)


def test_an_integer_model_is_refused():
    whole = nn.Embedding(4, 3, _weight=torch.ones(4, 3))
    whole.weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"no floating-point parameters \(it has int8\)"):
        optimize(whole)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_no_gpu_is_said_plainly():
    with pytest.raises(ValueError, match="no usable CUDA GPU here"):
        optimize(model(), device="cuda")


def test_an_optimised_model_is_not_optimised_again(tuned):
    with pytest.raises(ValueError, match="optimised already"):
        optimize(tuned)


# ---- the call as REQUIREMENTS has it ------------------------------------------------------------------------------------------------------


def test_the_call_of_row_2_3_as_written(monkeypatch):
    monkeypatch.setattr(stacks, "lossless", lambda *a: (fast(2.0),))
    for workload_type in ("inference", "training"):
        for performance_target in ("latency", "throughput"):
            found = CustomHardwareAdapter.auto_detect(device="cpu").optimize_model(
                model=Ticking().eval(), workload_type=workload_type, performance_target=performance_target
            )
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found(X)
            assert found.chosen.startswith("2.0x")


# ---- on a GPU ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_graph_takes_named_inputs_and_gives_copies():
    layer = nn.Linear(13, 7).cuda()
    x = X.cuda()
    call = stacks.cuda_graph.apply(Named(layer), ({"x": x, "flag": True},))
    first = call(flag=True, x=x)
    kept = first["y"].clone()
    call(x=2 * x, flag=True)
    torch.testing.assert_close(first["y"], kept)
    torch.testing.assert_close(call(x=2 * x, flag=True)["y"], layer(2 * x).detach())
    with pytest.raises(Unsupported, match="captured with the argument"):
        call(x=x, flag=False)


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *, x, flag):
        return {"y": self.inner(x) if flag else x}


@pytest.mark.gpu
def test_reduce_overhead_keeps_outputs_and_gradients():
    plain = nn.Sequential(nn.Linear(13, 7), nn.Tanh()).cuda()
    x = X.cuda()
    call = stacks.reduce_overhead.apply(plain, (x,))
    kept = []
    for scale in (1.0, 2.0, 3.0, 4.0):
        plain.zero_grad()
        out = call(scale * x)
        out.sum().backward()
        grad = plain[0].weight.grad.clone()
        plain.zero_grad()
        exact = plain(scale * x)
        exact.sum().backward()
        torch.testing.assert_close(grad, plain[0].weight.grad)
        kept.append((out, exact))
    for out, exact in kept:
        torch.testing.assert_close(out, exact)


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_right_whatever_is_chosen():
    plain = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).cuda().eval()
    x = torch.randn(16, 64, device="cuda")
    found = optimize(plain, inputs=x, budget=1.0)
    torch.testing.assert_close(found(x), plain(x).detach(), rtol=1e-3, atol=1e-3)
    assert {"CUDA graph", "torch.compile >> CUDA graph"} <= {t.label for t in found.trials.ok}
    with pytest.raises(ValueError, match="move it first"):
        optimize(plain, inputs=x, device="cpu")
