"""n:m masks against brute force over every choice of n of m, their invariants, and what they refuse."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kpt_lab.sparsity import SparsityPattern, magnitude_mask, wanda_mask
from kpt_lab.sparsity.patterns import as_pattern

PATTERNS = [SparsityPattern(2, 4), SparsityPattern(1, 4), SparsityPattern(6, 8), SparsityPattern(2, 3), SparsityPattern(1, 2)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def best_choice(scores: np.ndarray, n: int) -> tuple[int, ...]:
    """Of all choices of n places, the one whose scores, sorted down, come first; ties by the lowest places.

    Compared as sorted lists and not as sums, which round. combinations() lists choices by rising places and max() keeps the
    first of equals.
    """
    return max(combinations(range(len(scores)), n), key=lambda chosen: sorted((scores[i] for i in chosen), reverse=True))


def brute(scores: np.ndarray, pattern: SparsityPattern) -> np.ndarray:
    """The mask by trying all choices in every group of every row."""
    mask = np.zeros(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], pattern.m):
            group = scores[row, start : start + pattern.m]
            mask[row, [start + i for i in best_choice(group, pattern.n)]] = True
    return mask


def test_there_are_six_masks_in_a_group_and_all_are_chosen_by_some_weight():
    found = set()
    for chosen in combinations(range(4), 2):
        weight = torch.zeros(1, 4)
        weight[0, list(chosen)] = -1.0
        found.add(tuple(magnitude_mask(weight)[0].tolist()))
        assert magnitude_mask(weight)[0].nonzero().flatten().tolist() == list(chosen)
    assert len(found) == 6


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_magnitude_is_the_brute_force_choice(pattern, dtype):
    # few distinct values, so that most groups have ties
    weight = torch.randint(-3, 4, (17, 24)).to(dtype)
    assert np.array_equal(magnitude_mask(weight, pattern).numpy(), brute(weight.abs().double().numpy(), pattern))
    weight = torch.randn(5, 24).to(dtype)
    assert np.array_equal(magnitude_mask(weight, pattern).numpy(), brute(weight.abs().double().numpy(), pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wanda_is_the_brute_force_choice_of_weight_times_norm(pattern, dtype):
    weight, x = torch.randn(9, 24).to(dtype), torch.randn(50, 24) * torch.rand(24).exp()
    norms = np.linalg.norm(x.double().numpy(), axis=0)
    scores = np.abs(weight.double().numpy()) * norms
    assert np.array_equal(wanda_mask(weight, torch.from_numpy(norms), pattern).numpy(), brute(scores, pattern))


def test_wanda_keeps_a_small_weight_of_a_loud_feature():
    weight, norms = torch.tensor([[1.0, 0.1, 0.9, 0.8]]), torch.tensor([1.0, 100.0, 1.0, 1.0])
    assert magnitude_mask(weight).tolist() == [[True, False, True, False]]
    assert wanda_mask(weight, norms).tolist() == [[True, True, False, False]]


def test_of_equal_weights_the_lower_index_stays():
    assert magnitude_mask(torch.tensor([[1.0, -1.0, 1.0, -1.0]])).tolist() == [[True, True, False, False]]
    assert magnitude_mask(torch.tensor([[0.0, 2.0, -0.0, 0.0]])).tolist() == [[True, True, False, False]]
    assert wanda_mask(torch.ones(1, 4), torch.zeros(4)).tolist() == [[True, True, False, False]]


weights = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 6).map(lambda groups: 4 * groups)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@given(weights)
def test_exactly_two_of_four_stay_and_pruning_again_changes_nothing(weight):
    weight = torch.from_numpy(weight)
    mask = magnitude_mask(weight)
    assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    pruned = torch.where(mask, weight, 0)
    assert torch.equal(torch.where(magnitude_mask(pruned), pruned, 0), pruned)


@given(weights, st.randoms(use_true_random=False))
def test_permuting_whole_groups_or_rows_permutes_the_mask(weight, random):
    weight = torch.from_numpy(weight)
    norms = torch.rand(weight.shape[1])
    groups = random.sample(range(weight.shape[1] // 4), weight.shape[1] // 4)
    columns = torch.tensor([4 * group + i for group in groups for i in range(4)])
    rows = torch.tensor(random.sample(range(len(weight)), len(weight)))
    assert torch.equal(magnitude_mask(weight[:, columns]), magnitude_mask(weight)[:, columns])
    assert torch.equal(wanda_mask(weight[:, columns], norms[columns]), wanda_mask(weight, norms)[:, columns])
    assert torch.equal(magnitude_mask(weight[rows]), magnitude_mask(weight)[rows])


@given(weights)
def test_signs_and_powers_of_two_change_no_mask(weight):
    weight = torch.from_numpy(weight).double()
    assert torch.equal(magnitude_mask(-weight / 8), magnitude_mask(weight))


def test_any_layout_gives_the_same_mask():
    weight = torch.randn(12, 8)
    assert torch.equal(magnitude_mask(weight.T.contiguous().T), magnitude_mask(weight))
    assert torch.equal(magnitude_mask(torch.randn(24, 8)[::2].copy_(weight)), magnitude_mask(weight))
    assert magnitude_mask(weight.reshape(3, 4, 8)).shape == (3, 4, 8)
    assert magnitude_mask(weight[0]).shape == (8,)


def test_a_weight_that_needs_gradients_is_read_only():
    weight = torch.nn.Parameter(torch.randn(2, 4))
    assert not magnitude_mask(weight).requires_grad


@pytest.mark.gpu
def test_masks_are_the_same_on_the_gpu():
    weight, norms = torch.randint(-3, 4, (64, 256)).bfloat16(), torch.rand(256, dtype=torch.float64)
    assert torch.equal(magnitude_mask(weight.cuda()).cpu(), magnitude_mask(weight))
    assert torch.equal(wanda_mask(weight.cuda(), norms).cpu(), wanda_mask(weight, norms))


def test_patterns_by_name():
    assert as_pattern("2:4") == SparsityPattern.SPARSE_24 == SparsityPattern(2, 4)
    assert as_pattern("6:8").kept == 0.75
    assert str(SparsityPattern.AUTO) == "auto"
    assert repr(SparsityPattern.SPARSE_24) == "SparsityPattern(2, 4)"
    assert repr(SparsityPattern.AUTO) == "SparsityPattern.AUTO"
    assert len({SparsityPattern.SPARSE_24, SparsityPattern(2, 4), SparsityPattern.AUTO}) == 2


def test_a_mask_needs_a_pattern_of_its_own():
    with pytest.raises(ValueError, match=r"AUTO, which is a choice and no n:m; pass it to prune"):
        magnitude_mask(torch.ones(1, 4), SparsityPattern.AUTO)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (0, 4), (-1, 4), (3, 2), (2.0, 4), (True, 4)])
def test_impossible_patterns_are_refused(n, m):
    with pytest.raises(ValueError, match="0 < n < m"):
        SparsityPattern(n, m)


@pytest.mark.parametrize("pattern", ["2-4", "sparse", ":4", "", None, (2, 4), 24])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="a SparsityPattern or a string"):
        magnitude_mask(torch.ones(1, 4), pattern)


@pytest.mark.parametrize(
    ("weight", "error", "sentence"),
    [
        ([1.0], TypeError, "weight is list"),
        (torch.ones(2, 4, dtype=torch.int8), TypeError, "weight is torch.int8; float16"),
        (torch.ones(2, 4, dtype=torch.complex64), TypeError, "complex64"),
        (torch.ones(2, 6), ValueError, "6 input features, not divisible by 4 as 2:4 needs"),
        (torch.ones(0, 4), ValueError, r"shape \(0, 4\)"),
        (torch.ones(4, 0), ValueError, r"shape \(4, 0\)"),
        (torch.tensor(1.0), ValueError, r"shape \(\)"),
        (torch.full((1, 4), float("nan")), ValueError, "NaN or infinity"),
        (torch.full((1, 4), float("inf")), ValueError, "NaN or infinity"),
        (torch.ones(1, 4, device="meta"), ValueError, "meta device"),
    ],
)
def test_wrong_weights_are_refused_in_a_sentence(weight, error, sentence):
    with pytest.raises(error, match=sentence):
        magnitude_mask(weight)


@pytest.mark.parametrize(
    "norms", [torch.ones(3), torch.ones(1, 4), [1.0] * 4, torch.tensor([1, 1, -1.0, 1]), torch.full((4,), float("nan"))]
)
def test_wrong_norms_are_refused_in_a_sentence(norms):
    with pytest.raises(ValueError, match="norms"):
        wanda_mask(torch.ones(1, 4), norms)
