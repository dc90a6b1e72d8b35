"""StructuredSparse: the call as written, reports, the loss budget, AUTO, files, and what is refused; GPUs are pretended."""

from __future__ import annotations

import copy

import fakes
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kpt_lab.core import Unsupported
from kpt_lab.sparsity import CRITERIA, Calibration, SparsityPattern, StructuredSparse, layer_error, prune_weight
from kpt_lab.sparsity.linear import SparseLinear

H100 = "NVIDIA H100 80GB HBM3"


def net(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 8)
    return model.to(dtype)


def batches(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(64, 64, generator=generator)
    return [(torch.randn(40, 64, generator=generator) @ mix / 8).to(dtype) for _ in range(4)]


def is_24(weight):
    return bool(((weight != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())


@pytest.fixture
def h100(monkeypatch, tmp_path):
    """A pretended H100 on which the forms take the seconds of `times`; models stay on the CPU, where the fakes compute."""
    times = {"sparse": 1.0, "dense": 2.0}
    fakes.install(monkeypatch, lambda name: times.get(name, 1.0))
    monkeypatch.setenv("KPT_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *args: H100)
    return times


# ---- the call as written


def test_the_call_of_the_requirements():
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = StructuredSparse.convert(model=model, pattern=SparsityPattern.SPARSE_24, hardware_target="H100")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [layer.runs for layer in made.layers] == ["dense"] * 3
    assert all(is_24(made.model[k].weight) for k in (0, 2, 4))
    assert made.machine.name == "H100"
    text = str(made)
    assert "2:4 for H100: 0 layers run sparse, 3 pruned and dense, 0 unpruned" in text
    assert "this is a machine without a CUDA device: layers stay dense here" in text
    assert "0 (96 x 64): magnitude, 50% kept, error unknown without calibration; runs dense: pruned for H100" in text


@pytest.mark.parametrize("given", ["batches", "calibration"])
def test_calibration_lowers_the_error(given):
    model = net()
    calibration = batches() if given == "batches" else Calibration.collect(model, batches())
    best = StructuredSparse.convert(model, calibration=calibration)
    plain = StructuredSparse.convert(model, calibration=calibration, criterion="magnitude")
    for one, other in zip(best.layers, plain.layers, strict=True):
        assert one.pruning.criterion == "sparsegpt+least_squares"
        assert one.pruning.error_after < other.pruning.error_after
    assert "Weights are pruned and layers stay dense: 2:4 products need an NVIDIA GPU" in str(best)


def test_a_transformers_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    model = transformers.BertModel(config).eval()
    tokens = {"input_ids": torch.randint(0, 50, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.int64)}
    made = StructuredSparse.convert(model=model, calibration=[tokens], hardware_target="h100-sxm")
    runs = {layer.name: layer.runs for layer in made.layers}
    assert sum(fate == "dense" for fate in runs.values()) == 13  # six a block, and the pooler
    assert runs["embeddings.word_embeddings"] == "unpruned"
    made.save(tmp_path / "bert.safetensors")
    again = StructuredSparse.load(tmp_path / "bert.safetensors", transformers.BertModel(config).eval())
    assert torch.equal(again.model(**tokens).last_hidden_state, made.model(**tokens).last_hidden_state)


def test_gpt2_layers_are_linearised(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = {"input_ids": torch.randint(0, 50, (3, 12))}
    made = StructuredSparse.convert(model, calibration=[tokens])
    fates = {layer.name: layer.runs for layer in made.layers}
    assert fates["transformer.h.0.attn.c_attn"] == fates["transformer.h.0.mlp.c_proj"] == "dense"
    assert fates["lm_head"] == "unpruned"  # tied to the embedding
    assert type(model.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
    made.save(tmp_path / "gpt2.safetensors")
    again = StructuredSparse.load(tmp_path / "gpt2.safetensors", transformers.GPT2LMHeadModel(config).eval())
    assert torch.equal(again.model(**tokens).logits, made.model(**tokens).logits)
    assert again.model.lm_head.weight is again.model.transformer.wte.weight


# ---- the loss budget


def quality_on(reference, x):
    wanted = reference(x).detach()
    return lambda model: 0.1 + F.mse_loss(model(x).float(), wanted).item()


@pytest.mark.parametrize("budget", [0.0, 0.02, 0.1, 1.0])
def test_the_loss_budget_holds_with_the_most_damaging_layers_put_back(budget):
    model, x = net(), torch.cat(batches())
    quality = quality_on(model, x)
    made = StructuredSparse.convert(model, calibration=batches(), quality=quality, loss_budget=budget, criterion="magnitude")
    assert made.loss[0] == pytest.approx(0.1)
    assert made.loss[1] == quality(made.model) <= 0.1 * (1 + budget)
    assert made.rise <= budget + 1e-6
    back = [layer for layer in made.layers if layer.runs == "unpruned"]
    for layer in back:
        assert "put back for the loss budget" in str(layer)
        assert torch.equal(made.model.get_submodule(layer.name).weight, model.get_submodule(layer.name).weight)
    if budget == 0.0:
        assert len(back) == 3
    rises = {}
    for name in ("0", "2", "4"):
        alone = copy.deepcopy(model)
        weight = alone.get_submodule(name).weight
        with torch.no_grad():
            weight.copy_(prune_weight(weight)[0])
        rises[name] = quality(alone)
    order = sorted(rises, key=rises.get, reverse=True)
    assert {layer.name for layer in back} == set(order[: len(back)])


def test_a_loss_that_breaks_counts_as_over_the_budget():
    model, x = net(), torch.cat(batches())

    def quality(candidate):
        return float("nan") if is_24(candidate[0].weight) else 1.0

    made = StructuredSparse.convert(model, loss_budget=0.5, quality=quality)
    assert [layer.runs for layer in made.layers] == ["unpruned", "dense", "dense"]
    assert made.model(x).isfinite().all()


def test_quality_without_a_budget_is_reported():
    model = net()
    made = StructuredSparse.convert(model, quality=quality_on(model, batches()[0]))
    assert made.loss[1] > made.loss[0]
    assert f"({made.rise:+.2%})" in str(made)


# ---- on the target itself


@pytest.mark.parametrize("arithmetic", [None, "float8_e4m3fn"])
def test_layers_that_win_run_sparse(h100, monkeypatch, arithmetic):
    monkeypatch.setattr("kpt_lab.sparsity.machine.find", here)
    model = net(torch.bfloat16)
    made = StructuredSparse.convert(model, hardware_target="H100", tokens=[16, 4096], arithmetic=arithmetic)
    kinds = {layer.name: (layer.runs, layer.why) for layer in made.layers}
    assert kinds["0"][0] == kinds["2"][0] == "sparse"
    assert "up to 4096 tokens: sparse" in kinds["0"][1]
    assert kinds["4"][0] == "dense"  # 10 rows
    assert "not divisible by" in kinds["4"][1]
    assert isinstance(made.model[0], SparseLinear)
    x, plain = batches(torch.bfloat16)[0], StructuredSparse.convert(model).model
    torch.testing.assert_close(made.model(x), plain(x), rtol=0.1, atol=0.1)


def here(target, model):
    from kpt_lab.sparsity.machine import Machine

    return Machine(target or "a made-up GPU", True)


def test_layers_that_lose_stay_dense_and_auto_leaves_them_alone(h100, monkeypatch):
    monkeypatch.setattr("kpt_lab.sparsity.machine.find", here)
    h100["dense"] = 0.5
    model = net(torch.bfloat16)
    made = StructuredSparse.convert(model, calibration=batches(torch.bfloat16))
    assert [layer.runs for layer in made.layers] == ["dense"] * 3
    assert "dense is faster: up to 4096 tokens: dense (sparse" in str(made)
    auto = StructuredSparse.convert(model, SparsityPattern.AUTO, calibration=batches(torch.bfloat16))
    assert [layer.runs for layer in auto.layers] == ["unpruned"] * 3
    assert all(torch.equal(auto.model[k].weight, model[k].weight) for k in (0, 2, 4))
    h100["dense"] = 2.0
    auto = StructuredSparse.convert(model, "auto", calibration=batches(torch.bfloat16), tokens=128)
    assert [layer.runs for layer in auto.layers] == ["sparse", "sparse", "unpruned"]


def test_without_the_dense_weight_a_model_can_be_saved(h100, monkeypatch, tmp_path):
    monkeypatch.setattr("kpt_lab.sparsity.machine.find", here)
    model = net(torch.bfloat16)
    both = StructuredSparse.convert(model)
    made = StructuredSparse.convert(model, keep_dense=False)
    assert made.model[0].memory()["dense"] == 0
    assert torch.equal(made.model[0].dense_weight(), both.model[0].weight)
    made.save(tmp_path / "a.safetensors")
    again = StructuredSparse.load(tmp_path / "a.safetensors", net(torch.bfloat16, seed=9))
    assert [layer.runs for layer in again.layers] == ["sparse", "sparse", "dense"]
    x = batches(torch.bfloat16)[0]
    assert torch.equal(again.model(x), both.model(x))
    eight = StructuredSparse.convert(model, arithmetic="float8_e4m3fn")
    with pytest.raises(ValueError, match="layer '0' runs in float8_e4m3fn"):
        eight.save(tmp_path / "b.safetensors")


def test_eight_bits_over_the_budget_go_back_to_dense(h100, monkeypatch):
    monkeypatch.setattr("kpt_lab.sparsity.machine.find", here)
    model, x = net(torch.bfloat16), torch.cat(batches(torch.bfloat16))

    def quality(candidate):
        return 2.0 if any(isinstance(part, SparseLinear) for part in candidate.modules()) else 1.0

    made = StructuredSparse.convert(model, loss_budget=0.1, quality=quality, arithmetic="float8_e4m3fn")
    assert [layer.runs for layer in made.layers] == ["dense"] * 3
    assert made.loss == (1.0, 1.0)
    assert "over the budget" in made.layers[0].why
    assert made.model(x).isfinite().all()


# ---- AUTO


def test_auto_keeps_the_lower_error_and_says_that_time_is_unknown():
    model = net()
    calibration = Calibration.collect(model, batches())
    made = StructuredSparse.convert(model, SparsityPattern.AUTO, calibration=calibration)
    assert "Time unknown here" in str(made)
    for layer in made.layers:
        weight, gram = model.get_submodule(layer.name).weight, calibration.gram(layer.name)
        errors = {c: layer_error(weight, prune_weight(weight, criterion=c, gram=gram)[0], gram) for c in CRITERIA[3:]}
        assert layer.pruning.criterion == min(errors, key=errors.get)
        assert layer.pruning.error_after == pytest.approx(min(errors.values()))


@pytest.mark.parametrize("seed", range(5))
def test_errors_are_in_order_on_correlated_inputs(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 64, generator=generator)
    loud = torch.logspace(-1, 1, 64)[torch.randperm(64, generator=generator)]
    x = (
        torch.randn(256, 12, generator=generator) @ torch.randn(12, 64, generator=generator)
        + 0.3 * torch.randn(256, 64, generator=generator)
    ) * loud
    gram = x.double().t() @ x.double()
    errors = [
        layer_error(weight, prune_weight(weight, criterion=c, gram=gram)[0], gram)
        for c in ("least_squares", "wanda", "magnitude")
    ]
    assert errors == sorted(errors)
    exact = [
        float(
            ((weight - prune_weight(weight, criterion=c, gram=gram)[0]).double() @ x.double().t()).norm()
            / (weight.double() @ x.double().t()).norm()
        )
        for c in ("least_squares", "wanda", "magnitude")
    ]
    assert errors == pytest.approx(exact)


# ---- files


def test_a_saved_model_is_smaller_and_comes_back_bit_for_bit(tmp_path):
    from safetensors import safe_open

    model = net(torch.bfloat16)
    made = StructuredSparse.convert(model, calibration=batches(torch.bfloat16))
    made.save(tmp_path / "m.safetensors")
    again = StructuredSparse.load(tmp_path / "m.safetensors", net(torch.bfloat16, seed=9), hardware_target="H100")
    for name, value in made.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert [layer.pruning for layer in again.layers] == [layer.pruning for layer in made.layers]
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert set(file.keys()) == {f"{k}.{part}" for k in (0, 2, 4) for part in ("bias", "weight.values", "weight.indices")}
        packed = sum(file.get_tensor(f"0.weight.{part}").nbytes for part in ("values", "indices"))
    assert packed == 96 * 64 * 2 * 9 // 16


def test_files_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"was not written by StructuredSparse\.save"):
        StructuredSparse.load(tmp_path / "other.safetensors", net())
    StructuredSparse.convert(net()).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="does not fit model"):
        StructuredSparse.load(tmp_path / "m.safetensors", nn.Sequential(nn.Linear(64, 96)))


# ---- wrong input


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.ones(4, 4, dtype=torch.int8))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"model": "net"}, TypeError, "model is str; an nn.Module"),
        ({"model": Integers()}, ValueError, "model holds only int8"),
        ({"model": nn.Linear(6, 4)}, ValueError, "6 input features are not divisible by 4"),
        ({"model": nn.Conv2d(4, 4, 1)}, ValueError, "no nn.Linear"),
        ({"pattern": "3:5"}, ValueError, "pattern is 3:5, which no product here speeds up; accepted are 2:4 and AUTO"),
        ({"pattern": "sparse"}, ValueError, "pattern is 'sparse'"),
        ({"pattern": SparsityPattern.AUTO}, ValueError, "calibration is None; SparsityPattern.AUTO"),
        ({"criterion": "wanda"}, ValueError, "calibration is None; criterion 'wanda' needs"),
        ({"criterion": "best"}, ValueError, "criterion is 'best'"),
        ({"calibration": []}, ValueError, "batches is empty"),
        ({"hardware_target": "H1000"}, ValueError, "hardware_target is 'H1000', which is no device of the table"),
        ({"hardware_target": "V100-SXM2-16GB"}, Unsupported, "it has no 2:4 products"),
        ({"hardware_target": "MI300X"}, Unsupported, "not done yet"),
        ({"hardware_target": "m2"}, Unsupported, "targets are NVIDIA GPUs from Ampere on"),
        ({"hardware_target": 90}, TypeError, "hardware_target is int"),
        ({"loss_budget": 1.5}, ValueError, "loss_budget is 1.5; a number from 0 to 1"),
        ({"loss_budget": -0.1}, ValueError, "loss_budget is -0.1"),
        ({"loss_budget": "2%"}, ValueError, "loss_budget is '2%'"),
        ({"loss_budget": 0.1}, ValueError, "loss_budget needs quality"),
        ({"loss_budget": 0.1, "quality": lambda model: 0.0}, ValueError, "quality gives 0.0 for the dense model"),
        ({"loss_budget": 0.1, "quality": lambda model: float("inf")}, ValueError, "a positive finite loss"),
        ({"skip": ["nothing"]}, ValueError, "skip names 'nothing'"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(options, error, sentence):
    with pytest.raises(error, match=sentence):
        StructuredSparse.convert(**{"model": net(), **options})


@pytest.mark.parametrize("target", ["H100", "h100-sxm", H100, "A100", "L4", "RTX 4090", "B200"])
def test_targets_by_any_of_their_names(target):
    assert StructuredSparse.convert(net(), hardware_target=target).machine.name == target
