"""Expressions come out simple, and simplifying never changes what they are: checked place by place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import element
from torch import fx

from kpt_lab.kernels.flashlight import masks, proofs
from kpt_lab.kernels.flashlight.algebra import apply, choose
from kpt_lab.kernels.flashlight.arithmetic import COMPARISONS, arithmetic, compare
from kpt_lab.kernels.flashlight.atoms import Variable
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Coordinate, Expression, Score, Size, plain, readable, replace
from kpt_lab.kernels.flashlight.logic import both, conjuncts, either, negate
from kpt_lab.kernels.flashlight.polynomials import quotient, terms
from kpt_lab.kernels.flashlight.roles import digits_of, radix, splits

Q, K = Variable("q", Constant(7)), Variable("k", Constant(5))
INTEGER, TRUTH, FLOAT = torch.int64, torch.bool, torch.float32


def raw(op: str, *arguments: Expression) -> Expression:
    return Apply(op, arguments, TRUTH if op in (*COMPARISONS, "logical_and", "logical_or", "logical_not") else INTEGER)


def at(expression: Expression, q: int, k: int):
    """Its value at one place, by the reference's own evaluation."""
    placed = replace(expression, lambda part: Constant({"q": q, "k": k}[part.name]) if isinstance(part, Variable) else None)
    return torch.as_tensor(element(placed, {}, {})).item()


integers = st.recursive(
    st.one_of(st.sampled_from([Q, K]), st.integers(-9, 9).map(Constant)),
    lambda inner: st.one_of(
        st.builds(raw, st.sampled_from(["add", "sub", "mul"]), inner, inner),
        st.builds(raw, st.sampled_from(["floor_divide", "remainder"]), inner, st.integers(1, 6).map(Constant)),
        st.builds(raw, st.sampled_from(["minimum", "maximum"]), inner, inner),
        st.builds(lambda x: raw("neg", x), inner),
        st.builds(lambda x: raw("abs", x), inner),
    ),
    max_leaves=8,
)
conditions = st.recursive(
    st.builds(raw, st.sampled_from(list(COMPARISONS)), integers, integers),
    lambda inner: st.one_of(
        st.builds(raw, st.sampled_from(["logical_and", "logical_or"]), inner, inner),
        st.builds(lambda x: raw("logical_not", x), inner),
    ),
    max_leaves=4,
)


def simplified(expression: Expression) -> Expression:
    """The same, built again by the constructor that simplifies."""
    if isinstance(expression, Apply):
        return apply(expression.op, tuple(map(simplified, expression.arguments)), expression.dtype)
    return expression


@settings(max_examples=150, deadline=None)
@given(st.one_of(integers, conditions))
def test_simplifying_changes_nothing(expression):
    simple = simplified(expression)
    for q in range(7):
        for k in range(5):
            assert at(simple, q, k) == at(expression, q, k), f"{expression!r} became {simple}"


@settings(max_examples=50, deadline=None)
@given(conditions, st.integers(-20000, 3), st.integers(-20000, 3))
def test_choices_are_folded_right(condition, one, other):
    chosen = choose(simplified(condition), Constant(float(one)), Constant(float(other)), FLOAT)
    twice = apply("mul", (chosen, Constant(2.0)), FLOAT)
    for q, k in ((0, 0), (3, 4), (6, 1)):
        assert at(twice, q, k) == 2 * (one if at(condition, q, k) else other)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (compare("le", K, Q), "q ≥ k"),
        (compare("gt", K, Q), "q < k"),
        (compare("lt", arithmetic("sub", Q, K), Constant(3)), "(q - k) < 3"),
        (negate(compare("gt", K, Q)), "q ≥ k"),
        (both(compare("ge", Q, K), compare("ge", K, Constant(0))), "q ≥ k"),
        (compare("ge", K, Constant(-1)), "True"),
        (compare("gt", arithmetic("add", K, Constant(1)), Q), "q ≤ k"),
        (arithmetic("sub", K, Q), "k - q"),
        (arithmetic("floor_divide", arithmetic("add", arithmetic("mul", Q, Constant(5)), K), Constant(5)), "q"),
        (arithmetic("remainder", arithmetic("add", arithmetic("mul", Q, Constant(5)), K), Constant(5)), "k"),
        (arithmetic("floor_divide", Constant(-7), Constant(2)), "-4"),
        (arithmetic("remainder", Constant(-7), Constant(2)), "1"),
        (either(compare("eq", Q, K), negate(compare("eq", Q, K))), "True"),
    ],
)
def test_what_is_read_is_short(made, text):
    assert readable(made) == text


def size(name: str) -> Size:
    node = fx.Graph().placeholder(name)
    node.meta["val"] = 4
    return Size(node)


def test_symbolic_sizes_divide_out():
    heads, batch = size("heads"), size("batch")
    b, h = Variable("b", batch), Variable("h", heads)
    flat = arithmetic("add", arithmetic("mul", b, heads), h)
    assert arithmetic("floor_divide", flat, heads) == b
    assert arithmetic("remainder", flat, heads) == h
    assert quotient(arithmetic("mul", batch, heads), heads) == batch
    assert compare("lt", h, heads) == Constant(True)
    n = Variable("n", arithmetic("mul", batch, heads))
    digits = splits(n, [arithmetic("floor_divide", n, heads), arithmetic("remainder", n, heads)])
    assert [d.extent for d in digits] == [batch, heads]
    assert digits_of(radix(digits), n.extent) == tuple(digits)
    assert digits_of(arithmetic("add", digits[1], Constant(1)), heads) is None


def test_narrow_integers_are_not_taken_for_whole_numbers():
    wrapping = Apply("add", (Constant(200), Apply("to", (K,), torch.uint8)), torch.uint8)
    assert terms(wrapping) == {(wrapping,): 1}


def split(expression: Expression, certain: bool = False, lenient: bool = False) -> masks.Masked:
    return masks.Splitter(lambda mask: certain, lenient).split(expression)


SCALED = Apply("mul", (Score(), Constant(0.5)), FLOAT)
CAUSAL, NEAR = compare("ge", Q, K), compare("lt", K, Constant(3))


def filled(score: Expression, mask: Expression, fill: float) -> Expression:
    return choose(mask, score, Constant(fill), FLOAT)


def added(score: Expression, mask: Expression, fill: float) -> Expression:
    return Apply("add", (score, choose(mask, Constant(0.0), Constant(fill), FLOAT)), FLOAT)


def test_fills_become_masks():
    for made in (filled, added):
        for fill in (-math.inf, -1e9, torch.finfo(FLOAT).min):
            found = split(made(SCALED, CAUSAL, fill))
            assert (found.score, found.mask) == (SCALED, CAUSAL)
            assert found.kind() == ("infinite" if math.isinf(fill) else "finite")


def test_a_fill_is_scaled_with_the_score():
    found = split(Apply("div", (filled(Score(), CAUSAL, -1e9), Constant(8.0)), FLOAT))
    assert found.mask == CAUSAL
    assert split(Apply("mul", (filled(Score(), CAUSAL, -1e9), Constant(-2.0)), FLOAT)).mask is None
    assert split(Apply("mul", (filled(Score(), CAUSAL, -1e4), Constant(1e-3)), FLOAT)).mask is None


def test_what_a_fill_leaves_alive_is_no_mask():
    assert split(filled(SCALED, CAUSAL, -5.0)).mask is None
    capped = Apply("tanh", (filled(SCALED, CAUSAL, -math.inf),), FLOAT)
    assert split(capped).mask is None


def test_different_fills_are_joined_only_where_no_row_is_empty():
    mixed = filled(filled(SCALED, CAUSAL, -1e9), NEAR, -math.inf)
    assert split(mixed).mask is None
    assert split(mixed, certain=True).mask == both(CAUSAL, NEAR)
    assert split(mixed, lenient=True).mask == both(CAUSAL, NEAR)
    same = split(filled(filled(SCALED, CAUSAL, -1e9), NEAR, -1e9)).mask
    assert set(conjuncts(same)) == {CAUSAL, NEAR}


def test_a_small_added_fill_stays_where_a_row_may_be_empty():
    assert split(added(SCALED, CAUSAL, -1e4)).mask is None
    assert split(added(SCALED, CAUSAL, -1e4), certain=True).mask == CAUSAL


def test_scale_is_taken_out_first():
    scale, score = masks.take_scale(Apply("add", (SCALED, Constant(1.0)), FLOAT))
    assert (scale, readable(score)) == (0.5, "s + 1")
    twice = Apply("mul", (Score(), Score()), FLOAT)
    assert masks.take_scale(twice) == (1.0, twice)


def test_rows_that_are_never_empty():
    q, k = Variable("q", Constant(8)), Variable("k", Constant(8))
    assert proofs.some_key_always(compare("ge", q, k), k, q)
    assert proofs.some_key_always(compare("lt", k, Constant(3)), k, q)
    assert not proofs.some_key_always(compare("gt", q, k), k, q)


def test_conditions_that_depend_on_the_score():
    assert masks.decides_by_score(choose(Apply("gt", (Score(), Constant(0.0)), TRUTH), Score(), Constant(-1e9), FLOAT))
    assert not masks.decides_by_score(filled(SCALED, CAUSAL, -1e9))


def test_coordinates_and_constants_read_as_mathematics():
    assert readable(
        Apply("where", (Apply("ge", (Coordinate("q"), Coordinate("k")), TRUTH), Score(), Constant(-math.inf)), FLOAT)
    ) == ("where(q ≥ k, s, -inf)")
    assert plain.__doc__
