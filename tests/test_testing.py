import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from kpt_lab.testing import (
    assert_close_to_oracle,
    awkward_sizes,
    error_limit,
    guarded,
    scaled_error,
    unit_roundoff,
    worst_error,
)


def softmax(x):
    return torch.softmax(x, dim=-1)


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 11), ("bfloat16", 8), ("float32", 24), ("float64", 53)])
def test_unit_roundoff_is_half_the_gap_above_one(dtype, bits):
    u = unit_roundoff(dtype)
    assert u == 2.0**-bits
    one = torch.ones((), dtype=getattr(torch, dtype))
    above = torch.nextafter(one.double(), torch.tensor(2.0, dtype=torch.float64)) if dtype == "float64" else None
    gap = float(above - 1) if above is not None else torch.finfo(one.dtype).eps
    assert gap == 2 * u
    assert unit_roundoff(torch.int32) == 0


def test_error_limit_ignores_an_own_error_that_is_not_finite():
    assert error_limit("float32", 16, 0.0) == 2.0**-20
    assert error_limit("float32", 16, 1e-3) == 2.0**-20 + 4e-3
    assert error_limit("float32", 16, math.inf) == error_limit("float32", 16, math.nan) == 2.0**-20


@given(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), st.integers(1, 300), st.floats(1e-3, 1e3))
def test_rounding_to_a_dtype_stays_within_its_unit_roundoff(dtype, size, scale):
    reference = torch.randn(size, dtype=torch.float64) * scale
    assert scaled_error(reference.to(dtype), reference) <= unit_roundoff(dtype)


def test_worst_error_by_hand():
    reference = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64)  # rms 2.5
    output = torch.tensor([3.0, 4.5, 0.25, 0.0], dtype=torch.float64)
    error, at = worst_error(output, reference)
    assert (error, at) == (pytest.approx(0.25 / 2.5), 2)  # 0.1; the second is 0.5 / 6.5


@pytest.mark.parametrize(
    ("output", "reference", "close"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([math.nan, 1.0], [0.0, 1.0], False),
        ([0.0, 1.0], [math.nan, 1.0], False),
        ([math.inf, 1.0], [math.inf, 1.0], True),
        ([math.inf, 1.0], [-math.inf, 1.0], False),
        ([math.inf, 1.0], [math.nan, 1.0], False),
        ([math.inf, 1.0], [1e300, 1.0], True),  # beyond float32: it rounds to infinity
        ([3e38, 1.0], [math.inf, 1.0], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([1e-30, 0.0], [0.0, 0.0], False),
    ],
)
def test_special_values_must_match(output, reference, close):
    error = scaled_error(torch.tensor(output), torch.tensor(reference, dtype=torch.float64))
    assert (error == 0) if close else (error > 1)


def test_integers_and_bools_are_exact():
    assert scaled_error(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert scaled_error(torch.tensor([True, False]), torch.tensor([True, True])) == math.inf
    assert scaled_error(torch.empty(0), torch.empty(0)) == 0


def test_worst_error_in_several_chunks(monkeypatch):
    reference = torch.randn(1000, dtype=torch.float64)
    output = reference.float()
    output[777] += 1
    whole = worst_error(output, reference)
    monkeypatch.setattr("kpt_lab.testing.CHUNK", 64)
    assert worst_error(output, reference) == (pytest.approx(whole[0], rel=1e-12), 777)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"output has shape \(2,\); the reference has \(3,\)"):
        scaled_error(torch.zeros(2), torch.zeros(3))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_specification_is_close_to_its_own_oracle(dtype):
    for size in awkward_sizes:
        assert_close_to_oracle(softmax, softmax, torch.randn(3, size), dtype=dtype)


def test_a_wrong_element_is_named():
    def wrong(x):
        y = softmax(x)
        y[1, 2] *= 1.001
        return {"loss": x.sum(), "probabilities": [y]}

    def right(x):
        return {"loss": x.sum(), "probabilities": [softmax(x)]}

    message = (
        r"output\['probabilities'\]\[0\]\[1, 2\]: got .*, the float64 oracle says .*; scaled error .*, limit .* for float32"
    )
    with pytest.raises(AssertionError, match=message):
        assert_close_to_oracle(wrong, right, torch.randn(3, 5))


def test_an_error_just_beyond_the_limit_fails_and_one_just_below_passes():
    x = torch.ones(64)
    u = unit_roundoff("float32")

    def off_by(roundoffs):  # |reference| + rms is 2 here
        return lambda x: x * (1 + 2 * roundoffs * u)

    assert_close_to_oracle(off_by(15), lambda x: x, x, tolerance=16)
    with pytest.raises(AssertionError, match="limit"):
        assert_close_to_oracle(off_by(17), lambda x: x, x, tolerance=16)


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (lambda x: (x, x), "output has leaves"),
        (lambda x: [x.half()], "has dtype torch.float16"),
        (lambda x: [x[:1]], r"has shape torch.Size\(\[1, 4\]\)"),
        (lambda x: [torch.nn.Parameter(x)], "is a Parameter"),
        (lambda x: [x.tolist()], "output has leaves"),
        (lambda x: [x.to("meta")], "has device meta"),
    ],
)
def test_the_kind_of_the_output_must_match(candidate, message):
    with pytest.raises(AssertionError, match=message):
        assert_close_to_oracle(candidate, lambda x: [x], torch.randn(3, 4))


def test_inputs_keep_their_strides_and_gradients():
    seen = []

    def look(x):
        seen.append((x.stride(), x.requires_grad, x.dtype))
        return x * 1

    assert_close_to_oracle(look, look, torch.randn(3, 4).t().requires_grad_(), dtype="bfloat16")
    assert {(stride, grad) for stride, grad, _ in seen} == {((1, 4), True)}
    assert {dtype for *_, dtype in seen} == {torch.float64, torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize(("offset", "where"), [(-1, "1 elements before"), (15, "0 past"), (20, "5 past")])
def test_guards_show_writes_outside(dtype, offset, where):
    original = torch.ones(3, 5).to(dtype)
    copy, check = guarded(original)
    assert torch.equal(copy, original)
    copy.zero_()
    check()
    torch.as_strided(copy, (1,), (1,), copy.storage_offset() + offset).fill_(0)
    with pytest.raises(AssertionError, match=where):
        check()


def test_guards_bring_nan_into_reads_outside():
    copy, _ = guarded(torch.ones(8))
    beyond = torch.as_strided(copy, (10,), (1,), copy.storage_offset() - 1)
    assert beyond.isnan().nonzero().flatten().tolist() == [0, 9]
    assert copy.data_ptr() % 64 == 0  # as aligned as an allocation of its own
    with pytest.raises(ValueError, match="margin is 0"):
        guarded(torch.ones(8), margin=0)


def test_the_fake_clock_is_what_times_are_read_from(fake_clock):
    from kpt_lab import timer

    elapsed, output = timer.call_on_cpu(lambda ns: fake_clock.advance(ns) or "done", (1234,))
    assert (elapsed, output) == (1234, "done")
    assert timer.now() == fake_clock.now_ns() == fake_clock() == 1234
    with pytest.raises(ValueError, match="forward only"):
        fake_clock.advance(-1)
