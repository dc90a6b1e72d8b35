"""What the weights that stay should become, so that the layer's output on calibration data changes least.

For a layer's weight w (one output row), its pruned version v and inputs X, ||X (w - v)||^2 = (w - v)^T G (w - v) with the Gram
matrix G = X^T X, so that X itself is not needed. Both methods work with H = G + damping * mean(diag G) * I: this also asks that
v stays near w, and makes H invertible where inputs are fewer than features or features never vary.

`least_squares` solves for the given mask exactly. The damped optimum also has no larger undamped error than the mask alone:
v differs from w by at least the weights taken out, so the added term can't fall below its value there.
`sparsegpt` (arXiv:2301.00774) chooses the mask on the way, left to right, and is faster on wide layers; a column once passed is
not corrected again, so its weights are not the optimum for the mask that it ends with, and `least_squares` on that mask is.
"""

from __future__ import annotations

import torch

from kpt_lab.sparsity.patterns import SparsityPattern, as_pattern, check_weight, keep_largest, wide

DAMPING = 0.01  # of the mean diagonal, as in SparseGPT's code
BLOCK = 128  # columns after which SparseGPT updates the rest, its paper's choice
BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # memory for one batch of rows' systems in `least_squares`


def layer_error(weight: torch.Tensor, pruned: torch.Tensor, gram: torch.Tensor) -> float:
    """The relative error of a linear layer's output, ||X (W - V)^T|| / ||X W^T|| in Frobenius norms, without the bias.

    weight W and pruned V: (out_features, in_features); gram: X^T X, (in_features, in_features). In float64 (float32 on MPS).
    0 where nothing changed, 1 where V is zero; infinite where W gives no output and V does.
    """
    check_gram(weight, gram)
    check_weight(pruned, name="pruned")
    if pruned.shape != weight.shape:
        raise ValueError(f"pruned has shape {tuple(pruned.shape)}, weight {tuple(weight.shape)}; they must agree")
    dtype = wide(weight.device)
    gram = gram.to(device=weight.device, dtype=dtype)
    whole = weight.detach().to(dtype)
    change = whole - pruned.detach().to(device=weight.device, dtype=dtype)
    lost, total = (max(float(((part @ gram) * part).sum()), 0.0) for part in (change, whole))
    if total == 0.0:
        return 0.0 if lost == 0.0 else float("inf")
    return float((lost / total) ** 0.5)


def least_squares(weight: torch.Tensor, mask: torch.Tensor, gram: torch.Tensor, *, damping: float = DAMPING) -> torch.Tensor:
    """The weights under `mask` that minimise ||X (w - v)||^2 + damping * mean(diag X^T X) * ||w - v||^2 for each row.

    weight: (out_features, in_features); mask: bool of the same shape, True where a weight stays, any counts per row; gram:
    X^T X, (in_features, in_features). Solved in float64 by one Cholesky factorisation a row, of the size of what stays, in
    batches of rows; returns the weight's dtype, exactly 0 where the mask is False. Cost: out_features * kept^3 / 3 FLOPs.

    Raises ValueError where the system is singular (damping too small).
    """
    damped = _damped(weight, gram, damping)
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise ValueError(
            f"mask is {mask.dtype} of shape {tuple(mask.shape)}; torch.bool of the weight's shape {tuple(weight.shape)} is needed"
        )
    mask = mask.to(weight.device)
    old = weight.detach().to(torch.float64)
    pull = torch.where(mask, 0.0, old) @ damped  # what the weights taken out did, to be made up for
    new = torch.where(mask, old, 0.0)  # a product would leave -0.0
    # the kept columns' indices in front; rows that keep fewer are filled up with columns marked not valid
    counts = mask.sum(dim=1)
    most = int(counts.max())
    columns = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    valid = torch.arange(most, device=mask.device) < counts[:, None]
    if most:
        at_once = max(1, BYTES.get(weight.device.type, BYTES["cpu"]) // (3 * 8 * most * most))
        for rows in torch.arange(len(old), device=mask.device).split(at_once):
            at = columns[rows]  # no index twice in a row
            step = _solve(damped, at, valid[rows], pull[rows].gather(1, at))
            new[rows] = new[rows].scatter(1, at, new[rows].gather(1, at) + step)
    return new.to(weight.dtype)


def _solve(damped: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor, pull: torch.Tensor) -> torch.Tensor:
    """For each row the solution of damped[S, S] step = pull, S being its valid columns; 0 at the others. All (rows, kept)."""
    size = columns.shape[1]
    places = columns[:, :, None] * len(damped) + columns[:, None, :]  # one index a number: on a CPU twice as fast as two
    systems = damped.reshape(-1).index_select(0, places.reshape(-1)).view(-1, size, size)
    if not bool(valid.all()):
        systems *= valid[:, :, None] & valid[:, None, :]
        systems += torch.diag_embed((~valid).to(systems.dtype))
        pull = pull * valid
    factors, info = torch.linalg.cholesky_ex(systems)
    if bool(info.any()):
        raise ValueError(_singular())
    half = torch.linalg.solve_triangular(factors, pull[..., None], upper=False)
    return torch.linalg.solve_triangular(factors.mT, half, upper=True)[..., 0]


def sparsegpt(
    weight: torch.Tensor,
    gram: torch.Tensor,
    pattern: SparsityPattern | str = SparsityPattern.SPARSE_24,
    *,
    mask: torch.Tensor | None = None,
    damping: float = DAMPING,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune column by column and spread each error over the columns still to come (SparseGPT, arXiv:2301.00774).

    weight: (out_features, in_features); gram: X^T X. In each group the n weights stay whose removal, w^2 / [U]_jj^2 with U the
    upper Cholesky factor of the damped inverse, would cost most (of equal ones the lower index), unless `mask` says which.
    In float64. Returns (pruned in the weight's dtype, bool mask).
    """
    pattern = as_pattern(pattern)
    damped = _damped(weight, gram, damping)
    check_weight(weight, pattern)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise ValueError(f"mask is {mask.dtype} of shape {tuple(mask.shape)}; torch.bool of the weight's shape is needed")
    upper = _inverse_factor(damped)
    # transposed, so that the column at hand is contiguous
    new = weight.detach().to(torch.float64).T.clone(memory_format=torch.contiguous_format)
    kept = torch.zeros_like(new, dtype=torch.bool) if mask is None else mask.to(weight.device).T.contiguous()
    block = pattern.m * max(1, BLOCK // pattern.m)
    for start in range(0, len(new), block):
        stop = min(start + block, len(new))
        errors = torch.zeros_like(new[start:stop])
        for j in range(start, stop):
            if mask is None and j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                costs = (new[group] / upper.diagonal()[group, None]).square()
                kept[group] = keep_largest(costs.T, pattern).T
            errors[j - start] = torch.where(kept[j], 0.0, new[j] / upper[j, j])
            new[j:stop].addr_(upper[j, j:stop], errors[j - start], alpha=-1.0)
        new[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    return torch.where(kept, new, 0.0).T.to(weight.dtype).contiguous(), kept.T.contiguous()


def check_gram(weight: torch.Tensor, gram: torch.Tensor) -> None:
    """Raise a sentence unless weight is a finite matrix and gram a Gram matrix of its input features."""
    check_weight(weight)
    if weight.dim() != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; (out_features, in_features) is needed")
    features = weight.shape[1]
    if not isinstance(gram, torch.Tensor) or tuple(gram.shape) != (features, features):
        came = tuple(gram.shape) if isinstance(gram, torch.Tensor) else type(gram).__name__
        raise ValueError(f"gram is {came}; X^T X of shape {(features, features)} is needed")
    if not gram.is_floating_point() or not bool(gram.isfinite().all()) or bool((gram.diagonal() < 0).any()):
        raise ValueError("gram is no Gram matrix: finite floats with a diagonal that is not negative are needed")


def check_solvable(weight: torch.Tensor, gram: torch.Tensor, damping: float = DAMPING) -> None:
    """Raise ValueError unless gram fits weight and is positive definite with this damping; then every mask can be solved for."""
    if bool(torch.linalg.cholesky_ex(_damped(weight, gram, damping)).info):
        raise ValueError(_singular())


def _inverse_factor(damped: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor U of the inverse, U^T U = damped^-1, in float64."""
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool(info.any()):
        raise ValueError(_singular())
    upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if bool(info.any()):
        raise ValueError(_singular())
    return upper


def _singular() -> str:
    return (
        "gram with this damping is not positive definite; pass a larger damping (0.01 is the default) or more calibration data"
    )


def _damped(weight: torch.Tensor, gram: torch.Tensor, damping: float) -> torch.Tensor:
    """gram + damping * mean(diagonal) * I in float64 on the weight's device, symmetric."""
    check_gram(weight, gram)
    if not 0 <= damping < float("inf"):
        raise ValueError(f"damping is {damping!r}; a finite number that is not negative is needed")
    if wide(weight.device) != torch.float64:
        raise ValueError(f"weight is on {weight.device.type}, which has no float64 to solve in; move it to the CPU first")
    gram = gram.to(device=weight.device, dtype=torch.float64)
    mean = gram.diagonal().mean()
    if not float(mean):
        raise ValueError("gram is all zero: the calibration data never reached this layer's inputs")
    damped = (gram + gram.T) / 2
    damped.diagonal().add_(damping * mean)
    return damped
