"""Attentions whose scores are too many to hold are checked at small lengths, before anything runs at their own."""

import dataclasses

import pytest
import torch
from torch import nn

from kpt_lab import baselines
from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import differential, explain, flashlight, lower

LENGTH = 520  # a length that is no other extent


@pytest.fixture(autouse=True)
def few_scores_are_many(monkeypatch):
    monkeypatch.setattr(differential, "LARGEST", 1 << 16)


def banded(q, k, v):
    place = torch.arange(q.shape[-2])
    near = (place[:, None] >= place) & (place[:, None] - place < 33)
    return torch.softmax((q @ k.mT / 4).masked_fill(~near, -1e9), -1) @ v


class Layer(nn.Module):
    """One head over its input, with a table of positions as long as the longest input."""

    def __init__(self):
        super().__init__()
        self.project, self.places = nn.Linear(16, 48), nn.Parameter(torch.randn(2 * LENGTH, 16))

    def forward(self, x):
        q, k, v = self.project(x + self.places[: x.shape[1]]).chunk(3, -1)
        return torch.softmax(q @ k.mT / 4, -1) @ v


@torch.no_grad()
@pytest.mark.parametrize("fn", [banded, Layer()], ids=["function", "module"])
def test_it_is_compared_at_small_lengths(fn):
    torch.manual_seed(0)
    args = (torch.randn(1, LENGTH, 16),) if isinstance(fn, nn.Module) else tuple(torch.randn(3, 2, LENGTH, 16))
    fused = flashlight.apply(fn, args, kernel="auto")
    (entry,) = explain(fused).entries
    assert "random at odd lengths" in entry.lowering.checked
    assert entry.lowering.checked.endswith("in a capture with symbolic lengths")
    torch.testing.assert_close(fused(*args), fn(*args), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_differs_there_is_refused(monkeypatch):
    replace = lower.replace

    def wrong(gm, attention, *, options):
        parts = tuple(dataclasses.replace(part, scale=1.1 * part.scale) for part in attention.parts)
        return replace(gm, dataclasses.replace(attention, parts=parts), options=options)

    monkeypatch.setattr(lower, "replace", wrong)
    with pytest.raises(Unsupported, match=r"differs from the original by .* random inputs at small sizes"):
        flashlight.apply(banded, tuple(torch.randn(3, 2, LENGTH, 16)))


@torch.no_grad()
def test_lengths_written_as_numbers_are_not_checked_and_said_so():
    def fixed(q, k, v):
        q, k, v = q.view(2, LENGTH, 16), k.view(2, LENGTH, 16), v.view(2, LENGTH, 16)
        return torch.softmax(q @ k.mT, -1) @ v

    fused = flashlight.apply(fixed, tuple(torch.randn(3, 2, LENGTH, 16)))
    assert "not checked" in str(explain(fused))


@torch.no_grad()
def test_each_rewrite_has_compilations_of_its_own():
    def plain(q, k, v):
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v

    for n in range(12):  # more than torch.compile allows one function
        args = torch.randn(3, 1 + n % 2, 7 + n, 16 + 8 * (n % 3))
        fused = flashlight.apply(plain, tuple(args))
        torch.testing.assert_close(fused(*args), plain(*args), rtol=1e-4, atol=1e-5)
        assert len(fused.backend.reports) == 1


@torch.no_grad()
def test_a_guard_against_empty_rows_is_fused_and_compared():
    def guarded(q, k, v, mask):
        weights = torch.softmax((q @ k.mT).masked_fill(~mask, float("-inf")), -1)
        return torch.nan_to_num(weights, nan=0.0) @ v

    mask = torch.rand(9, 9) < 0.5
    mask[3] = False
    args = (*torch.randn(3, 2, 9, 16), mask)
    fused = flashlight.apply(guarded, args)
    assert "adversarial" in str(explain(fused))
    torch.testing.assert_close(fused(*args), guarded(*args), rtol=1e-4, atol=1e-5)


def test_lengths_that_may_leave_rows_empty_train():
    def decoded(q, k, v, filled):
        keep = torch.arange(k.shape[-2]) < filled[:, None, None]
        return torch.softmax((q @ k.mT).masked_fill(~keep, float("-inf")), -1) @ v

    inputs = [torch.randn(3, n, 16).requires_grad_() for n in (2, 9, 9)]
    filled = torch.tensor([4, 9, 1])
    fused = flashlight.apply(decoded, (*inputs, filled))
    assert explain(fused).matched == 1
    for one, other in zip(
        torch.autograd.grad(fused(*inputs, filled).sum(), inputs),
        torch.autograd.grad(decoded(*inputs, filled).sum(), inputs), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_compiled_rewrite_explains_itself_before_its_first_call():
    fused = (flashlight >> baselines.compiled).apply(banded, tuple(torch.randn(3, 2, 9, 16)))
    assert explain(fused).matched == 1


class Padded(nn.Module):
    """One head whose mask is looked up by batch row: torch asks of the lengths only that they are not fewer than the rows."""

    def __init__(self, width):
        super().__init__()
        self.project = nn.Linear(width, 3 * width)

    def forward(self, lengths, x):
        there = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        q, k, v = self.project(x).chunk(3, -1)
        row = torch.arange(x.shape[0], device=x.device)[:, None, None]
        seen = there[row, torch.arange(x.shape[1], device=x.device)]
        return torch.softmax((q @ k.mT / 4).masked_fill(~seen, torch.finfo(q.dtype).min), -1) @ v


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_indices_that_would_fall_outside_are_not_run(device):
    for rows, length, width in ((4, LENGTH + 8, 16), (9, LENGTH, 24)):  # the second time torch takes the rows for symbolic
        layer = Padded(width).to(device)
        args = torch.linspace(3, length, rows, device=device).long(), torch.randn(rows, length, width, device=device)
        fused = flashlight.apply(layer, args)
    (entry,) = explain(fused).entries
    assert "adversarial at odd lengths" in entry.lowering.checked
    assert "unequal lengths" in entry.lowering.checked  # compared or not, by which of the two torch names first
    torch.testing.assert_close(fused(*args), layer(*args), rtol=1e-2, atol=1e-2)
