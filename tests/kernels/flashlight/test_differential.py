"""Half precision in the check before first use: two ways to round are told from two meanings by the original in float64."""

import dataclasses

import pytest
import torch
from idioms import by_name

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import differential, explain, flashlight, lower


def made(dtype, name="ExponentTemperature"):
    return by_name[name].make(0, dtype)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ExponentTemperature", "cosine_after_product"])
def test_roundings_of_bfloat16_are_not_taken_for_another_meaning(name):
    fn, args = made(torch.bfloat16, name)
    assert "1 of 1 softmaxes fused" in str(explain(flashlight.apply(fn, args)))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_another_meaning_is_still_refused(dtype, monkeypatch):
    replace = lower.replace

    def wrong(gm, attention, *, options):
        parts = tuple(dataclasses.replace(part, scale=1.5 * part.scale) for part in attention.parts)
        return replace(gm, dataclasses.replace(attention, parts=parts), options=options)

    monkeypatch.setattr(lower, "replace", wrong)
    with pytest.raises(Unsupported, match="differs from the original"):
        flashlight.apply(*made(dtype))


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ([1.01, 2.0], [1.01, 2.0], True),
        ([1.03, 2.0], [1.02, 2.0], True),
        ([1.05, 2.0], [1.02, 2.0], False),
        ([1.01, float("nan")], [1.02, 2.0], False),
        ([1.01, float("inf")], [1.02, float("inf")], False),
        ([1.01], [1.02, 2.0], False),
    ],
)
def test_no_worse_is_at_most_twice_the_error(given, wanted, expected):
    tensors = torch.tensor(given), torch.tensor(wanted)
    assert differential._no_worse(*tensors, torch.tensor([1.0, 2.0], dtype=torch.float64)) is expected
    assert not differential._no_worse(tensors[0].bfloat16(), tensors[1], torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_sizes_that_are_equal_in_the_call_are_equal_in_the_check():
    found = dict(differential._sizes([("rows of a table", 9), ("length", 520), ("batch", 9)]))
    assert found["small sizes"] == {"rows of a table": 9, "length": 39, "batch": 9}
    assert found["odd lengths"] == {"rows of a table": 3, "length": 5, "batch": 3}
    assert found["unequal lengths"] == {"rows of a table": 3, "length": 5, "batch": 7}
    assert list(dict(differential._sizes([("length", 520), ("batch", 9)]))) == ["small sizes", "odd lengths", "length 1"]
