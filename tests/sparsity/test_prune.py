"""Whole models pruned: what is written, what is left and why, what the report says, what is refused before any work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kpt_lab.sparsity import (
    CRITERIA,
    Calibration,
    Pruning,
    SparsityPattern,
    layer_error,
    magnitude_mask,
    pack,
    prune,
    prune_weight,
)


class Net(nn.Module):
    """An embedding tied to the head, a layer that fits, a convolution, a width that doesn't fit."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Conv1d(8, 8, 1)
        self.one, self.two, self.odd = nn.Linear(8, 12), nn.Linear(12, 6), nn.Linear(6, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.mix(self.embed(tokens).mT).mT
        return self.head(self.norm(self.odd(self.two(torch.tanh(self.one(x))))))


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def batches():
    return [torch.randint(0, 20, (4, 10)) for _ in range(3)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}


def is_24(weight: torch.Tensor) -> bool:
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_copy_is_pruned_and_the_model_left_alone(net, batches, criterion):
    before = state(net)
    done = prune(net, criterion=criterion, calibration=Calibration.collect(net, batches))
    assert unchanged(net, before) == set(before)
    assert done.model is not net
    assert set(before) - unchanged(done.model, before) == {"one.weight", "two.weight"}
    assert is_24(done.model.one.weight)
    assert is_24(done.model.two.weight)
    assert done.model.head.weight is done.model.embed.weight
    assert [layer.name for layer in done.pruned] == ["one", "two"]
    for layer in done.pruned:
        assert layer.kept == 0.5
        assert layer.criterion == criterion
        assert layer.shape == tuple(getattr(net, layer.name).weight.shape)
        assert 0 < layer.error_after <= layer.error_before < 1
    pack(done.model.one.weight)


def test_what_is_left_is_named_with_the_reason(net):
    assert prune(net).skipped == {
        "embed": "an embedding, whose rows are looked up and not multiplied",
        "mix": "a Conv1d; only nn.Linear is pruned",
        "odd": "6 input features are not divisible by 4",
        "head": "its weight is shared with embed",
    }


def test_in_place_writes_into_the_same_parameters(net):
    weight, address = net.one.weight, net.one.weight.data_ptr()
    dense = weight.detach().clone()
    done = prune(net, inplace=True)
    assert done.model is net
    assert net.one.weight is weight
    assert weight.data_ptr() == address
    assert weight.requires_grad
    assert torch.equal(weight, torch.where(magnitude_mask(dense), dense, 0))
    again = state(net)
    prune(net, inplace=True)
    assert unchanged(net, again) == set(again)  # pruning what is pruned changes nothing


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_report_says_what_was_written(net, batches, criterion):
    calibration = Calibration.collect(net, batches)
    done = prune(net, criterion=criterion, calibration=calibration)
    for layer in done.pruned:
        dense, gram = getattr(net, layer.name).weight, calibration.gram(layer.name)
        pruned, mask = prune_weight(dense, criterion=criterion, gram=gram)
        assert torch.equal(getattr(done.model, layer.name).weight, pruned)
        assert layer.error_after == layer_error(dense, pruned, gram)
        assert layer.error_before == layer_error(dense, torch.where(mask, dense, 0), gram)
        if criterion in ("magnitude", "wanda"):
            assert layer.error_after == layer.error_before


def test_printing_gives_one_line_a_layer(net, batches):
    lines = str(prune(net, criterion="wanda", calibration=Calibration.collect(net, batches))).splitlines()
    assert lines[0] == "2:4: 2 layers pruned, 4 skipped"
    assert lines[1] == "embed (20 x 8): skipped, an embedding, whose rows are looked up and not multiplied"
    assert any(line.startswith("one (12 x 8): wanda, 50% kept, error 0.") for line in lines)
    assert "error unknown without calibration" in str(prune(net))


def test_other_patterns_and_dtypes(net):
    model = nn.Sequential(nn.Linear(16, 4, dtype=torch.bfloat16), nn.Linear(24, 4, dtype=torch.float16), nn.Linear(12, 4))
    done = prune(model, "6:8")
    assert done.pattern == SparsityPattern(6, 8)
    assert done.skipped == {"2": "12 input features are not divisible by 8"}
    for layer in done.model[:2]:
        assert bool(((layer.weight != 0).unflatten(1, (-1, 8)).sum(-1) == 6).all())
    assert [layer.kept for layer in done.pruned] == [0.75, 0.75]
    assert done.model[0].weight.dtype == torch.bfloat16


def test_shared_weights_are_left_however_they_are_shared():
    tied, over, twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.ModuleDict({"a": tied, "b": nn.Linear(4, 4), "c": over, "d": nn.Linear(4, 4), "e": twice, "f": twice})
    model["b"].weight = tied.weight
    model["d"].weight = nn.Parameter(over.weight.data)  # another Parameter over the same memory
    done = prune(model)
    assert done.skipped == {name: f"its weight is shared with {other}" for name, other in ("ab", "ba", "cd", "dc")}
    assert [layer.name for layer in done.pruned] == ["e"]  # one module under two names is one layer
    assert done.model["f"] is done.model["e"]
    assert is_24(done.model["f"].weight)


def test_layers_that_cannot_be_pruned_say_why(batches):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.idle, self.silent, self.runs = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.none = nn.Linear(0, 4)
            self.whole = nn.Linear(8, 4)
            self.whole.weight = nn.Parameter(torch.ones(4, 8, dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return self.runs(self.normed(x)) + self.silent(0 * x)

    with pytest.warns(UserWarning, match="zero-element"):
        model = Model().eval()
    done = prune(model, criterion="wanda", calibration=Calibration.collect(model, [torch.randn(3, 8)]))
    assert done.skipped == {
        "attention.out_proj": "it did not run in calibration",
        "normed": "its weight is computed (a parametrization), not stored",
        "idle": "it did not run in calibration",
        "silent": "its inputs were all zero in calibration",
        "none": "its weight is empty",
        "whole": "its weight is torch.int8; float16, bfloat16, float32 and float64 are pruned",
    }
    assert [layer.name for layer in prune(model).pruned] == ["attention.out_proj", "idle", "silent", "runs"]


def test_layers_can_be_left_by_name(net):
    done = prune(net, skip=["one"])
    assert done.skipped["one"] == "as asked"
    assert torch.equal(done.model.one.weight, net.one.weight)


def test_a_linear_layer_alone_is_a_model():
    layer = nn.Linear(8, 4).eval()
    done = prune(layer, criterion="least_squares", calibration=Calibration.collect(layer, [torch.randn(32, 8)]))
    assert is_24(done.model.weight)
    assert isinstance(done, Pruning)


def test_pruning_does_not_need_the_model_in_evaluation_mode_nor_changes_its_mode(net):
    assert prune(net.train()).model.training


def test_pruning_is_the_same_each_time(net, batches):
    for criterion in CRITERIA:
        first, second = (prune(net, criterion=criterion, calibration=Calibration.collect(net, batches)) for _ in range(2))
        assert unchanged(first.model, state(second.model)) == set(net.state_dict())
        assert first.layers == second.layers


def collected(net: Net) -> Calibration:
    return Calibration.collect(net, [torch.randint(0, 20, (1, 2))])  # two tokens: singular without damping


def other(net: Net) -> Calibration:
    model = nn.ModuleDict({"one": nn.Linear(4, 4)})
    model.forward = lambda x: model["one"](x)
    return Calibration.collect(model.eval(), [torch.ones(1, 4)])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"criterion": "wanda"}, ValueError, r"criterion 'wanda' needs Calibration\.collect\(model, batches\)"),
        ({"criterion": "least_squares"}, ValueError, "calibration is None"),
        ({"criterion": "random"}, ValueError, "criterion is 'random'; accepted are 'magnitude', 'wanda'"),
        ({"pattern": SparsityPattern.AUTO}, ValueError, "calibration is None"),
        ({"pattern": SparsityPattern.AUTO, "criterion": "wanda"}, ValueError, "AUTO chooses it itself"),
        ({"pattern": "dense"}, ValueError, "pattern is 'dense'"),
        ({"calibration": {"one": 1}}, TypeError, "calibration is dict"),
        ({"damping": -0.1}, ValueError, "damping is -0.1"),
        ({"skip": "one"}, TypeError, r"skip is the string 'one'; .* pass \['one'\]"),
        ({"skip": ["first"]}, ValueError, "skip names 'first', which model does not have"),
        (
            {"calibration": collected, "criterion": "sparsegpt", "damping": 0},
            ValueError,
            "layer 'one': .* not positive definite",
        ),
        ({"calibration": collected, "criterion": "least_squares", "damping": 0}, ValueError, "pass a larger damping"),
        ({"calibration": other, "criterion": "wanda"}, ValueError, r"calibration for layer 'one': gram is \(4, 4\)"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(net, options, error, sentence):
    before = state(net)
    if callable(options.get("calibration")):
        options = {**options, "calibration": options["calibration"](net)}
    with pytest.raises(error, match=sentence):
        prune(net, inplace=True, **options)
    assert unchanged(net, before) == set(before)


def test_weights_that_are_not_finite_stop_it_before_anything_is_written(net):
    with torch.no_grad():
        net.two.weight[0, 0] = float("nan")
    kept = net.one.weight.detach().clone()
    with pytest.raises(ValueError, match="the weight of two holds NaN or infinity"):
        prune(net, inplace=True)
    assert torch.equal(net.one.weight, kept)


@pytest.mark.parametrize(
    ("model", "error"), [(nn.ReLU(), ValueError), (nn.Embedding(4, 4), ValueError), (torch.ones(4, 4), TypeError)]
)
def test_what_has_no_linear_layer_is_refused(model, error):
    with pytest.raises(error, match=r"no nn\.Linear|model is Tensor"):
        prune(model)
