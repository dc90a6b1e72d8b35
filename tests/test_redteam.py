"""The red team: every cheat really cheats and fools a naive benchmark, measure catches it, and honest techniques pass."""

import importlib
import random
import threading
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kpt_lab.redteam as red
from kpt_lab import check
from kpt_lab.baselines import eager
from kpt_lab.core import Trial, Trials
from kpt_lab.redteam import forged, late, stale, tampered

NEEDS_CUDA = {t.name for t in (*red.cheats, *red.honest) if "cuda" in t.requires}
CPU_CHEATS = [t for t in red.cheats if t.name not in NEEDS_CUDA]
CPU_HONEST = [t for t in red.honest if t.name not in NEEDS_CUDA]
CALLS = 60

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # importing torch's compiler says it


@pytest.fixture(autouse=True)
def _clean():
    with red.undone():
        yield


def problem(device="cpu", seed=0):
    return red.target.make(device=device, dtype=torch.float32, seed=seed, rows=64, cols=96)


def flops(step):
    """FLOPs of matrix products that a call runs on this thread, and its output: a clock without noise."""
    with FlopCounterMode(display=False) as counter:
        output = step()
    return counter.get_total_flops(), output


def naive(technique):
    """What a careless benchmark does: compare one answer, then time calls on that input. Share of the work that it saw, accepted?"""
    p = problem()
    inputs = p.inputs[0]
    full, _ = flops(lambda: [p.fn(*inputs) for _ in range(CALLS)])
    expected = p.fn(*inputs).clone()
    candidate = technique.apply(p.fn, inputs, **technique.knobs)
    p.fn(*inputs)  # warms up, and frees a right answer
    output = candidate(*inputs)
    late.jobs.join()  # looked at later
    accepted = not (expected - output).abs().max() > 1e-3

    def time_calls():
        return [candidate(*inputs) for _ in range(CALLS)]

    seen, _ = flops(time_calls)
    late.jobs.join()
    return seen / full, accepted


SKIPPERS = (
    late.worker_thread, late.lazy_output, late.tensor_subclass, stale.cached_by_identity, stale.cached_by_version,
    stale.cached_by_sample, stale.cached_by_value, stale.first_answer, stale.previous_buffer, stale.patient, stale.one_in_three,
    stale.knows_the_harness, stale.knows_the_loop, forged.remembers_in_input, forged.nan_output, tampered.rewrites_specification,
    tampered.loaded_dice,
)  # fmt: skip


@pytest.mark.parametrize("technique", SKIPPERS, ids=lambda t: t.name)
def test_a_naive_benchmark_accepts_the_answer_and_misses_work(technique):
    share, accepted = naive(technique)
    assert accepted
    assert share < 0.9


@pytest.mark.parametrize("technique", CPU_HONEST, ids=lambda t: t.name)
def test_honest_techniques_do_the_work_and_are_right_on_new_values(technique):
    p = problem()
    inputs = tuple(t.clone() for t in p.inputs[0])
    candidate = technique.apply(p.fn, inputs, **technique.knobs)
    for values in (*p.inputs, *problem(seed=1).inputs):
        for mine, value in zip(inputs, values, strict=True):
            mine.copy_(value)
        exact = p.fn(*(t.double() for t in inputs))
        # 96 products of rounded numbers in each logit, then a softmax: far below a thousand roundoffs of the largest answer
        assert (candidate(*inputs) - exact).abs().max() <= 1000 * 2**-24 * exact.max()
        assert all(torch.equal(mine, value) for mine, value in zip(inputs, values, strict=True))


@pytest.mark.parametrize(
    "technique", [t for t in CPU_CHEATS if t.name in {x.name for x in SKIPPERS[3:10]}], ids=lambda t: t.name
)
def test_caches_are_right_before_the_values_repeat_or_change(technique):
    p = problem()
    candidate = technique.apply(p.fn, p.inputs[0], **technique.knobs)
    assert torch.equal(candidate(*p.inputs[0]), p.fn(*p.inputs[0]))


def changed_in_place(technique, warm=1):
    """Whether a candidate is right after its inputs have got new values in place."""
    p = problem()
    inputs = tuple(t.clone() for t in p.inputs[0])
    candidate = technique.apply(p.fn, inputs, **technique.knobs)
    for _ in range(warm):
        candidate(*inputs)
    for mine, value in zip(inputs, p.inputs[1], strict=True):
        mine.copy_(value)
    return torch.allclose(candidate(*inputs), p.fn(*inputs))


@pytest.mark.parametrize("technique", [stale.cached_by_version, stale.cached_by_sample, stale.cached_by_value], ids=str)
def test_careful_caches_stay_right_when_values_change(technique):
    assert changed_in_place(technique)


@pytest.mark.parametrize(
    ("technique", "warm"), [(stale.cached_by_identity, 1), (stale.first_answer, 1), (stale.previous_buffer, 3)]
)
def test_careless_caches_give_old_answers_for_new_values(technique, warm):
    assert not changed_in_place(technique, warm)


def test_the_worker_thread_writes_after_the_call_has_returned():
    p, let_go = problem(), threading.Event()

    def slow(*inputs):
        if threading.current_thread() is not threading.main_thread():
            assert let_go.wait(30)
        return p.fn(*inputs)

    output = late.worker_thread.apply(slow, p.inputs[0])(*p.inputs[0])
    output.fill_(-1.0)
    assert not late.jobs.empty() or late.jobs.unfinished_tasks == 1
    let_go.set()
    late.jobs.join()
    assert torch.equal(output, p.fn(*p.inputs[0]))


def test_the_watcher_thread_has_the_answer_before_the_call():
    p = problem()
    inputs = tuple(t.clone() for t in p.inputs[0])
    candidate = late.watcher_thread.apply(p.fn, inputs)
    candidate(*inputs)
    for attempt in range(200):  # waits until the thread has had its turn
        for mine, value in zip(inputs, p.inputs[attempt % 3], strict=True):
            mine.copy_(value)
        time.sleep(0.01)
        work, output = flops(lambda: candidate(*inputs))
        assert torch.equal(output, p.fn(*inputs))
        if not work:
            return
    pytest.fail("the watcher never had an answer ready")


def test_lazy_outputs_look_like_tensors_and_compute_when_looked_at():
    p, calls = problem(), []

    def counted(*inputs):
        calls.append(1)
        return p.fn(*inputs)

    for technique in (late.lazy_output, late.tensor_subclass):
        candidate = technique.apply(counted, p.inputs[0])
        calls.clear()
        output = candidate(*p.inputs[0])
        assert isinstance(output, torch.Tensor)
        assert not calls
        assert torch.equal(torch.sum(output), p.fn(*p.inputs[0]).sum())
        assert len(calls) == 1


def test_the_patient_and_the_watchful_are_honest_where_they_are_checked():
    p = problem()

    def check(candidate):
        return torch.allclose(candidate(*p.inputs[1]), p.fn(*p.inputs[1]))

    def time_call(candidate):
        return candidate(*p.inputs[2])

    watchful = stale.knows_the_harness.apply(p.fn, p.inputs[0])
    assert check(watchful)
    assert torch.allclose(time_call(watchful), p.fn(*p.inputs[1]))  # the old answer
    patient = stale.patient.apply(p.fn, p.inputs[0], after=5)
    assert [torch.allclose(patient(*p.inputs[0]), p.fn(*p.inputs[0])) for _ in range(7)] == [True] * 5 + [False] * 2


def test_inputs_are_overwritten_or_returned():
    p = problem()
    for technique in (forged.mutated_input, forged.remembers_in_input):
        inputs = tuple(t.clone() for t in p.inputs[0])
        assert torch.equal(technique.apply(p.fn, inputs)(*inputs), p.fn(*p.inputs[0]))
        assert not torch.equal(inputs[0], p.inputs[0][0])
    assert forged.returns_input.apply(p.fn, p.inputs[0])(*p.inputs[0]) is p.inputs[0][0]
    half, _ = flops(lambda: forged.half_rows.apply(p.fn, p.inputs[0])(*p.inputs[0]))
    assert half == flops(lambda: p.fn(*p.inputs[0]))[0] // 2


def test_lower_precision_is_as_coarse_as_bfloat16_but_says_float32():
    p = problem()
    x, weight = p.inputs[0]
    exact = p.fn(x.double(), weight.double())
    output = forged.lower_precision.apply(p.fn, (x, weight))(x, weight)
    assert output.dtype is torch.float32
    error = (output - exact).abs().max() / exact.max()
    assert 2**-12 < error < 2**-4


def test_unwritten_memory_holds_a_right_answer_that_was_just_freed():
    p = problem()
    candidate = forged.uninitialised.apply(p.fn, p.inputs[0])
    expected, hits, kept = p.fn(*p.inputs[0]), 0, []
    work, output = flops(lambda: candidate(*p.inputs[0]))
    assert work == 0
    assert output.shape == expected.shape
    for _ in range(50):
        right = p.fn(*p.inputs[0])
        where = right.data_ptr()
        del right
        output = candidate(*p.inputs[0])  # nothing else asks for memory in between
        # the allocator may write its lists into the first words of a freed block
        hits += output.data_ptr() == where and bool((output == expected).float().mean() > 0.99)
        kept.append(output)  # so that the next turn finds the heap in another state
    assert hits > 0


def test_patched_clocks_run_slow_and_are_put_back():
    ticks = iter((1000, 2000))
    assert tampered._slow(lambda: next(ticks))() == 1000 + 1000 // tampered.SLOWDOWN
    right = time.perf_counter_ns
    p = problem()
    with red.undone():
        tampered.patched_timer.apply(p.fn, p.inputs[0])
        assert time.perf_counter_ns is not right
    assert time.perf_counter_ns is right
    tampered.patched_for_one_reading.apply(p.fn, p.inputs[0])(*p.inputs[0])
    assert time.perf_counter_ns is not right
    time.perf_counter_ns()
    assert time.perf_counter_ns is right


def test_neighbours_get_slower_and_the_cheat_does_not():
    p = problem()
    one, _ = flops(lambda: p.fn(*p.inputs[0]))
    with red.undone():
        mine = tampered.slower_by_mode.apply(p.fn, p.inputs[0])
        assert flops(lambda: p.fn(*p.inputs[0]))[0] == 2 * one
        assert flops(lambda: mine(*p.inputs[0]))[0] == one
    assert flops(lambda: p.fn(*p.inputs[0]))[0] == one
    calls, right = [], torch.softmax
    torch.softmax = lambda *a, **k: calls.append(1) or right(*a, **k)
    try:
        with red.undone():
            mine = tampered.slower_softmax.apply(p.fn, p.inputs[0])
            mine(*p.inputs[0])
            assert len(calls) == 1
            p.fn(*p.inputs[0])
            assert len(calls) == 4
    finally:
        torch.softmax = right


def test_settings_specification_and_dice_are_changed_and_put_back():
    p = problem()
    precision, code = torch.get_float32_matmul_precision(), p.fn.__code__
    with red.undone():
        tampered.global_precision.apply(p.fn, p.inputs[0])
        assert torch.get_float32_matmul_precision() == "medium" != precision
        rewriting = tampered.rewrites_specification.apply(p.fn, p.inputs[0])
        for _ in range(stale.PATIENCE):
            rewriting(*p.inputs[0])
        assert torch.equal(p.fn(*p.inputs[0]), p.inputs[0][0])
        tampered.loaded_dice.apply(p.fn, p.inputs[0])
        assert random.Random(0).random() == 0.999
    assert torch.get_float32_matmul_precision() == precision
    assert p.fn.__code__ is code
    assert random.Random(0).random() != 0.999


@pytest.mark.skipif(torch.get_num_threads() == 1, reason="torch has one thread here: nothing to take from the baseline")
def test_threads_are_taken_from_the_others():
    p, threads = problem(), torch.get_num_threads()
    seen = []
    candidate = tampered.fewer_threads.apply(lambda *inputs: seen.append(torch.get_num_threads()), p.inputs[0])
    candidate(*p.inputs[0])
    assert (seen, torch.get_num_threads()) == ([threads], 1)


def test_every_cheat_has_a_sentence_and_keywords():
    assert len(red.cheats) >= 13
    assert len({t.name for t in (*red.cheats, *red.honest)}) == len(red.cheats) + len(red.honest)
    for technique in (*red.cheats, *red.honest):
        assert technique.apply.__doc__.strip().endswith(".")
    assert set(red.keywords) == {t.name for t in (*red.cheats, *red.afterwards)}
    assert all(word and word == word.lower() for words in red.keywords.values() for word in words)


def test_escape_wants_a_verdict_with_the_trick_and_no_innocent_blamed():
    trial = Trial("w", "NaN output", status="wrong", advice="gives NaN")
    assert red.escape(trial) == ""
    assert red.escape(trial, Trials([Trial("w", "eager")])) == ""
    assert "eager was blamed" in red.escape(trial, Trials([Trial("w", "eager", status="rejected", advice="x")]))
    assert red.escape(Trial("w", "NaN output")) == "status is ok"
    assert "names none of nan" in red.escape(Trial("w", "NaN output", status="wrong", advice="error 3"))
    with pytest.raises(ValueError, match="trial is of 'eager'"):
        red.escape(Trial("w", "eager"))


# ---- the six written afterwards ----------------------------------------------------------------------------------------------------

AFTERWARDS = {t.name: t for t in red.afterwards}
GAINS_NOTHING = "knows the blend"  # new inputs are no plain blend any more, so it computes honestly


def test_six_cheats_were_written_afterwards_and_stand_apart():
    assert len(AFTERWARDS) == 6
    assert not AFTERWARDS.keys() & {t.name for t in (*red.cheats, *red.honest)}
    assert GAINS_NOTHING in AFTERWARDS
    assert all(t.apply.__doc__.strip().endswith(".") for t in red.afterwards)


def test_the_inter_op_future_fills_the_output_that_was_returned():
    p, module = problem(), importlib.import_module("kpt_lab.redteam.afterwards")
    module.pending.clear()
    candidate = AFTERWARDS["inter-op future"].apply(p.fn, p.inputs[0])
    alive = set(threading.enumerate())
    output = candidate(*p.inputs[1])
    assert set(threading.enumerate()) == alive
    assert module.pending.pop().wait().data_ptr() == output.data_ptr()
    torch.testing.assert_close(output, p.fn(*p.inputs[1]))


def test_the_profile_hook_has_the_answer_ready_before_the_call():
    p = problem()
    inputs = tuple(t.clone() for t in p.inputs[0])
    candidate = AFTERWARDS["works ahead"].apply(p.fn, inputs)
    candidate(*inputs)

    def write():
        for mine, value in zip(inputs, p.inputs[1], strict=True):
            mine.copy_(value)

    write()
    work, output = flops(lambda: candidate(*inputs))
    assert work == 0
    assert torch.equal(output, p.fn(*p.inputs[1]))


def test_packed_weights_are_right_until_the_weight_changes():
    p = problem()
    candidate = AFTERWARDS["packed weights"].apply(p.fn, p.inputs[0])
    torch.testing.assert_close(candidate(*p.inputs[0]), p.fn(*p.inputs[0]))
    assert not changed_in_place(AFTERWARDS["packed weights"])


def test_a_known_blend_takes_no_product():
    p = problem()
    candidate = AFTERWARDS["knows the blend"].apply(p.fn, p.inputs[0])
    for inputs in p.inputs:
        candidate(*inputs)
    blended = tuple(torch.lerp(a, b, 0.3) for a, b in zip(p.inputs[2], p.inputs[0], strict=True))
    work, output = flops(lambda: candidate(*blended))
    assert work == 0
    torch.testing.assert_close(output, p.fn(*blended))
    other = problem(seed=1).inputs[0]
    assert flops(lambda: candidate(*other))[0] > 0
    assert torch.equal(candidate(*other), p.fn(*other))


def test_recorded_times_are_found_and_shortened():
    class Record:
        pass

    p, record = problem(), Record()
    record.step = AFTERWARDS["edits the record"].apply(p.fn, p.inputs[0])
    record.samples = []
    for _ in range(12):
        assert torch.equal(record.step(*p.inputs[0]), p.fn(*p.inputs[0]))
        record.samples.append(1000)
    assert record.samples == [800] * 11 + [1000]


def test_the_dispatcher_multiplies_twice_for_others_only(monkeypatch):
    p, calls, right = problem(), [], torch.ops.aten.mm.out
    expected = p.fn(*p.inputs[0])
    monkeypatch.setattr(torch.ops.aten.mm, "out", lambda *a, **k: calls.append(1) or right(*a, **k))
    with red.undone():
        candidate = AFTERWARDS["slower by dispatcher"].apply(p.fn, p.inputs[0])
        torch.testing.assert_close(candidate(*p.inputs[0]), expected)
        assert len(calls) == 1
        torch.testing.assert_close(p.fn(*p.inputs[0]), expected)
        assert len(calls) == 3
    p.fn(*p.inputs[0])
    assert len(calls) == 3


# ---- measure against the red team ------------------------------------------------------------------------------------------------


def measured(technique, device="cpu"):
    from kpt_lab.measure import measure

    torch.set_num_threads(max(2, torch.get_num_threads()))
    trials = measure(red.target, [eager, technique], device=device, processes=0, budget=0.5, **red.SIZES[device])
    return trials.where(technique=technique.name)[0], trials


@pytest.mark.parametrize("technique", CPU_CHEATS, ids=lambda t: t.name)
def test_measure_catches_the_cheat_and_names_the_trick(technique):
    trial, cell = measured(technique)
    assert not red.escape(trial, cell), f"{red.escape(trial, cell)}: {trial.status}, {trial.advice}"


@pytest.mark.parametrize("name", [name for name in AFTERWARDS if name != GAINS_NOTHING])
def test_measure_catches_the_late_cheat(name):
    trial, cell = measured(AFTERWARDS[name])
    assert not red.escape(trial, cell), f"{red.escape(trial, cell)}: {trial.status}, {trial.advice}"


def test_knowing_the_blend_helps_no_more():
    sets = problem().inputs
    buffers = check.clone_inputs(sets[0])
    check.fresh(buffers, sets, (0, 1, 0.4))
    plain = [0.6 * a + 0.4 * b for a, b in zip(sets[0], sets[1], strict=True)]
    assert all(not torch.allclose(mine, blend) for mine, blend in zip(buffers, plain, strict=True))


@pytest.mark.parametrize("technique", CPU_HONEST, ids=lambda t: t.name)
def test_measure_does_not_flag_honest_techniques(technique):
    trial, _ = measured(technique)
    assert trial.status == "ok", trial.advice


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
@pytest.mark.parametrize("technique", red.cheats, ids=lambda t: t.name)
def test_measure_catches_the_cheat_on_cuda(technique):
    trial, cell = measured(technique, "cuda")
    assert not red.escape(trial, cell), f"{red.escape(trial, cell)}: {trial.status}, {trial.advice}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
@pytest.mark.parametrize("technique", red.honest, ids=lambda t: t.name)
def test_measure_does_not_flag_honest_techniques_on_cuda(technique):
    trial, _ = measured(technique, "cuda")
    assert trial.status == "ok", trial.advice
