"""Differences and running sums of ranges: read where they are proved, loaded where they are not, never read wrongly."""

import pytest
import torch
from corpus import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from rewriting import rewritten


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[-2]))


def counted(position, prepend=None, dim=-1):
    """How often a position is not the one before it plus 1, up to each place."""
    return (torch.diff(position, prepend=prepend, dim=dim) != 1).cumsum(dim)


def attention_of(sequence):
    """Causal attention among the places with the same count, which `sequence(n)` gives as (1, n)."""

    def attention(q, k, v):
        n = q.shape[2]
        seen, place = sequence(n), torch.arange(n)
        mask = (seen[:, None, :, None] == seen[:, None, None, :]) & (place[:, None] >= place)
        return (q @ k.mT * 0.25).masked_fill(~mask, -1e9).softmax(-1) @ v

    return attention


def read(sequence, length=9):
    """The mask as it was understood, once the result has been found right."""
    q, k, v = (draw(2, 3, length, 8) + i for i in range(3))
    fn = attention_of(sequence)
    found = rewritten(fn, (q, k, v))
    assert [r.reason for r in found.refusals] == []
    torch.testing.assert_close(found.output.double(), oracle(fn, (q, k, v)), rtol=2e-5, atol=2e-6)
    return str(found.attentions[0].parts[0].mask)


@torch.no_grad()
@pytest.mark.parametrize(
    "sequence",
    [
        lambda n: counted(torch.arange(n)[None], torch.arange(n)[None, :1] - 1),
        lambda n: counted((torch.arange(n) + 7)[None].expand(1, -1), torch.full((1, 1), 6)),
        lambda n: counted(torch.arange(n)[None, :, None], torch.full((1, 1, 1), -1), 1)[..., 0],
        lambda n: counted(torch.arange(n + 1)[None]),
        lambda n: torch.zeros(1, n, dtype=torch.int64).cumsum(-1),
        lambda n: torch.diff(torch.arange(0, 3 * n, 3, dtype=torch.int32), prepend=torch.tensor([-3], dtype=torch.int32))[None],
    ],
)
def test_what_is_the_same_everywhere_leaves_the_mask(sequence):
    assert read(sequence) == "q ≥ k"


@torch.no_grad()
@pytest.mark.parametrize(
    "sequence",
    [
        lambda n: counted(torch.arange(n)[None], torch.arange(n)[None, :1] - 2),  # the first place counts as a new sequence
        lambda n: counted((torch.arange(n) % 4)[None], torch.tensor([[-1]])),  # packed sequences of 4
        lambda n: counted((2 * torch.arange(n))[None], torch.tensor([[-2]])),  # each place is one of its own
        lambda n: counted(torch.arange(n).flip(0)[None], torch.tensor([[n]])),
        lambda n: counted(torch.arange(n - 1)[None], torch.tensor([[-2, -1]])),  # two places in front
        lambda n: (torch.diff(torch.arange(n + 2), n=2) != 0).cumsum(-1)[None],
        lambda n: torch.ones(1, n, dtype=torch.int64).cumsum(-1),
        lambda n: torch.ones(1, n, dtype=torch.bool).cumsum(-1),
        lambda n: (torch.arange(n) > 4).cumsum(-1)[None],
        lambda n: torch.ones(2, n, dtype=torch.int64).cumsum(0)[1:],
        lambda n: torch.ones(1, n).cumsum(-1),
    ],
)
def test_everything_else_is_still_right(sequence):
    read(sequence)


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(start=st.integers(-3, 3), step=st.integers(-2, 2), before=st.integers(-4, 4), wanted=st.integers(-1, 2))
def test_any_range_with_any_place_in_front(start, step, before, wanted):
    def sequence(n):
        position = (torch.arange(n) * step + start)[None]
        return (torch.diff(position, prepend=torch.tensor([[before]])) != wanted).cumsum(-1)

    read(sequence, 7)


def test_symbolic_lengths_too():
    from kpt_lab.kernels.flashlight import explain, flashlight

    fn = attention_of(lambda n: counted(torch.arange(n)[None], torch.arange(n)[None, :1] - 1))
    inputs = {n: [draw(2, 3, n, 16) for _ in "qkv"] for n in (19, 33, 7)}
    fused = flashlight.apply(fn, inputs[19])
    for given_ in inputs.values():
        torch.testing.assert_close(fused(*given_), fn(*given_), rtol=1e-4, atol=1e-5)
    lines = str(explain(fused)).splitlines()
    assert [line for line in lines if "where q ≥ k]" in line] == [line for line in lines if "softmax over k" in line] != []
