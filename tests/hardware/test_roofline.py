"""The roofline: work and traffic by part against hand counts, which side bounds, measured times as Trials, predictions without any."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import kpt_lab as kpt
from kpt_lab.core import Cost, Metric, Problem, Target, Workload
from kpt_lab.hardware import devices, targets
from kpt_lab.hardware import roofline as module
from kpt_lab.hardware.counted import Call, cost_of, parts_of
from kpt_lab.hardware.roofline import Roofline, roofline

FAST = Target("fast", {"float32": 1e15, "bfloat16": 2e15}, 1e14, dict.fromkeys(("float32", "bfloat16", "bandwidth"), "made up"))


class Attention(nn.Module):
    """Projections, and attention's products between them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(12, 12), nn.Linear(12, 12, bias=False)

    def forward(self, x: torch.Tensor, causal: bool = False) -> torch.Tensor:
        q = self.query(x).view(2, 5, 3, 4).transpose(1, 2)
        return self.out(F.scaled_dot_product_attention(q, q, q, is_causal=causal).transpose(1, 2).reshape(2, 5, 12))


class Small(nn.Module):
    """Two equal layers, a norm, an activation, dropout and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.Dropout(0.5))
        self.norm = nn.LayerNorm(6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layers(self.table(tokens)))


class Keyword(nn.Module):
    """A part that is called with a keyword and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Scaled()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, by=3.0, shift=x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: torch.Tensor, *, by: float, shift: torch.Tensor) -> torch.Tensor:
        return by * (x @ self.weight) + shift


class Refusing(nn.Module):
    """Runs once, and then no more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.broken = lambda: None  # can't be pickled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


@pytest.fixture(autouse=True)
def known_cpu(monkeypatch: pytest.MonkeyPatch) -> Target:
    """A CPU that nothing here can be faster than, and that is not probed."""
    monkeypatch.setattr(targets, "this_cpu", lambda *, again=False: FAST)
    return FAST


def named(found: Roofline) -> dict[str, module.Row]:
    return {row.name: row for row in found.parts}


# ---- counting


def test_a_linear_layer_counts_its_product_and_each_byte_once() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    assert cost_of(Call(layer, (x,), {})) == Cost({"float32": 2.0 * 3 * 7 * 5}, 4.0 * (3 * 7 + 7 * 5 + 5 + 3 * 5))
    half = cost_of(Call(layer, (x,), {}), "bfloat16")
    assert half == Cost({"bfloat16": 2.0 * 3 * 7 * 5}, 2.0 * (3 * 7 + 7 * 5 + 5 + 3 * 5))


def test_parts_are_modules_that_call_no_other_with_equal_calls_together() -> None:
    tokens = torch.tensor([[1, 2, 1], [3, 1, 2]])
    parts = {part.name: part for part in parts_of(Small().eval(), (tokens,), {})}
    assert list(parts) == ["table", "layers.0", "layers.1", "layers.3", "norm"]
    assert parts["layers.0"].names == ("layers.0", "layers.2")
    assert parts["layers.0"].cost == Cost({"float32": 2.0 * 6 * 6 * 6}, 4.0 * (36 + 36 + 6 + 36))
    assert parts["table"].cost == Cost({}, 8.0 * 6 + 4.0 * (3 * 6) + 4.0 * 36)  # three different rows are looked up
    assert parts["layers.1"].cost == Cost({}, 4.0 * 72)
    assert parts["layers.3"].cost == Cost({}, 0.0)  # dropout that drops nothing


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_module_computes_between_its_parts_is_a_row_of_its_own(causal: bool) -> None:
    parts = parts_of(Attention(), (torch.randn(2, 5, 12),), {"causal": causal})
    assert [part.name for part in parts] == ["query", "out", "Attention, its own"]
    products = 2 * 2.0 * 2 * 3 * 5 * 5 * 4  # two products for each of 2 sequences and 3 heads
    assert parts[-1].cost == Cost({"float32": products / 2 if causal else products}, 0.0)
    assert parts[-1].call is None


def test_the_parts_flops_are_the_whole_models_as_torch_counts_them() -> None:
    layer = nn.TransformerEncoderLayer(24, 3, 40, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 7, 24)
    total = sum(len(p.names) * sum(p.cost.flops.values()) for p in parts_of(model, (x,), {}))
    assert total == sum(cost_of(Call(model, (x,), {})).flops.values())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(x.requires_grad_())
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert total == counter.get_total_flops()


def test_counting_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    parts_of(model, (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)),), {})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError):
        parts_of(model, (torch.randn(6, 5),), {})
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_mixed_dtypes_count_by_arithmetic_type() -> None:
    model = nn.Sequential(nn.Linear(8, 8).bfloat16(), nn.Linear(8, 4).bfloat16())
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert cost_of(Call(model, (x,), {})).flops == {"bfloat16": 2.0 * 3 * 8 * 12}


# ---- predictions


def test_a_prediction_is_modelled_bounded_by_hand_and_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure", None)
    found = roofline(Small().eval(), torch.tensor([[1, 2, 3]]), target="NVIDIA A100-SXM4-80GB", dtype="bfloat16")
    sheet = devices.target("a100-sxm4-80gb")
    assert (found.target, found.device, found.dtype) == (sheet, "", "bfloat16")
    row = named(found)["layers.0"]
    assert row.calls == 2
    assert row.bound.value == pytest.approx(2.0 * (18 + 36 + 6 + 18) / sheet.bandwidth)
    assert (row.side, row.bound.provenance, row.time, row.share) == ("memory", "modelled", None, None)
    assert row.intensity is not None
    assert row.intensity.value == pytest.approx(2 * 3 * 36 / (2.0 * 78))
    assert row.rate is not None
    assert row.rate.provenance == "modelled"
    assert {trial.metrics["bound"].provenance for trial in found.trials} == {"modelled"}
    assert not any("time" in trial.metrics for trial in found.trials)
    assert "Nothing was measured" in repr(found)
    assert found.one_by_one.value == pytest.approx(sum(r.calls * r.bound.value for r in found.parts))


def test_a_large_product_is_bounded_by_arithmetic() -> None:
    found = roofline(torch.matmul, torch.zeros(512, 512), torch.zeros(512, 512), target=FAST)
    assert found.whole.side == "arithmetic"
    assert found.whole.bound.value == pytest.approx(2.0 * 512**3 / 1e15)
    assert found.parts == ()


def test_an_arithmetic_type_that_the_target_lacks_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="target 'v100-sxm2-32gb' has no peak for bfloat16; it knows"):
        roofline(nn.Linear(4, 4), torch.randn(2, 4), target="v100-sxm2-32gb", dtype="bfloat16")


def test_a_workload_is_taken_at_the_cost_that_it_states() -> None:
    from kpt_lab.kernels import softmax

    found = roofline(softmax.forward, rows=8, cols=16, target=FAST)
    assert found.whole.cost == softmax.forward.cost(dtype="float32", rows=8, cols=16)  # type: ignore[misc]
    assert found.trials[0].params == {"rows": 8, "cols": 16}


# ---- measuring


def test_each_part_and_the_whole_are_measured_trials_with_their_cost() -> None:
    found = roofline(Small().eval(), torch.tensor([[1, 2, 1], [3, 1, 2]]), budget=0.01)
    assert (found.device, found.dtype, found.target) == ("cpu", "float32", FAST)
    timed = [*found.parts, found.whole]
    assert [row.remark for row in timed if row.time is None] == []
    for row in timed:
        assert row.time is not None
        assert row.time.provenance == "measured"
        assert row.share is not None
        assert row.share.value == pytest.approx(row.bound.value / row.time.value)
        if row.rate is not None:
            assert row.rate.value == pytest.approx(row.work / row.time.value)
            assert row.rate.provenance == "measured"
    trial = found.trials.where(workload="layers.0 (Linear)", technique="eager")[0]
    assert (trial.status, trial.chosen["bytes"]) == ("ok", named(found)["layers.0"].cost.bytes)
    assert trial.metrics["bound"].value == pytest.approx(named(found)["layers.0"].bound.value)
    assert "layers.3" not in named(found)  # it does nothing
    assert repr(found).count("\n") >= len(timed)
    assert found.table().splitlines()[0].startswith("| part | kind | calls |")


def test_parts_with_other_arguments_are_timed_as_they_were_called() -> None:
    found = roofline(Keyword(), torch.randn(4, 3), budget=0.01)
    row = named(found)["inner"]
    assert row.time is not None, row.remark
    assert row.work == 2 * 4 * 9


def test_what_can_not_be_timed_says_why_and_costs_no_other_row() -> None:
    found = roofline(Refusing(), torch.randn(2, 3), budget=0.01)
    assert found.whole.time is None
    assert found.whole.remark.startswith("not timed: fn_or_module can't be copied by pickle")
    assert named(found)["linear"].time is not None
    own = roofline(Attention(), torch.randn(2, 5, 12), budget=0.01)
    assert named(own)["Attention, its own"].remark == "between the modules that it calls: not timed alone"
    assert "1 of 3 rows without a time" in repr(own)


def test_a_function_and_a_mapping_of_inputs() -> None:
    found = roofline(F.softmax, torch.randn(4, 5), -1, budget=0.01)
    assert (found.whole.name, found.whole.work, found.whole.side) == ("softmax", 0, "memory")
    assert found.whole.time is not None
    keyed = roofline(Small().eval(), {"tokens": torch.tensor([[1, 2]])}, budget=0.01)
    assert keyed.whole.time is not None, keyed.whole.remark


def test_a_workload_is_measured_as_a_whole() -> None:
    from kpt_lab.kernels import softmax

    found = roofline(softmax.forward, rows=4, cols=8, budget=0.01)
    assert found.whole.time is not None
    assert found.trials.where(technique="eager")[0].target == "fast"


def test_a_cpu_without_that_arithmetic_is_probed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probed:
        @staticmethod
        def target() -> Target:
            return Target("probed", {"float16": 1e15}, 1e14, {"float16": "made up", "bandwidth": "made up"})

    monkeypatch.setattr(module, "probe", lambda device: Probed)
    found = roofline(nn.Linear(4, 4), torch.randn(2, 4), dtype="float16", budget=0.01)
    assert found.target.name == "probed"
    assert found.whole.bound.value > 0


def test_work_that_a_cache_holds_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "this_cpu", lambda *, again=False: replace(FAST, cache=1e6))
    found = roofline(F.gelu, torch.randn(100), budget=0.01)
    assert (found.whole.remark, found.whole.side) == ("in cache", "memory")
    assert "In cache: so small that it may stay in a cache" in repr(found)


def test_a_transformers_model_has_its_attention_as_a_row() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(**sizes, intermediate_size=40, vocab_size=50)
    model, tokens = transformers.LlamaForCausalLM(config).eval(), torch.randint(0, 50, (2, 7))
    found = roofline(model, {"input_ids": tokens, "use_cache": False}, target=FAST)
    rows = named(found)
    own = rows["model.layers.0.self_attn, its own"]
    assert own.calls == 2
    assert own.work == 2 * 2.0 * 2 * 3 * 7 * 7 * 8 / 2  # causal
    assert rows["model.layers.0.mlp.gate_proj"].calls == 4
    assert rows["lm_head"].work == 2.0 * 14 * 24 * 50
    assert found.whole.work == sum(row.calls * row.work for row in found.parts)


@pytest.mark.gpu
def test_a_gpu_s_parts_stay_below_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = nn.Sequential(nn.Linear(1024, 2048), nn.GELU(), nn.Linear(2048, 1024)).cuda().bfloat16()
    found = roofline(model, torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16), budget=0.2)
    assert (found.device.split(":")[0], found.dtype) == ("cuda", "bfloat16")
    for row in (*found.parts, found.whole):
        assert row.time is not None, row.remark
        assert row.share is not None
        assert 0 < row.share.value < 1.1


# ---- figures


def test_the_figure_draws_a_point_for_each_part_that_has_flops_and_bytes() -> None:
    pytest.importorskip("plotly")
    found = roofline(Small().eval(), torch.tensor([[1, 2, 3]]), target=FAST)
    drawn = found.figure()
    points = {trace.name: trace for trace in drawn.data if trace.meta == "values"}
    assert set(points) == {"Linear", "whole"}
    row = named(found)["layers.0"]
    assert row.intensity is not None
    assert list(points["Linear"].x) == pytest.approx([row.intensity.value], rel=1e-5)
    assert list(points["Linear"].y) == pytest.approx([min(1e15, 1e14 * row.intensity.value)], rel=1e-5)
    assert [trace.name for trace in drawn.data if trace.meta == "roof"] == ["roof, float32"]
    notes = next(a.text for a in drawn.layout.annotations if a.name == "notes").replace("<br>", " ")
    assert "Not shown, without FLOPs or bytes: table, layers.1, norm." in notes
    with pytest.raises(ValueError, match="nothing can stand under a roof"):
        roofline(F.gelu, torch.randn(3), target=FAST).figure()


def test_measured_trials_go_into_the_project_s_own_roofline() -> None:
    pytest.importorskip("plotly")
    found = roofline(nn.Linear(8, 4), torch.randn(3, 8), budget=0.01)
    own = next(trace for trace in found.figure().data if trace.meta == "values")
    rate = found.whole.rate
    assert rate is not None
    assert rate.low is None or own.error_y.arrayminus[0] == pytest.approx(rate.value - rate.low, rel=1e-4)
    drawn = kpt.figures.roofline(found.trials, target=FAST)
    assert [trace.name for trace in drawn.data if trace.meta == "values"] == ["eager"]


# ---- wrong input


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((3,), {}, "what is int; accepted are a function, an nn.Module or a Workload"),
        ((F.gelu,), {}, "inputs holds no tensor; pass one set of example inputs"),
        ((F.gelu, torch.ones(2)), {"target": "abacus"}, "no device of the table has the driver name 'abacus'"),
        ((F.gelu, torch.ones(2)), {"target": 7}, "target is a int; accepted are a Target, or a device's name"),
        ((F.gelu, torch.ones(2)), {"target": "m4-max"}, "'m4-max' can't bound a time: Apple prints no peak rate"),
        ((F.gelu, torch.ones(2)), {"target": FAST, "device": "cpu"}, "accepted is one of them"),
        ((F.gelu, torch.ones(2)), {"device": "tpu"}, "device is 'tpu'; accepted are 'cpu' and 'cuda'"),
        ((F.gelu, torch.ones(2)), {"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'; accepted are float64, float32"),
        ((F.gelu, torch.ones(2)), {"dtype": "int"}, "dtype is 'int'; accepted are torch dtypes|dtype is 'int32'"),
        ((F.gelu, torch.ones(2)), {"budget": 0}, "budget is 0; accepted are seconds above 0"),
        ((F.gelu, torch.ones(2)), {"rows": 3}, "'rows' is no argument of roofline"),
    ],
)
def test_wrong_input_is_one_sentence(arguments: tuple, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        roofline(*arguments, **options)


def test_a_workload_that_can_not_be_bounded_says_so() -> None:
    bare = Workload("bare", lambda *, device, dtype, seed: Problem(abs, [(1,)] * 3))
    with pytest.raises(ValueError, match="workload 'bare' states no cost"):
        roofline(bare)
    with pytest.raises(ValueError, match="inputs are given beside a Workload"):
        roofline(bare, torch.ones(1))


def test_an_untimed_row_has_no_share() -> None:
    row = module.Row("x", "Linear", 1, Cost({"float32": 10.0}, 5.0), Metric(1.0, "s", "modelled", source="s"), "memory")
    assert row.share is None
    assert row.intensity is not None
    assert row.intensity.value == 2.0
