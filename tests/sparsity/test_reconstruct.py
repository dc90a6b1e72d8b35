"""Least squares against NumPy's and SciPy's solvers in float64, SparseGPT against its paper's formula, and the order of errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from kpt_lab.sparsity import (
    CRITERIA,
    SparsityPattern,
    layer_error,
    least_squares,
    magnitude_mask,
    prune_weight,
    reconstruct,
    sparsegpt,
    wanda_mask,
)


def correlated(seed: int, tokens: int = 1024, features: int = 128, rank: int = 16) -> torch.Tensor:
    """Activations of a few directions and noise, whose features differ in scale by a heavy-tailed factor: (tokens, features)."""
    generator = torch.Generator().manual_seed(seed)
    mix, scale = torch.randn(rank, features, generator=generator), torch.randn(features, generator=generator).exp()
    x = torch.randn(tokens, rank, generator=generator) @ mix + 0.5 * torch.randn(tokens, features, generator=generator)
    return (x * scale).double()


def by_numpy(weight: torch.Tensor, mask: torch.Tensor, x: torch.Tensor, damping: float) -> np.ndarray:
    """Row by row, lstsq over the kept columns of the inputs stacked on the damping's rows: no Gram matrix, no Cholesky."""
    w, m, x = weight.double().numpy(), mask.numpy(), x.numpy()
    ridge = np.sqrt(damping * (x**2).sum(0).mean()) * np.eye(x.shape[1])
    stacked = np.vstack([x, ridge])
    out = np.zeros_like(w)
    for row in range(len(w)):
        out[row, m[row]] = np.linalg.lstsq(stacked[:, m[row]], stacked @ w[row], rcond=None)[0]
    return out


def by_scipy(weight: torch.Tensor, mask: torch.Tensor, x: torch.Tensor) -> np.ndarray:
    """Without damping, by SciPy's QR-based driver."""
    w, m, x = weight.double().numpy(), mask.numpy(), x.numpy()
    out = np.zeros_like(w)
    for row in range(len(w)):
        out[row, m[row]] = scipy.linalg.lstsq(x[:, m[row]], x @ w[row], lapack_driver="gelsy")[0]
    return out


@pytest.mark.parametrize("damping", [0.01, 1.0, 1e-6])
def test_least_squares_is_numpys(damping):
    x = correlated(0, tokens=200, features=24, rank=6)
    weight = torch.randn(7, 24, dtype=torch.float64)
    mask = magnitude_mask(weight)
    found = least_squares(weight, mask, x.T @ x, damping=damping)
    np.testing.assert_allclose(found.numpy(), by_numpy(weight, mask, x, damping), rtol=1e-8, atol=1e-10)


def test_without_damping_least_squares_is_scipys():
    x, weight = correlated(1, tokens=100, features=16, rank=4), torch.randn(5, 16, dtype=torch.float64)
    mask = wanda_mask(weight, x.norm(dim=0))
    found = least_squares(weight, mask, x.T @ x, damping=0)
    np.testing.assert_allclose(found.numpy(), by_scipy(weight, mask, x), rtol=1e-8, atol=1e-10)


def test_rows_may_keep_different_numbers_even_none_or_all():
    x, weight = correlated(2, tokens=64, features=12, rank=4), torch.randn(5, 12, dtype=torch.float64)
    mask = torch.rand(5, 12) < 0.5
    mask[0], mask[1] = False, True
    found = least_squares(weight, mask, x.T @ x)
    np.testing.assert_allclose(found.numpy(), by_numpy(weight, mask, x, 0.01), rtol=1e-8, atol=1e-10)
    assert torch.equal(found[0], torch.zeros(12, dtype=torch.float64))
    assert torch.equal(found[1], weight[1])
    assert not least_squares(weight, torch.zeros_like(mask), x.T @ x).any()


def test_batches_of_rows_change_nothing(monkeypatch):
    x, weight = correlated(3, features=32), torch.randn(11, 32, dtype=torch.float64)
    mask = magnitude_mask(weight)
    whole = least_squares(weight, mask, x.T @ x)
    monkeypatch.setitem(reconstruct.BYTES, "cpu", 3 * 8 * 16 * 16 * 2)  # two rows at a time
    torch.testing.assert_close(least_squares(weight, mask, x.T @ x), whole, rtol=1e-12, atol=1e-12)


def test_fewer_tokens_than_features_and_features_that_are_always_zero():
    x, weight = correlated(4, tokens=6, features=24), torch.randn(4, 24, dtype=torch.float64)
    x[:, 5:9] = 0.0
    mask = magnitude_mask(weight)
    found = least_squares(weight, mask, x.T @ x)
    np.testing.assert_allclose(found.numpy(), by_numpy(weight, mask, x, 0.01), rtol=1e-6, atol=1e-9)
    assert torch.equal(found[:, 5:9], torch.where(mask, weight, 0)[:, 5:9])  # nothing pulls at them
    with pytest.raises(ValueError, match="not positive definite; pass a larger damping"):
        least_squares(weight, mask, x.T @ x, damping=0)
    with pytest.raises(ValueError, match="not positive definite; pass a larger damping"):
        sparsegpt(weight, x.T @ x, damping=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_weights_get_the_float64_solution_rounded_once(dtype):
    x, weight = correlated(5, features=32), torch.randn(6, 32).to(dtype)
    mask = magnitude_mask(weight)
    exact = least_squares(weight.double(), mask, x.T @ x)
    found = least_squares(weight, mask, x.T @ x)
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))
    pruned, kept = sparsegpt(weight, x.T @ x)
    assert torch.equal(pruned, sparsegpt(weight.double(), x.T @ x)[0].to(dtype))
    assert not pruned[~kept].any()


def obs_by_the_book(weight: np.ndarray, gram: np.ndarray, n: int, m: int, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT from its derivation: after each column, invert the Hessian of the columns that are left anew."""
    w = weight.copy()
    columns = w.shape[1]
    hessian = gram + damping * np.diag(gram).mean() * np.eye(columns)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    kept = np.zeros(w.shape, dtype=bool)
    for j in range(columns):
        if j % m == 0:
            costs = np.stack([w[:, j + i] ** 2 / inverses[j + i][0, 0] for i in range(m)], axis=1)
            for row in range(len(w)):
                kept[row, j + np.argsort(-costs[row], kind="stable")[:n]] = True
        inverse = inverses[j]
        gone = np.where(kept[:, j], 0.0, w[:, j])
        w[:, j:] -= np.outer(gone / inverse[0, 0], inverse[0])
        w[:, j] = np.where(kept[:, j], w[:, j], 0.0)
    return w, kept


@pytest.mark.parametrize("pattern", [SparsityPattern(2, 4), SparsityPattern(5, 8), SparsityPattern(1, 3)], ids=str)
@pytest.mark.parametrize("block", [1, 8, 128])
def test_sparsegpt_is_its_derivation_whatever_the_block(pattern, block, monkeypatch):
    monkeypatch.setattr(reconstruct, "BLOCK", block)
    x, weight = correlated(6, features=24, rank=5), torch.randn(9, 24, dtype=torch.float64)
    pruned, kept = sparsegpt(weight, x.T @ x, pattern)
    wanted, mask = obs_by_the_book(weight.numpy(), (x.T @ x).numpy(), pattern.n, pattern.m, 0.01)
    assert np.array_equal(kept.numpy(), mask)
    np.testing.assert_allclose(pruned.numpy(), wanted, rtol=1e-7, atol=1e-9)


def test_sparsegpt_takes_a_given_mask_and_the_exact_solution_is_never_worse():
    x, weight = correlated(7, features=32), torch.randn(8, 32, dtype=torch.float64)
    mask = magnitude_mask(weight)
    pruned, kept = sparsegpt(weight, x.T @ x, mask=mask)
    assert torch.equal(kept, mask)
    assert layer_error(weight, least_squares(weight, mask, x.T @ x), x.T @ x) < layer_error(weight, pruned, x.T @ x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_least_squares_beats_wanda_beats_magnitude_on_correlated_activations(seed, dtype):
    x, held_out = correlated(seed, tokens=2048).split(1024)
    weight = torch.randn(64, 128).to(dtype)
    for inputs in (x, held_out):  # masks and weights come from x alone
        errors = {
            criterion: layer_error(weight, prune_weight(weight, criterion=criterion, gram=x.T @ x)[0], inputs.T @ inputs)
            for criterion in CRITERIA
        }
        assert errors["least_squares"] < errors["wanda"] < errors["magnitude"], errors
        assert errors["least_squares"] < errors["sparsegpt"] < errors["wanda"], errors
        assert errors["sparsegpt+least_squares"] < errors["sparsegpt"], errors


@given(st.integers(0, 10_000), st.sampled_from([1e-4, 0.01, 1.0]))
def test_least_squares_never_has_more_error_than_its_mask_alone(seed, damping):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 16, generator=generator) < 0.5
    gram = x.T @ x
    alone = layer_error(weight, torch.where(mask, weight, 0), gram)
    assert layer_error(weight, least_squares(weight, mask, gram, damping=damping), gram) <= alone * (1 + 1e-9)


def test_layer_error_is_the_relative_change_of_the_output():
    x, weight, pruned = correlated(8, features=12), torch.randn(5, 12).double(), torch.randn(5, 12).double()
    lost, total = (x @ (weight - pruned).T).norm(), (x @ weight.T).norm()
    assert layer_error(weight, pruned, x.T @ x) == pytest.approx(float(lost / total), rel=1e-9)
    assert layer_error(weight, weight, x.T @ x) == 0.0
    assert layer_error(weight, torch.zeros_like(weight), x.T @ x) == pytest.approx(1.0)
    assert layer_error(torch.zeros(2, 12), torch.zeros(2, 12), x.T @ x) == 0.0
    assert layer_error(torch.zeros(2, 12), torch.ones(2, 12), x.T @ x) == float("inf")


def test_the_same_call_gives_the_same_numbers():
    x, weight = correlated(9, features=64), torch.randn(16, 64)
    for criterion in CRITERIA:
        first, second = (prune_weight(weight, criterion=criterion, gram=x.T @ x) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_pruned_weights_hold_no_negative_zero():
    x, weight = correlated(10, features=16), torch.randn(16, 16)
    for criterion in CRITERIA:
        pruned, mask = prune_weight(weight, criterion=criterion, gram=x.T @ x)
        assert not pruned[~mask].signbit().any()
        assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())


@pytest.mark.gpu
def test_a_wide_layer_is_solved_on_the_gpu():
    x = torch.randn(8192, 1024, device="cuda", dtype=torch.float64)
    weight = torch.randn(256, 1024, device="cuda", dtype=torch.bfloat16)
    for criterion in CRITERIA:
        pruned, mask = prune_weight(weight, criterion=criterion, gram=x.T @ x)
        wanted, same = prune_weight(weight.cpu(), criterion=criterion, gram=(x.T @ x).cpu())
        assert torch.equal(mask.cpu(), same)
        torch.testing.assert_close(pruned.cpu(), wanted)


GRAM, WEIGHT, MASK = torch.eye(4), torch.ones(2, 4), torch.tensor([[True, False, True, False]] * 2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: least_squares(WEIGHT, MASK.float(), GRAM), "mask is torch.float32"),
        (lambda: least_squares(WEIGHT, MASK[:1], GRAM), r"mask is torch.bool of shape \(1, 4\)"),
        (lambda: least_squares(WEIGHT, MASK, torch.eye(3)), r"gram is \(3, 3\); X\^T X of shape \(4, 4\)"),
        (lambda: least_squares(WEIGHT, MASK, None), "gram is NoneType"),
        (lambda: least_squares(WEIGHT, MASK, GRAM * float("nan")), "gram is no Gram matrix"),
        (lambda: least_squares(WEIGHT, MASK, -GRAM), "gram is no Gram matrix"),
        (lambda: least_squares(WEIGHT, MASK, GRAM.long()), "gram is no Gram matrix"),
        (lambda: least_squares(WEIGHT, MASK, 0 * GRAM), "gram is all zero"),
        (lambda: least_squares(WEIGHT, MASK, GRAM, damping=-1), "damping is -1"),
        (lambda: least_squares(WEIGHT, MASK, GRAM, damping=float("nan")), "damping is nan"),
        (lambda: least_squares(WEIGHT[0], MASK[0], GRAM), r"weight has shape \(4,\)"),
        (lambda: sparsegpt(WEIGHT, GRAM, "3:8"), "not divisible by 8"),
        (lambda: sparsegpt(WEIGHT, GRAM, mask=MASK[:1]), r"mask is torch.bool of shape \(1, 4\)"),
        (lambda: layer_error(WEIGHT, WEIGHT[:1], GRAM), r"pruned has shape \(1, 4\), weight \(2, 4\)"),
        (lambda: layer_error(WEIGHT, WEIGHT / 0, GRAM), "pruned holds NaN or infinity"),
        (lambda: prune_weight(WEIGHT, criterion="best"), "criterion is 'best'; accepted are 'magnitude'"),
        (lambda: prune_weight(WEIGHT, criterion="wanda"), "gram is None; criterion 'wanda' needs"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
