"""Intervals, verdicts and corrections for paired timings; numpy only, deterministic, no clock.

Two techniques timed in the same randomised blocks share the machine's drift, so it cancels in the ratio of each block,
and the exact order-statistic interval of the median ratio holds for any noise distribution, as long as blocks are
independent. Where they are not, the interval widens, moves to batch medians, or becomes unbounded (verdict UNCLEAR). Where they
are too few for either, it is Student's, of as many blocks as count as independent.
`benchmarks/simulated_statistics.py` measures how well all this holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from statistics import median
from typing import NamedTuple

import numpy as np

from kpt_lab.core import Verdict

LOOKS = (30, 60, 120, 240, 480)
"""Numbers of blocks after which `measure` looks at the verdict and stops unless it is UNCLEAR."""
LOOK_LEVEL = 0.99
"""Level of each look: five looks at 99% keep the level of the reported interval at 95% or above (Bonferroni)."""
MARGIN = 0.02
"""Ratios within this distance of 1 count as SAME: restarts of a process move a time by more."""
MAX_AUTOCORRELATION = 0.2
"""Lag-1 autocorrelation of the log ratios above which blocks are grouped into batches."""
MIN_PROCESSES = 6

_BATCHED_BLOCKS = 100  # batch medians need at least this many blocks
_BATCHES = (8, 16)  # fewest and most batches
_BATCH_BLOCKS = 12  # fewest blocks in a batch
_BATCH_TIMES = 5  # a batch is at least this many autocorrelation times long
_INDEPENDENT = 4  # fewer degrees of freedom make an interval that says nothing
_STUDENT_BLOCKS = 8  # below, how far blocks depend on one another can't be told
_CLAIM = 1e-3  # share of a look's error level that a claim beyond the margin may use, see sequential_verdict

Values = Sequence[float] | np.ndarray


class _Dependence(NamedTuple):
    lag1: float  # lag-1 autocorrelation, corrected for its bias in short series
    time: float  # integrated autocorrelation time in blocks, 1 for independent ones
    batched: bool


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; accepted are numbers between 0 and 1, such as 0.95")


def _as_array(values: Values, name: str, *, positive: bool = False) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} has shape {array.shape}; a flat sequence with at least one value is needed")
    if not np.isfinite(array).all() or (positive and (array <= 0).any()):
        raise ValueError(f"{name} holds a value that is not {'positive and ' if positive else ''}finite")
    return array


@functools.lru_cache(maxsize=4096)
def _rank(n: int, level: float) -> int:
    """Largest k for which the k-th smallest to the k-th largest of n values hold the median at `level`; 0 where none does."""
    allowed = int(Fraction((1 - level) / 2) * 2**n)  # exact: the binomial tail in units of 2^-n
    k, term, tail = 0, 1, 0
    while tail + term <= allowed:
        tail += term
        term = term * (n - k) // (k + 1)
        k += 1
    return k


@functools.lru_cache(maxsize=4096)
def _binomial_tail(n: int, successes: int) -> float:
    """P(X <= successes) for X of Binomial(n, 1/2), by exact integers."""
    term, tail = 1, 0
    for i in range(min(successes, n) + 1):
        tail += term
        term = term * (n - i) // (i + 1)
    return float(Fraction(tail, 2**n))


def _student_mass(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t with integer df: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(df))
    cosine = math.cos(angle)
    term = cosine if df % 2 else 1.0
    total = term if df > 1 else 0.0
    for i in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine * cosine * (i - 1) / i
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if df % 2 else total


@functools.lru_cache(maxsize=4096)
def _student_quantile(df: int, level: float) -> float:
    """The t for which P(|T| <= t) = level, by bisection."""
    low, high = 0.0, 1.0
    while _student_mass(high, df) < level and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, df) < level else (low, middle)
    return high


def median_interval(values: Values, level: float = 0.95) -> tuple[float, float]:
    """Exact order-statistic (sign test) interval of the median of independent values, for any distribution.

    values: flat, finite; level: coverage, between 0 and 1. Returns (low, high), or (-inf, inf) where there are too few
    values for that level (5 or fewer at 95%, 7 or fewer at 99%). Source: David and Nagaraja, Order Statistics, 7.1.
    """
    _check_level(level)
    ordered = np.sort(_as_array(values, "values"))
    k = _rank(len(ordered), level)
    return (float(ordered[k - 1]), float(ordered[-k])) if k else (-math.inf, math.inf)


def _centred(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the mean with outliers set to 0, and 1.0 where a value was kept.

    Timing spikes hide autocorrelation: 5% of them take the plain estimate from 0.9 to 0.1. So values beyond three robust
    standard deviations are left out, unless they are so many (over a quarter) that they are a mode of their own.
    """
    deviation = np.abs(values - median(values.tolist()))
    kept = deviation <= 3 * 1.4826 * median(deviation.tolist())
    if 4 * np.count_nonzero(kept) < 3 * len(values):
        kept[:] = True
    return np.where(kept, values - values[kept].mean(), 0.0), kept.astype(np.float64)


def _correlations(values: np.ndarray, lags: Iterable[int]) -> list[float]:
    centred, kept = _centred(values)
    variance = float(centred @ centred) / float(kept.sum())
    if variance <= 1e-24 * float(np.max(np.abs(values))) ** 2:  # constant up to rounding
        return [0.0 for _ in lags]
    # the mean product over pairs of which neither was left out
    return [float(centred[k:] @ centred[:-k]) / max(1.0, float(kept[k:] @ kept[:-k])) / variance for k in lags]


def autocorrelation(values: Values, lag: int = 1) -> float:
    """Autocorrelation of a flat series at `lag`, with outliers (timing spikes) left out; 0 for a constant series.

    Clipped to -1..1. ValueError unless the series is at least two values longer than `lag`, which is 1 or more.
    """
    array = _as_array(values, "values")
    if not 1 <= lag <= len(array) - 2:
        raise ValueError(
            f"lag is {lag} for {len(array)} values; accepted are 1 to {max(1, len(array) - 2)}, with 3 values or more"
        )
    return min(1.0, max(-1.0, _correlations(array, (lag,))[0]))


def _dependence(logs: np.ndarray) -> _Dependence:
    """How far blocks depend on one another: by the lag-1 autocorrelation, and by a window that also sees slow, faint drift."""
    n = len(logs)
    if n < 4:
        return _Dependence(0.0, 1.0, False)
    window = min(max(3, round(math.sqrt(n))), n - 2)
    found = np.array(_correlations(logs, range(1, window + 1))) + 1 / n  # subtracting the mean costs about 1/n at every lag
    lag1 = min(float(found[0]) / (1 - 4 / n) if n > 8 else float(found[0]), 0.98)  # Kendall's bias of lag 1
    weights = 1 - np.arange(1, window + 1) / (window + 1)
    windowed = 1 + 2 * float(found @ weights)
    error = 2 * math.sqrt(float(weights @ weights) / n)  # standard error of `windowed` for independent blocks
    limit = (1 + MAX_AUTOCORRELATION) / (1 - MAX_AUTOCORRELATION)
    batched = lag1 > MAX_AUTOCORRELATION or windowed - error / 2 > limit
    return _Dependence(lag1, max(1.0, (1 + lag1) / (1 - lag1), windowed), batched)


def _widening(dependence: _Dependence, n: int) -> float:
    """Factor on the order-statistic interval's half width in ranks: 1 for independent blocks, at most about 1.2.

    Signs of a Gaussian series with correlation r have correlation 2/pi asin(r); half a standard error is added to the
    estimate, because a lag-1 autocorrelation just below the limit is often a larger one underestimated.
    """
    lag1 = dependence.lag1 + 0.5 / math.sqrt(n)
    if lag1 <= 0:
        return 1.0
    return math.sqrt(1 + 4 / math.pi * sum(math.asin(min(lag1, 0.98) ** k) for k in range(1, 12)))


def _batch_interval(logs: np.ndarray, level: float, time: float) -> tuple[float, float]:
    """Student's t interval of the medians of 8 to 16 batches, each several autocorrelation times long."""
    n, (fewest, most) = len(logs), _BATCHES
    batches = min(n // max(_BATCH_BLOCKS, math.ceil(_BATCH_TIMES * time)), most)
    if n < _BATCHED_BLOCKS or batches < fewest:
        return -math.inf, math.inf
    length = n // batches
    medians = np.median(logs[n - batches * length :].reshape(batches, length), axis=1)
    # neighbouring batches are still a little alike: their variance is short by this share (exact for AR(1))
    short = (time - 1 / time) / (2 * length)
    spread = float(medians.std(ddof=1)) / math.sqrt(batches * (1 - short))
    half, centre = _student_quantile(batches - 1, level) * spread, float(medians.mean())
    return centre - half, centre + half


def _student_interval(logs: np.ndarray, level: float, time: float) -> tuple[float, float]:
    """Student's t interval of as many values as blocks count as independent: for blocks too few for ranks or batches.

    A timing spike makes it wide. Unbounded below _STUDENT_BLOCKS blocks, where they count as fewer than _INDEPENDENT, and where
    they are enough for batches, which then have refused.
    """
    n = len(logs)
    effective = n / time
    if not _STUDENT_BLOCKS <= n < _BATCHED_BLOCKS or effective < _INDEPENDENT:
        return -math.inf, math.inf
    half = _student_quantile(math.floor(effective) - 1, level) * float(logs.std(ddof=1)) / math.sqrt(effective)
    half, centre = min(half, 300.0), float(logs.mean())  # not the median, which says little where times have two modes
    return centre - half, centre + half


def _log_interval(logs: np.ndarray, level: float, dependence: _Dependence) -> tuple[float, float]:
    low, high = _rank_interval(logs, level, dependence)
    return (low, high) if math.isfinite(high) else _student_interval(logs, level, dependence.time)


def _rank_interval(logs: np.ndarray, level: float, dependence: _Dependence) -> tuple[float, float]:
    if dependence.batched:
        return _batch_interval(logs, level, dependence.time)
    n = len(logs)
    k = math.floor((n + 1) / 2 - ((n + 1) / 2 - _rank(n, level)) * _widening(dependence, n) + 1e-9)
    if k < 1 or not _rank(n, level):
        return -math.inf, math.inf
    ordered = np.sort(logs)
    return float(ordered[k - 1]), float(ordered[-k])


def _log_ratios(numerators: Values, denominators: Values) -> np.ndarray:
    above = _as_array(numerators, "numerators", positive=True)
    below = _as_array(denominators, "denominators", positive=True)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators and {len(below)} denominators; one of each per block is needed")
    return np.log(above / below)


def _ratio(logs: np.ndarray, level: float, dependence: _Dependence) -> tuple[float, float, float]:
    low, high = _log_interval(logs, level, dependence)
    middle = median(logs.tolist())
    # the centre of batch medians may differ from the median: the interval holds both
    return math.exp(middle), math.exp(min(low, middle)), math.exp(max(high, middle))


def ratio_interval(numerators: Values, denominators: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Median of the ratios numerators[i] / denominators[i] of paired blocks, and its interval at `level`.

    Both are positive and in the order in which the blocks ran. Returns (median, low, high). Independent blocks get the exact
    order-statistic interval, widened a little where the blocks seem correlated. Where the lag-1 autocorrelation of the log
    ratios exceeds 0.2, or slower drift shows, the interval is that of batch medians, of at least 8 batches of five
    autocorrelation times. From 8 to 99 blocks that are too few for these it is Student's t interval of the log ratios. What
    is left is the unbounded (median, 0, inf), whose verdict is UNCLEAR.
    """
    _check_level(level)
    logs = _log_ratios(numerators, denominators)
    return _ratio(logs, level, _dependence(logs))


def verdict(low: float, high: float, margin: float = MARGIN) -> Verdict:
    """SAME where the interval of a speedup lies within `margin` of 1, else FASTER above 1, SLOWER below 1, else UNCLEAR."""
    if not low <= high:
        raise ValueError(f"low is {low!r} and high is {high!r}; low must not exceed high, and neither may be NaN")
    if not 0 <= margin < 1:
        raise ValueError(f"margin is {margin!r}; accepted are numbers from 0 to below 1")
    if 1 - margin <= low and high <= 1 + margin:
        return "SAME"
    if low > 1:
        return "FASTER"
    return "SLOWER" if high < 1 else "UNCLEAR"


def sequential_verdict(
    numerators: Values, denominators: Values, level: float = LOOK_LEVEL
) -> tuple[float, float, float, Verdict]:
    """Median ratio, its interval and the verdict at one of several looks at growing samples: (median, low, high, verdict).

    The caller looks after each of LOOKS blocks and stops unless the verdict is UNCLEAR. A difference beyond MARGIN is claimed
    only where the interval at a thousandth of the look's error level (99.999% for 99%) excludes 1 as well; otherwise that
    wider interval is returned, so that interval and verdict always agree. A median within MARGIN is claimed as no difference
    either, its interval being widened to 1: copies of one function in one process differ by as much, from where their memory
    lies, and only restarts tell that from a real difference. It keeps noisy early looks from announcing large
    differences that are not there, and costs true ones few blocks. Below some 20 blocks, where a budget ended the run before the
    first look, no ranks reach that level, and Student's interval must exclude 1.
    """
    _check_level(level)
    logs = _log_ratios(numerators, denominators)
    dependence = _dependence(logs)
    median, low, high = _ratio(logs, level, dependence)
    if not low <= 1 <= high and abs(median - 1) > MARGIN:
        _, wide_low, wide_high = _ratio(logs, 1 - _CLAIM * (1 - level), dependence)
        if wide_low <= 1 <= wide_high:
            low, high = min(low, wide_low), max(high, wide_high)
    if abs(median - 1) <= MARGIN and verdict(low, high) in ("FASTER", "SLOWER"):
        low, high = min(low, 1.0), max(high, 1.0)
    return median, low, high, verdict(low, high)


def processes_interval(medians: Values) -> tuple[float, float]:
    """Lowest and highest of the medians of at least 6 fresh processes: an interval of the median over restarts.

    Each process falls below the true median with probability 1/2, whatever the distribution, so all six lie on one side with
    probability 2 / 2^6: min to max covers it with 1 - 2 / 2^6 = 96.9%, with more processes more. ValueError below 6.
    """
    array = _as_array(medians, "medians")
    if len(array) < MIN_PROCESSES:
        raise ValueError(f"medians holds {len(array)} processes; at least {MIN_PROCESSES} are needed for an interval")
    return float(array.min()), float(array.max())


def corrected_level(level: float, k: int) -> float:
    """Bonferroni: the level for each of k intervals that makes all of them hold together at `level`."""
    _check_level(level)
    if k < 1:
        raise ValueError(f"k is {k}; accepted are whole numbers from 1")
    return 1 - (1 - level) / k


def holm(pvalues: Values) -> tuple[float, ...]:
    """Adjusted p-values in the given order: those at most a are rejected with family-wise error a (Holm 1979)."""
    array = np.asarray(pvalues, dtype=np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError("pvalues must be a flat sequence of numbers from 0 to 1")
    order = np.argsort(array, kind="stable")
    steps = np.minimum(np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1)), 1.0)
    adjusted = np.empty_like(array)
    adjusted[order] = steps
    return tuple(adjusted.tolist())


def median_pvalue(ratios: Values, limit: float) -> float:
    """One-sided sign test: the p-value against "the median ratio is at least `limit`", small where it lies below.

    "Never slower" over many cells means that after `holm` none of these p-values is small. It says that no slower cell was
    found, not that none exists: the stronger claim, that a cell is not slower, is `median_pvalue(1 / ratios, 1 / limit)`
    being small. Ratios are positive and in the order of their blocks; their dependence shrinks the evidence as it widens
    `ratio_interval`.
    """
    array = _as_array(ratios, "ratios", positive=True)
    if not limit > 0:
        raise ValueError(f"limit is {limit!r}; accepted are positive numbers")
    n, above = len(array), int(np.count_nonzero(array >= limit))
    if 2 * above >= n:
        return _binomial_tail(n, above)
    dependence = _dependence(np.log(array))
    factor = math.sqrt(dependence.time) if dependence.batched else _widening(dependence, n)
    return _binomial_tail(n, math.ceil(n / 2 - (n / 2 - above) / factor - 1e-9))
