"""check: poison, fresh inputs, comparison with the oracle, what a wrong output looks like, and traces left behind."""

import math
import threading
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kpt_lab import check
from kpt_lab.check import Dishonest, Wrong
from kpt_lab.core import Problem, Workload

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF = math.inf


# ---- poison ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4)])
def test_poison_is_a_nan_in_every_element_and_is_recognised(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    assert not check.is_poisoned(tensor)
    check.poison(tensor, set())
    assert torch.isnan(tensor).all()
    assert check.is_poisoned(tensor)
    tensor.reshape(-1)[1:] = 0  # one element left as it was is enough
    assert check.is_poisoned(tensor)
    tensor.zero_()
    assert not check.is_poisoned(tensor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic_never_gives_the_poison(dtype):
    zero, infinity = torch.zeros(4, dtype=dtype), torch.full((4,), INF, dtype=dtype)
    for nan in (
        infinity - infinity,
        infinity * zero,
        zero / zero,
        torch.full((4,), math.nan, dtype=dtype),
        torch.sqrt(zero - 1),
    ):
        assert torch.isnan(nan).all()
        assert not check.is_poisoned(nan)


@pytest.mark.parametrize("dtype", FLOATS)
def test_poison_reaches_the_whole_storage_behind_a_view(dtype):
    whole = torch.zeros(6, 8, dtype=dtype)
    for view in (whole[1:3, ::2], whole.t(), whole[5, 7], whole.expand(3, 6, 8)):
        whole.zero_()
        check.poison({"out": (view,)}, set())
        assert torch.isnan(whole).all()
        assert check.is_poisoned(view)


def test_protected_storages_are_untouched_also_through_views():
    weight, output = torch.ones(10), torch.ones(10)
    check.poison((weight[3:].view(7), output), check.storages([weight]))
    assert torch.equal(weight, torch.ones(10))
    assert check.is_poisoned(output)


def test_integers_bools_and_empty_tensors_are_left_alone():
    for tensor in (torch.arange(5), torch.tensor([True, False]), torch.ones(3, dtype=torch.complex64), torch.empty(0)):
        before = tensor.clone()
        check.poison(tensor, set())
        assert torch.equal(tensor, before)
        assert not check.is_poisoned(tensor)
    check.poison((None, 3, "x"), set())


def test_poison_of_a_tensor_that_requires_gradients_writes_its_values():
    parameter = nn.Parameter(torch.ones(3))
    check.poison(parameter, set())
    assert check.is_poisoned(parameter)
    assert parameter.requires_grad


def test_litter_takes_any_output_and_does_not_touch_it():
    like = {"a": torch.ones(5), "b": (torch.arange(3), None)}
    check.litter(like)
    assert torch.equal(like["a"], torch.ones(5))


# ---- fresh inputs ------------------------------------------------------------------------------------------------------------

weights = st.floats(min_value=0.05, max_value=0.95)


@given(weights)
def test_fresh_values_are_the_blend_of_two_sets_with_an_eighth_of_the_rows_touched(weight):
    one, other = torch.softmax(torch.randn(16, 9, dtype=torch.float64), -1), torch.softmax(torch.randn(16, 9).double(), -1)
    buffers = (torch.empty_like(one),)
    check.fresh(buffers, [(one,), (other,)], (0, 1, weight))
    share = buffers[0] / ((1 - weight) * one + weight * other)
    assert ((share > 15 / 16 - 1e-9) & (share < 1 + 1e-9)).all()
    assert 14 <= int(torch.isclose(share, torch.ones_like(share), rtol=1e-12, atol=0).all(-1).sum()) <= 16
    assert (buffers[0] > 0).all()


@given(st.lists(weights, min_size=2, max_size=6, unique_by=lambda w: round(w, 4)))
def test_fresh_values_differ_from_draw_to_draw_and_from_every_set(drawn):
    sets = [(torch.randn(4, 5),), (torch.randn(4, 5),)]
    seen = [sets[0][0], sets[1][0]]
    for weight in drawn:
        buffers = (torch.empty(4, 5),)
        check.fresh(buffers, sets, (0, 1, weight))
        assert not any(torch.equal(buffers[0], earlier) for earlier in seen)
        seen.append(buffers[0])


def test_a_weight_of_zero_writes_the_set_itself_into_the_same_memory():
    sets = [({"x": torch.randn(3, 4), "n": torch.arange(3)},), ({"x": torch.randn(3, 4), "n": torch.arange(3)},)]
    buffers = check.clone_inputs(sets[1])
    place = buffers[0]["x"].data_ptr()
    check.fresh(buffers, sets, (0, 1, 0.0))
    assert torch.equal(buffers[0]["x"], sets[0][0]["x"])
    assert buffers[0]["x"].data_ptr() == place


@pytest.mark.parametrize("weight", [0.3, 0.7])
def test_fresh_keeps_masks_of_minus_infinity(weight):
    one, other = torch.tensor([0.0, -INF, 2.0, -INF]), torch.tensor([1.0, -INF, -INF, 4.0])
    buffers = (torch.empty(4),)
    check.fresh(buffers, [(one,), (other,)], (0, 1, weight))
    assert not torch.isnan(buffers[0]).any()
    assert buffers[0][1] == -INF
    assert buffers[0][0] == pytest.approx(weight)


@pytest.mark.parametrize("weight", [0.05, 0.5, 0.89, 0.9, 0.94])
def test_token_ids_are_rolled_and_stay_the_same_ids(weight):
    tokens = torch.arange(20).reshape(2, 10)
    sets = [(tokens,), (tokens + 20,)]
    buffers = (torch.empty_like(tokens),)
    check.fresh(buffers, sets, (1, 0, weight))
    assert torch.equal(buffers[0].sort(-1).values, sets[1][0])
    assert not torch.equal(buffers[0], sets[1][0])


def test_integers_beside_floating_point_inputs_are_copied_as_they_are():
    sets = [(torch.randn(3), torch.tensor([1, 2, 3])), (torch.randn(3), torch.tensor([4, 5, 6]))]
    buffers = check.clone_inputs(sets[0])
    check.fresh(buffers, sets, (1, 0, 0.5))
    assert buffers[1].tolist() == [4, 5, 6]


def test_buffers_that_require_gradients_are_written_without_a_graph():
    sets = [(torch.randn(3, requires_grad=True),), (torch.randn(3, requires_grad=True),)]
    buffers = check.clone_inputs(sets[0])
    check.fresh(buffers, sets, (0, 1, 0.5))
    assert buffers[0].requires_grad
    assert buffers[0].is_leaf
    assert buffers[0].grad_fn is None


def test_changed_inputs_names_the_position_and_accepts_untouched_ones():
    sets = [(torch.randn(3), torch.tensor([1, 2]), torch.tensor([math.nan, 1.0])) for _ in range(2)]
    draw = (0, 1, 0.25)
    buffers = check.clone_inputs(sets[0])
    check.fresh(buffers, sets, draw)
    assert check.changed_inputs(buffers, sets, draw) == ""
    buffers[1][0] = 7
    assert check.changed_inputs(buffers, sets, draw) == "writes to its input 1: mutated inputs spoil whatever runs next"
    buffers[0].add_(1e-6)
    assert "writes to its input 0" in check.changed_inputs(buffers, sets, draw)


def test_clones_share_nothing_and_keep_requires_grad():
    original = {"a": torch.ones(3, requires_grad=True), "b": [torch.arange(2)], "c": 4}
    copy = check.clone_inputs(original)
    assert not check.storages(check.tensors_of(copy)) & check.storages(check.tensors_of(original))
    assert copy["a"].requires_grad
    assert copy["c"] == 4


def test_tensors_are_found_in_containers_modules_and_closures():
    hidden, layer = torch.ones(2), nn.BatchNorm1d(3)
    found = check.tensors_of({"x": [torch.zeros(1)]}, layer, lambda: hidden)
    assert len(found) == 1 + 5 + 1
    assert any(t is hidden for t in found)


# ---- comparison --------------------------------------------------------------------------------------------------------------


def test_equal_outputs_have_error_zero_whatever_their_structure():
    tree = {"a": torch.randn(3), "b": (torch.arange(4), None, 2, "x"), "c": [torch.tensor([True])]}
    assert check.compare_output(tree, tree, tree) == 0.0
    assert check.compare_output((), (), ()) == 0.0


def test_the_worst_leaf_counts_scaled_by_the_reference():
    exact = (torch.full((4,), 2.0, dtype=torch.float64), torch.full((4,), 10.0, dtype=torch.float64))
    like = (exact[0].float(), exact[1].float())
    output = (like[0] + 0.04, like[1] + 0.02)
    # |y - r| / (|r| + rms(r)): 0.04 / (2 + 2) and 0.02 / (10 + 10)
    assert check.compare_output(output, exact, like) == pytest.approx(0.01, rel=1e-5)
    assert check.compare_output(output, exact, like, lambda got, want: float((got - want).abs().max())) == pytest.approx(
        0.04, rel=1e-5
    )


class Lazy(torch.Tensor):
    """A tensor subclass, as a lazily evaluated one would be."""


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        ([torch.ones(3)], Wrong, "returns the structure"),
        ({"x": torch.ones(3)}, Wrong, "returns the structure"),
        (
            torch.ones(3, 1),
            Wrong,
            r"the output is \(3, 1\) torch.float32 on cpu, the specification gives \(3,\) torch.float32 on cpu",
        ),
        (
            torch.ones(3, dtype=torch.float64),
            Wrong,
            r"is \(3,\) torch.float64 on cpu, the specification gives \(3,\) torch.float32",
        ),
        (torch.ones(3, device="meta"), Wrong, "torch.float32 on meta, the specification gives"),
        (torch.ones(3).as_subclass(Lazy), Dishonest, "a tensor subclass Lazy, which can be lazily evaluated"),
        (3.0, Dishonest, "not a tensor but float"),
        (lambda: torch.ones(3), Dishonest, "not a tensor but function"),
    ],
)
def test_another_structure_shape_dtype_or_type_is_refused(output, kind, message):
    like = torch.ones(3)
    with pytest.raises(kind, match=message):
        check.compare_output(output, like.double(), like)


def test_the_position_is_named_where_there_are_several_outputs():
    like = (torch.ones(3), torch.ones(2))
    with pytest.raises(Wrong, match=r"output 1 is \(5,\)"):
        check.compare_output((torch.ones(3), torch.ones(5)), like, like)


@pytest.mark.parametrize("wanted", [True, 4, "name", None])
def test_values_beside_tensors_must_be_equal(wanted):
    like = (torch.ones(2), wanted)
    assert check.compare_output(like, like, like) == 0
    with pytest.raises(Wrong, match="output 1 is 'other', the specification gives"):
        check.compare_output((torch.ones(2), "other"), like, like)


def test_a_float_beside_tensors_is_compared_as_well():
    like = (torch.ones(2), 0.5)
    assert check.compare_output((torch.ones(2), 100.0), like, like) == pytest.approx(199.0)
    assert check.compare_output((torch.ones(2), 0.5), like, like) == 0.0


def test_integers_and_bools_must_be_equal_and_nan_never_compares_equal():
    assert check.compare_output(torch.tensor([1, 3]), torch.tensor([1, 2]), torch.tensor([1, 2])) == INF
    assert check.compare_output(torch.tensor([True]), torch.tensor([False]), torch.tensor([False])) == INF
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert check.compare_output(torch.tensor([1.0, math.nan]), exact, exact.float()) == INF
    assert check.compare_output(torch.tensor([1.0, INF]), exact, exact.float()) == INF
    assert check.compare_output(torch.ones(2), torch.ones(2).double(), torch.ones(2), lambda a, b: math.nan) == INF


def test_a_leaf_that_is_rounding_in_the_specification_itself_neither_condemns_nor_excuses():
    own = [0.01, 1e12]
    assert check.worst([0.02, 5e13], own) == 0.02  # 50 times the specification's own rounding
    assert check.worst([0.02, 7e13], own) == 7e13
    assert check.worst([3.0, 0.0], own) == 3.0
    assert check.worst([0.02, 3.0], [0.01, 3.9]) == 3.0  # some of its digits are right: it counts
    assert check.worst([5.0, 1e12], [5.0, 1e12]) == 1e12  # nothing else could tell
    assert check.worst([0.1, INF], [0.1, INF]) == INF  # a specification that breaks is no rounding
    assert check.worst([0.1], ()) == 0.1
    assert check.worst([], ()) == 0.0


def test_empty_outputs_are_equal():
    assert check.compare_output(torch.empty(0, 4), torch.empty(0, 4).double(), torch.empty(0, 4)) == 0.0


# ---- what a wrong output looks like ------------------------------------------------------------------------------------------


def poisoned(shape=(3,)):
    tensor = torch.empty(shape)
    check.poison(tensor, set())
    return tensor


KEPT, INPUT, EARLIER = poisoned(), torch.tensor([1.0, 2.0, 3.0]), [torch.tensor([4.0, 5.0, 6.0])]


@pytest.mark.parametrize(
    ("found", "output", "clues", "sentence"),
    [
        (INF, poisoned(), {}, "returned memory that it did not write: uninitialised memory"),
        (INF, KEPT, {"kept": [KEPT]}, "the previous buffer, or a result cached by identity"),
        (INF, KEPT, {"kept": [KEPT], "repeated": True}, "on equal values: cached by value or by identity"),
        (0.5, EARLIER[0].clone(), {"earlier": [EARLIER]}, "returned the result of an earlier call .* cached by identity"),
        (0.9, torch.zeros(3), {}, "returned zeros, as memory that it did not write"),
        (0.4, INPUT.clone(), {"inputs": ({"x": INPUT},)}, "returns its input"),
        (INF, torch.tensor([1.0, math.nan, 1.0]), {}, "NaN never compares equal"),
        (0.3, torch.ones(3), {"right_first": True}, "right only for the first input"),
        (2.0**-11, torch.ones(3), {}, r"lower precision than it says: .* rounding to TF32 or float16"),
        (2.0**-8, torch.ones(3), {}, r"lower precision than it says: .* rounding to (TF32 or float16|bfloat16)"),
        (1e9, torch.ones(3), {}, "values as uninitialised memory holds them"),
        (0.5, torch.ones(3), {}, "not the specification's result: error 0.5, allowed 1e-06"),
        (0.5, torch.ones(3), {"late": True}, "right when it was checked, wrong in a timed call: not the specification's"),
        (INF, poisoned(), {"late": True}, "right when it was checked, wrong in a timed call: returned memory that it did not"),
    ],
)
def test_each_trick_has_its_sentence(found, output, clues, sentence):
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(check.explain_error(found, 1e-6, (output,), torch.float32, clues))


def test_a_coarse_dtype_is_not_accused_of_the_rounding_it_states():
    for dtype, found in ((torch.bfloat16, 2.0**-11), (torch.float16, 2.0**-13)):
        assert "lower precision" not in check.explain_error(found, 1e-6, torch.ones(3, dtype=dtype), dtype, {})


# ---- random outputs ----------------------------------------------------------------------------------------------------------


def draws(generator, mean=1.0, spread=1.0, size=2000):
    """RUNS outputs whose elements are normal, projected as measure does it."""
    runs = (mean * torch.linspace(-1, 1, size) + spread * torch.randn(size, generator=generator) for _ in range(check.RUNS))
    return [check.projected(run) for run in runs]


def test_equal_distributions_raise_no_alarm():
    generator = torch.Generator().manual_seed(5)
    alarms = [check.same_distribution(draws(generator, size=64), draws(generator, size=64)) for _ in range(150)]
    assert [text for text in alarms if text] == []


@pytest.mark.parametrize("size", [33, 2000])
def test_a_doubled_spread_is_found_every_time_and_named(size):
    generator = torch.Generator().manual_seed(6)
    found = [
        check.same_distribution(draws(generator, mean=0.0, size=size), draws(generator, mean=0.0, spread=2.0, size=size))
        for _ in range(15)
    ]
    # eight variance ratios of 4 with 31 and 31 degrees of freedom: one of them exceeds 4.6 in most checks
    assert sum("the spread of its random outputs differs" in text for text in found) >= 12


def dropout(x, generator, gain=1.0, p=0.5):
    return [check.projected(gain * x * (torch.rand(x.shape, generator=generator) >= p) / (1 - p)) for _ in range(check.RUNS)]


def test_a_mean_shifted_by_one_percent_is_found():
    generator = torch.Generator().manual_seed(7)
    x = 100 + torch.randn(40, 50, generator=generator)
    near_constant = [
        [check.projected(gain * x + 0.1 * torch.randn(x.shape, generator=generator)) for _ in range(check.RUNS)]
        for gain in (1.0, 1.01)
    ]
    assert "mean of its random outputs differs" in check.same_distribution(*near_constant)


def test_a_forgotten_rescaling_of_dropout_is_found_and_dropout_itself_is_not():
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(40, 25, generator=generator)
    for _ in range(5):
        assert check.same_distribution(dropout(x, generator), dropout(x, generator)) == ""
        assert check.same_distribution(dropout(x, generator, gain=0.5), dropout(x, generator))


def test_constant_outputs_must_be_equal_and_nan_is_a_difference():
    constant = [check.projected(torch.ones(10))] * check.RUNS
    assert check.same_distribution(constant, constant) == ""
    assert "mean" in check.same_distribution([p * (1 + 1e-3) for p in constant], constant)
    assert check.same_distribution([p * math.nan for p in constant], constant)


def test_projections_are_fixed_linear_and_see_every_leaf():
    a, b = torch.randn(30, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    torch.testing.assert_close(check.projected(a) + check.projected(b), check.projected(a + b))
    assert torch.equal(check.projected((a, torch.arange(3))), check.projected((a,)))
    assert not torch.equal(check.projected((a, b)), check.projected((a, 2 * b)))
    assert check.projected(a).shape == (check.PROJECTIONS,)
    # random signs over the root of the size: the projection of noise has the noise's own spread
    assert check.projected(torch.ones(1)).abs().tolist() == [1.0] * check.PROJECTIONS


# ---- traces: settings, functions, threads ------------------------------------------------------------------------------------

CHANGES = [
    ("torch.get_num_threads()", lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    ("torch.get_default_dtype()", lambda: torch.set_default_dtype(torch.float64)),
    ("torch.get_float32_matmul_precision()", lambda: torch.set_float32_matmul_precision("medium")),
    ("torch.backends.cudnn.benchmark", lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)),
    ("torch.are_deterministic_algorithms_enabled()", lambda: torch.use_deterministic_algorithms(True)),
    ("torch.is_grad_enabled()", lambda: torch.set_grad_enabled(False)),
    ("the stack of torch function modes", lambda: AnyFunction().__enter__()),
]
LOST = [
    ("torch.backends.mkldnn.enabled", lambda: torch.backends.mkldnn.set_flags(False)),
    ("autocast on the CPU", lambda: torch.set_autocast_enabled("cpu", True)),
]


class AnyFunction(torch.overrides.TorchFunctionMode):
    """A mode that sees every torch function, as a cheat would leave behind."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_it_was():
    """Whatever a test does to mkldnn and autocast ends with it."""
    yield
    torch.backends.mkldnn.set_flags(True)
    torch.set_autocast_enabled("cpu", False)


@pytest.mark.parametrize(("name", "change"), [*CHANGES, *LOST])
def test_a_changed_setting_shows_and_is_put_back(name, change, as_it_was):
    before = check.settings()
    try:
        change()
        changed = {key for key, value in check.settings().items() if value != before[key]}
        assert changed >= {name}
    finally:
        check.restore(before)
    assert check.settings() == before


def double(x):
    return 2 * x


def triple(x):
    return 3 * x


def test_a_replaced_function_is_named_and_put_back():
    owner = types.SimpleNamespace(double=double, number=3)
    owner.__name__ = "toy"
    before = check.functions(owner)
    assert check.replaced(before) == ""
    owner.double = triple
    assert check.replaced(before) == "toy.double"
    assert owner.double is double
    assert check.replaced(before) == ""


def test_a_replaced_clock_or_torch_function_is_named_and_put_back():
    import time

    before, clock, relu = check.functions(), time.perf_counter_ns, torch.nn.functional.relu
    try:
        time.perf_counter_ns = lambda: 0
        torch.nn.functional.relu = double
        assert check.replaced(before) == "time.perf_counter_ns, torch.nn.functional.relu"
        assert (time.perf_counter_ns, torch.nn.functional.relu) == (clock, relu)
    finally:
        time.perf_counter_ns, torch.nn.functional.relu = clock, relu


def test_a_functions_replaced_code_is_named_and_put_back():
    def victim(x):
        return 2 * x

    before = check.functions(check.Codes(victim))
    victim.__code__ = triple.__code__
    assert check.replaced(before) == "the specification.victim.__code__"
    assert victim(1) == 2


def test_a_modules_forward_is_watched():
    class Layer(nn.Module):
        def forward(self, x):
            return 2 * x

    before, code = check.functions(check.Codes(Layer())), Layer.forward.__code__
    Layer.forward.__code__ = (lambda self, x: 3 * x).__code__
    assert check.replaced(before).endswith(".forward.__code__")
    assert Layer.forward.__code__ is code


def test_threads_that_appeared_are_found():
    known, stop = threading.enumerate(), threading.Event()
    worker = threading.Thread(target=stop.wait, name="worker")
    worker.start()
    try:
        assert check.new_threads(known) == [worker]
        assert check.new_threads([*known, worker]) == []
        assert worker.ident in check.positions([worker])
    finally:
        stop.set()
        worker.join()


# ---- oracle ------------------------------------------------------------------------------------------------------------------


def work(fn, sets=None):
    def make(*, device, dtype, seed):
        return Problem(fn() if isinstance(fn, type) else fn, sets or [(torch.randn(3, 5).to(dtype),) for _ in range(3)])

    return Workload("w", make)


def settings_for(dtype):
    return {"device": "cpu", "dtype": dtype, "seed": 0}


def test_the_oracle_runs_in_float64_on_the_very_same_values():
    x = torch.randn(3, 5).bfloat16()
    oracle = check.oracle_for(work(lambda x: torch.softmax(x, -1)), settings_for(torch.bfloat16), (x,))
    found = oracle((x,))
    assert oracle.precision == "float64"
    assert found.dtype == torch.float64
    assert torch.equal(found, torch.softmax(x.double(), -1))


class Half(nn.Linear):
    """A layer with weights that are the same each time."""

    def __init__(self):
        super().__init__(5, 2)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-1, 1, 10).reshape(2, 5))
            self.bias.copy_(torch.tensor([0.1, 0.2]))


def test_a_modules_oracle_has_the_modules_weights_widened():
    x = torch.randn(3, 5)
    oracle = check.oracle_for(work(Half), settings_for(torch.float32), (x,))
    by_hand = x.double() @ Half().weight.double().t() + Half().bias.double()
    torch.testing.assert_close(oracle((x,)), by_hand, rtol=1e-13, atol=1e-15)


def no_float64(x):
    if x.dtype == torch.float64:
        raise RuntimeError("no kernel for float64")
    return 2 * x


def test_float32_stands_in_for_dtypes_coarser_than_itself_and_only_for_those():
    x = torch.ones(3, 5).bfloat16()
    oracle = check.oracle_for(work(no_float64), settings_for(torch.bfloat16), (x,))
    assert oracle.precision == "float32"
    assert oracle((x,)).dtype == torch.float32
    with pytest.raises(Wrong, match=r"workload 'w' could not run in float64.*no kernel for float64.*pass tensors as inputs"):
        check.oracle_for(work(no_float64), settings_for(torch.float32), (x.float(),))


def test_the_oracle_takes_gradients_where_the_inputs_ask_for_them():
    def gradient(x, n):
        return torch.autograd.grad((x**3).sum() * n, x)[0]

    inputs = (torch.tensor([1.0, 2.0], requires_grad=True), 2)
    oracle = check.oracle_for(work(gradient, [inputs] * 3), settings_for(torch.float32), inputs)
    assert oracle(inputs).tolist() == [6.0, 24.0]
    assert inputs[0].grad is None


def test_the_limit_is_the_tolerance_in_roundoffs_plus_four_times_the_specifications_own_error():
    workload = work(double)
    assert check.limit_for(workload, torch.float32, 1e-7) == pytest.approx(16 * 2.0**-24 + 4e-7)
    assert check.limit_for(workload, torch.bfloat16, 0.0) == pytest.approx(16 * 2.0**-8)


def test_cosine_of_lists_of_tensors():
    a, b = [torch.tensor([1.0, 0.0]), torch.tensor([2.0])], [torch.tensor([0.0, 1.0]), torch.tensor([2.0])]
    assert check.cosine(a, a) == pytest.approx(1)
    assert check.cosine(a, b) == pytest.approx(4 / 5)
    assert check.cosine([torch.zeros(2)], [torch.zeros(2)]) == 1.0
    assert check.cosine([torch.zeros(2)], [torch.ones(2)]) == 0.0


def test_shapes_keep_everything_but_memory():
    x = {"a": torch.ones(1000, 1000), "b": torch.tensor(3.0), "n": 4}
    found = check.shapes(x)
    assert (found["a"].shape, found["a"].dtype, found["n"]) == (x["a"].shape, torch.float32, 4)
    assert found["a"].untyped_storage().nbytes() == 4


def test_small_copies_are_independent_and_stop_at_the_limit():
    x = torch.ones(10)
    (copy,) = check.small_copy(x)
    x.zero_()
    assert torch.equal(copy, torch.ones(10))
    assert check.small_copy(x, limit=39) == []
