"""timer: what it reads is the clock's own movement, nothing else. The clock moves only when a test says so."""

import math

import pytest
import torch

from kpt_lab import timer


def test_now_is_the_clocks_reading(fake_clock):
    assert timer.now() == 0
    fake_clock.advance(17)
    assert timer.now() == 17


@pytest.mark.parametrize("nanoseconds", [0, 1, 999, 123_456_789_012])
def test_call_on_cpu_gives_what_the_clock_advanced_during_the_call(fake_clock, nanoseconds):
    fake_clock.advance(5)

    def step(x, y):
        fake_clock.advance(nanoseconds)
        return x + y

    elapsed, output = timer.call_on_cpu(step, (torch.tensor(1.0), torch.tensor(2.0)))
    assert elapsed == nanoseconds
    assert isinstance(elapsed, int)
    assert output.item() == 3.0


def test_call_on_cpu_passes_on_what_the_step_raises(fake_clock):
    with pytest.raises(ZeroDivisionError):
        timer.call_on_cpu(lambda: 1 // 0, ())


def test_a_clock_replaced_in_the_time_module_changes_nothing(fake_clock, monkeypatch):
    monkeypatch.setattr("time.perf_counter_ns", lambda: 0)
    elapsed, _ = timer.call_on_cpu(fake_clock.advance, (42,))
    assert elapsed == 42


def test_best_time_takes_the_lowest_of_all_calls_in_seconds(fake_clock):
    durations = iter([5_000_000_000, 300, 200, 700])

    def step():
        fake_clock.advance(next(durations))

    assert timer.best_time(step, repeats=3) == pytest.approx(200e-9, rel=1e-12)
    assert next(durations, None) is None  # one call for setting up and three repeats


def test_best_time_is_a_number_even_with_one_repeat(fake_clock):
    assert timer.best_time(lambda: fake_clock.advance(10), repeats=1) == pytest.approx(1e-8)
    assert math.isfinite(timer.best_time(lambda: None, repeats=1))


def test_pause_sleeps_for_the_nanoseconds_that_it_is_given(monkeypatch):
    slept = []
    monkeypatch.setattr("kpt_lab.timer._sleep", slept.append)
    timer.pause(1_500_000)
    assert slept == [pytest.approx(0.0015)]


@pytest.mark.gpu
def test_device_time_is_positive_and_the_output_is_the_steps():
    x = torch.ones(1000, device="cuda")
    wall, output = timer.wall_on_cuda(torch.neg, (x,))
    elapsed, stray, again = timer.device_on_cuda(torch.neg, (x,), wall)
    assert elapsed > 0
    assert stray == 0
    assert torch.equal(output, -x)
    assert torch.equal(again, -x)
