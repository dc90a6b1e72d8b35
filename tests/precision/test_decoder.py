"""The decoder workload: right against float64, its cost counted, and FP8 in it against the plain definition."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import kpt_lab as kpt
from kpt_lab.precision import decoder
from kpt_lab.precision.linear import FP8Linear, fp8_emulated

SMALL = {"tokens": 48, "d": 128, "ff": 208, "layers": 2, "vocabulary": 80}


def test_the_cost_is_what_a_count_of_its_products_gives():
    problem = decoder.step.make(device="cpu", dtype="float32", seed=0, **SMALL)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the fused one on a CPU is not counted
        problem.fn(problem.inputs[0][0])
    linear = 2 * SMALL["tokens"] * (2 * (4 * 128**2 + 3 * 128 * 208) + 128 * 80)
    counted = counter.get_total_flops()  # attention's square is counted whole: two products
    attention = counted - linear
    assert attention == 2 * 4 * 48 * 48 * 128
    assert decoder.step.cost(dtype="bfloat16", **SMALL).flops["bfloat16"] == 3 * linear + attention / 2 * 3.5


def test_the_step_gives_every_gradient():
    problem = decoder.step.make(device="cpu", dtype="float64", seed=0, **SMALL)
    x, upstream = problem.inputs[0]
    y, dx, *gradients = problem.drive(problem.fn)(x, upstream)
    assert len(gradients) == len(list(problem.fn.parameters()))
    direction = torch.randn_like(x)
    step = 1e-6
    with torch.no_grad():
        change = (problem.fn(x + step * direction) - problem.fn(x - step * direction)) / (2 * step)
    torch.testing.assert_close((change * upstream).sum(), (dx * direction).sum(), rtol=1e-6, atol=0)
    assert y.shape == (1, 48, 80)


def test_fp8_in_it_is_a_simulation_here_and_keeps_the_head():
    technique = fp8_emulated(keep=decoder.HEAD)
    problem = decoder.step.make(device="cpu", dtype="float32", seed=0, **SMALL)
    converted = technique.apply(problem.fn, problem.inputs[0], **technique.knobs)
    assert sum(isinstance(part, FP8Linear) for part in converted.modules()) == 14
    assert not isinstance(converted.lm_head, FP8Linear)
    eager, simulated, *_ = kpt.measure(decoder.step, [kpt.baselines.eager, technique], processes=0, budget=0.1, **SMALL)
    assert (eager.status, simulated.status) == ("ok", "ok"), simulated.advice
    assert 4 * eager.metrics["error"].value < simulated.metrics["error"].value < 1


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="d is 100 and tokens 48; d must be a multiple of 128"):
        decoder.step.make(device="cpu", dtype="float32", seed=0, **{**SMALL, "d": 100})


def test_float64_goes_sequence_by_sequence_and_gives_the_same():
    problem = decoder.step.make(device="cpu", dtype="float64", seed=0, **SMALL)
    x, upstream = (torch.randn(3, 16, n, dtype=torch.float64) for n in (128, 80))
    found = problem.drive(problem.fn)(x, upstream)
    whole = x.clone().requires_grad_()
    y = problem.fn(whole)
    wanted = (y.detach(), *torch.autograd.grad(y, (whole, *problem.fn.parameters()), upstream))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in problem.fn.parameters())


def test_the_distance_is_that_of_the_whole_tensor():
    exact = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    assert decoder._distance(torch.tensor([3.0, 4.0, 5.0]), exact) == pytest.approx(1.0)
    assert decoder._distance(exact.float(), exact) == 0
    assert decoder._distance(torch.tensor([3.0, float("nan"), 0.0]), exact) != decoder._distance(exact, exact)
    assert decoder._distance(torch.ones(2), torch.zeros(2)) == float("inf")
