"""Conversion by structure: the spiking network against the quantised one, that against numpy, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import erf
from spiking_models import CLASSES, TOKENS, WIDTH, Llama, Own, Split, Torchs, ids, values
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from kpt_lab.core import Unsupported
from kpt_lab.frontier.spiking import STRATEGIES, SpikingTransformer

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "own": (Own, values),
    "torch, post-norm": (Torchs, values),
    "torch, pre-norm, sequence first, relu": (lambda: Torchs(True, False, "relu"), values),
    "llama": (Llama, ids),
    "split": (Split, values),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def convert(model: nn.Module, calibration: Tensor, strategy: str = "exact", **options) -> SpikingTransformer:
    return SpikingTransformer.from_standard(model, strategy, calibration=calibration, **options)


def leaves(output) -> list[Tensor]:
    return pytree.tree_leaves(output)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_spikes_give_what_the_quantised_network_gives(name: str, strategy: str) -> None:
    build, draw = MODELS[name]
    model = build()
    target = "Intel_Loihi" if strategy == "exact" else "simulation"  # the first rounds weights, tied ones included
    spiking = convert(model, draw(16), strategy, hardware_target=target, timesteps=24)
    x = draw(7)
    ours, wanted, standard = spiking.spike_forward(spiking.encode(x)), spiking.quantised(x), model.eval()(x)
    assert pytree.tree_structure(ours) == pytree.tree_structure(standard)
    for a, b, c in zip(leaves(ours), leaves(wanted), leaves(standard), strict=True):
        assert a.dtype == c.dtype
        assert a.shape == c.shape
        assert float((a - b).abs().max()) <= 1e-5
        assert torch.equal(a.argmax(-1), b.argmax(-1))
        assert float((a - c).abs().max()) > 0  # it is quantised


@pytest.mark.parametrize("name", MODELS)
def test_with_many_levels_the_network_is_the_standard_one(name: str) -> None:
    build, draw = MODELS[name]
    model, x = build(), draw(5)
    spiking = convert(model, x, "temporal_coding", timesteps=4096)
    for a, b in zip(leaves(spiking.quantised(x)), leaves(model.eval()(x)), strict=True):
        assert float((a - b).abs().max()) < 0.01 * (1 + float(b.abs().max()))


class Cross(nn.Module):
    """Two inputs, attention between different widths, weights of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, kdim=4, vdim=5, bias=False, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, averaged: bool = False) -> tuple[Tensor, Tensor]:
        return self.attention(query, key, value, average_attn_weights=averaged)


def test_several_inputs_and_widths() -> None:
    model, inputs = Cross(), (torch.randn(3, 2, 6), torch.randn(3, 7, 4), torch.randn(3, 7, 5))
    spiking = SpikingTransformer.from_standard(model, "temporal_coding", calibration=inputs)
    for a, b, c in zip(spiking(*inputs), spiking.quantised(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert a.shape == c.shape
        assert float((a - c).abs().max()) < 0.1
    with pytest.raises(ValueError, match=r"1 tensors came; Cross needs a temporal_input .* for each of query, key, value"):
        spiking.spike_forward(spiking.encode(*inputs)[0])


def test_computed_weights_are_refused_where_weights_are_to_be_rounded() -> None:
    class Computed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * 2)

    x = torch.randn(3, 4)
    plain = convert(Computed(), x)
    torch.testing.assert_close(plain(x), plain.quantised(x))
    with pytest.raises(Unsupported, match=r"linear \(linear\) has computed weights, which can't be rounded to 8 bits"):
        SpikingTransformer.from_standard(Computed(), hardware_target="Intel_Loihi")


def numpy_own(model: Own, x: Tensor, scales: dict[str, float], steps: int) -> np.ndarray:
    """The quantised `Own` in numpy, written from its definition; populations are looked up by what fires."""
    p = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def q(value: np.ndarray, name: str) -> np.ndarray:
        levels = value / scales[name]
        whole = np.trunc(levels)
        levels = whole + np.sign(levels) * (np.abs(levels - whole) >= 0.5 - 2**-30)
        return np.clip(levels, -steps, steps) * scales[name]

    def linear(value: np.ndarray, name: str) -> np.ndarray:
        return value @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(value: np.ndarray, name: str) -> np.ndarray:
        centred = value - value.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    rows = len(x)
    tokens = linear(q(x.double().numpy(), "x"), "embed")
    h = np.concatenate([np.broadcast_to(p["cls"], (rows, 1, WIDTH)), tokens], 1) + p["positions"]
    h = q(h, "add_fired")
    qkv = linear(q(norm(h, "norm1"), "norm1_fired"), "qkv").reshape(rows, TOKENS + 1, 3, 2, WIDTH // 2).transpose(2, 0, 3, 1, 4)
    qkv = q(qkv, "permute_fired")
    scores = qkv[0] @ qkv[1].swapaxes(-1, -2) / np.sqrt(WIDTH // 2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = q(weights / weights.sum(-1, keepdims=True), "softmax_fired")
    mixed = (weights @ qkv[2]).swapaxes(1, 2).reshape(rows, TOKENS + 1, WIDTH)
    h = q(h + linear(q(mixed, "reshape_1_fired"), "out"), "add_1_fired")
    up = linear(q(norm(h, "norm2"), "norm2_fired"), "up")
    h = q(h + linear(q(up * 0.5 * (1 + erf(up / np.sqrt(2))), "gelu_fired"), "down"), "add_2_fired")
    return linear(q(h.mean(1) + h[:, 0], "add_3_fired"), "head")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_quantised_network_is_that_of_an_independent_reference(strategy: str) -> None:
    model = Own()
    spiking = convert(model, values(40), strategy, timesteps=16)
    x = values(25)
    wanted = numpy_own(model, x, spiking.scales, 16)
    ours = spiking.spike_forward(spiking.encode(x)).numpy()
    assert np.abs(ours - wanted).max() <= 1e-5
    assert (ours.argmax(-1) == wanted.argmax(-1)).all()
    assert set(spiking.scales) == {"x", *(n.name for n in spiking.network.graph.nodes if n.name.endswith("_fired"))}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("tokens", [3, 16, 17])
def test_membranes_that_lie_halfway_are_decided_alike(tokens: int, strategy: str) -> None:
    """Means of whole levels, of which many are exactly half of the next threshold: the order of additions must not show."""

    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.mean(1) * 0.3).unsqueeze(1).mean(2)

    x = torch.randint(0, 11, (4000, tokens, 3)) * 0.1
    spiking = convert(Pooled(), x, strategy, timesteps=10)
    spiking.scales = {"x": 0.1, next(name for name in spiking.scales if name != "x"): 0.03 * 2 / tokens}
    assert torch.equal(spiking.spike_forward(spiking.encode(x)) > 0, spiking.quantised(x) > 0)
    assert float((spiking.spike_forward(spiking.encode(x)) - spiking.quantised(x)).abs().max()) <= 1e-5


def test_one_dropped_spike_changes_the_logits_and_the_count() -> None:
    spiking = convert(Own(), values(20))
    train = spiking.encode(values(3))
    before = spiking.spike_forward(train)
    counted = spiking.energy().counts
    dropped: list[int] = []

    def drop(name: str, spikes: Tensor) -> Tensor:
        if name == "add_3_fired":
            where = spikes.nonzero()[0]
            dropped.append(int(where[1]))
            spikes[tuple(where)] = 0
        return spikes

    after = spiking.spike_forward(train, edit=drop)
    changed = (after - before).abs().amin(-1) > 1e-6
    assert changed.nonzero().flatten().tolist() == dropped  # every logit of the one sample that the spike belongs to
    fewer = {name: round((counted[name] - value) * 3, 6) for name, value in spiking.energy().counts.items()}
    assert {name: value for name, value in fewer.items() if value} == {"spikes": 1, "synaptic": CLASSES}


def test_edit_must_give_spikes_back() -> None:
    spiking = convert(Own(), values(20))
    with pytest.raises(ValueError, match=r"edit returned \(1,\) torch.int8 for 'x'; it must return spikes like those it got"):
        spiking.spike_forward(spiking.encode(values(2)), edit=lambda name, spikes: torch.zeros(1, dtype=torch.int8))


@pytest.mark.parametrize("steps", [4, 8, 16, 32])
def test_a_learned_position_is_added_once_whatever_the_steps(steps: int) -> None:
    """A network of linear steps with a position far larger than its input: injected at each step it would grow with the steps."""

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
            self.positions = nn.Parameter(torch.full((TOKENS, WIDTH), 50.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.embed(x) + self.positions).mean(1))

    model, x = Placed(), values(4)
    out = convert(model, x, timesteps=steps)(x)
    once_more = model.head(model.positions.mean(0)) - model.head.bias
    assert float((out - model(x)).abs().max()) < 0.2 * float(once_more.abs().min())


def test_at_most_one_spike_a_neuron_and_trains_that_are_kept() -> None:
    spiking = convert(Torchs(), values(20), "temporal_coding")
    x = values(4)
    logits, _ = spiking.spike_forward(spiking.encode(x), keep_trains=True)
    assert len(spiking.last.trains) == 1 + sum(w.step == "fire" for w in spiking.last.works)
    for spikes in spiking.last.trains.values():
        assert int(spikes.abs().sum(0).max()) == 1
        assert spikes.shape[0] == 32
    assert spiking.last.spikes_per_neuron <= 1
    assert sum(int(s.count_nonzero()) for s in spiking.last.trains.values()) == spiking.last.total("spikes")
    assert logits.shape == (4, 3)


def test_the_readout_settles_on_the_answer() -> None:
    spiking = convert(Own(), values(20))
    logits = spiking.spike_forward(spiking.encode(values(4)), keep_trains=True)
    assert spiking.last.readout.shape == (64, 4, 3)
    torch.testing.assert_close(spiking.last.readout[-1].float(), logits)
    assert not torch.allclose(spiking.last.readout[0].float(), logits)


def test_thresholds_are_set_on_the_first_input_where_no_calibration_is_given() -> None:
    """The call of the seed, as it is written there."""
    standard_transformer, temporal_input = Own(), (torch.rand(32, 6, TOKENS, 4) < 0.02).float()
    temporal_input *= temporal_input.cumsum(0) == 1  # at most one spike a line
    made = SpikingTransformer.from_standard(
        standard_transformer=standard_transformer, conversion_strategy="temporal_coding", hardware_target="Intel_Loihi"
    )
    out = made.spike_forward(temporal_input)
    said = (temporal_input * torch.arange(32, 0, -1)[:, None, None, None]).sum(0) / 32
    torch.testing.assert_close(out, made.quantised(said), atol=1e-5, rtol=0)
    assert "no Intel_Loihi was used" in made.report()
    assert "simulated on this machine" in made.report()
    assert "rounded to 8 bits" in made.report()
    assert "thresholds: set on its first input (6 samples), as no calibration was given" in made.report()
    assert "softmax x1" in made.report()


def test_weights_are_rounded_to_the_bits_asked_for() -> None:
    model = Own()
    spiking = convert(model, values(20), weight_bits=4)
    weight, original = spiking.network.get_submodule("up").weight, model.up.weight.detach().double()
    for row, was in zip(weight, original, strict=True):
        levels = row / (was.abs().max() / 7)
        torch.testing.assert_close(levels, levels.round(), atol=1e-9, rtol=0)
        assert float(levels.abs().max()) == pytest.approx(7)
    assert model.up.weight.dtype == torch.float32  # the model stays as it is


def test_window_of_the_answer_follows_the_depth() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    spiking = convert(model, torch.randn(8, 4))
    spiking(torch.randn(2, 4))
    assert spiking.last.windows == 3  # the input's and the two hidden layers'


class Calls(nn.Module):
    """Any function of a linear layer's output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), r"1 \(Conv1d\); 2 \(BatchNorm1d\)"),
        (lambda: Calls(lambda x: x**2), r"pow_1 \(pow\)"),
        (lambda: Calls(torch.tanh), r"tanh \(tanh\)"),
        (lambda: Calls(lambda x: x.max(-1).values), r"max_1 \(Tensor.max\)"),
        (lambda: Calls(lambda x: 1 / x), r"by a value of the network"),
        (lambda: Calls(lambda x: torch.ones(5)[x.long()]), r"Tensor.long"),
        (lambda: Calls(lambda x: F.linear(x, x)), r"linear_1 \(linear\) of two values of the network"),
        (lambda: Calls(lambda x: torch.add(x, 1, alpha=2)), r"with alpha"),
        (lambda: Calls(lambda x: F.dropout(x, 0.1)), r"drops values in evaluation too"),
        (lambda: Calls(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)), r"dropout_p must be 0"),
        (lambda: Calls(lambda x: x if x.sum() > 0 else -x), r"no fixed structure"),
        (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True), r"MultiheadAttention.* add_zero_attn"),
        (lambda: nn.Sequential(nn.TransformerDecoderLayer(4, 2, 8)), r"no fixed structure|0 .TransformerDecoderLayer"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(model: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        SpikingTransformer.from_standard(model())


def test_a_hook_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(Unsupported, match=r"0 \(Linear\) with a forward hook"):
        convert(model, torch.randn(5, 4))


def test_what_the_structure_does_not_show_is_noticed_on_the_calibration() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> Tensor:
        calls.append(0)
        return x * len(calls)

    with pytest.raises(Unsupported, match="does not give the model's own outputs"):
        convert(Calls(counted), torch.randn(5, 4))


SPIKES = torch.zeros(32, 2, TOKENS, 4)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: SpikingTransformer.from_standard("a model"), TypeError, "standard_transformer is str; an nn.Module is needed"),
        (
            lambda: SpikingTransformer.from_standard(Own(), "rate"), ValueError,
            "conversion_strategy is 'rate'; accepted are exact, temporal_coding",
        ),
        (
            lambda: SpikingTransformer.from_standard(Own(), "exact", "TrueNorth"), ValueError,
            "hardware_target is 'TrueNorth'; accepted are simulation, Intel_Loihi, both simulated on this machine",
        ),
        (lambda: SpikingTransformer.from_standard(Own(), timesteps=0), ValueError, "timesteps is 0; a whole number of steps from 1"),
        (lambda: SpikingTransformer.from_standard(Own(), timesteps=8.0), ValueError, "timesteps is 8.0; a whole number"),
        (lambda: SpikingTransformer.from_standard(Own(), weight_bits=1), ValueError, "weight_bits is 1; a whole number from 2 to 16"),
        (lambda: SpikingTransformer.from_standard(Own(), input_range=-1), ValueError, "input_range is -1; a finite number above 0"),
        (lambda: made().spike_forward(torch.zeros(0, 2, TOKENS, 4)), ValueError, "has T=0 and shape .*reads windows of T=32"),
        (lambda: made().spike_forward(torch.zeros(16, 2, TOKENS, 4)), ValueError, "has T=16 .*T=32"),
        (lambda: made().spike_forward(torch.zeros(32)), ValueError, r"temporal_input for x is a tensor of shape \(32,\)"),
        (lambda: made().spike_forward(SPIKES + 0.5), ValueError, "other values than -1, 0 and 1"),
        (lambda: made().spike_forward(SPIKES + 1), ValueError, "a line with more than one spike"),
        (lambda: made().spike_forward(SPIKES, SPIKES), ValueError, "2 tensors came; Own needs a temporal_input .* for each of x"),
        (lambda: made().energy(), ValueError, "there is no run to count: call spike_forward first"),
        (lambda: SpikingTransformer.from_standard(Own()).quantised(values()), ValueError, "no thresholds yet"),
        (lambda: made().encode(ids()), ValueError, "x is torch.int64; a floating dtype is needed"),
        (lambda: made().encode(values() * torch.nan), ValueError, "x holds values that are not finite"),
        (lambda: convert(Llama(), values()), ValueError, "ids is torch.float32; whole numbers, token ids, are needed"),
        (lambda: llama().spike_forward(torch.full((64, 2, TOKENS), -1)), ValueError, "must have one id at each position"),
        (lambda: llama()(torch.full((2, TOKENS), 11)), ValueError, r"names line 11 or 11; tokens \(Embedding\) has 11"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_clear_sentence(call: Callable[[], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert not re.search(r"\n", str(caught.value))


def made() -> SpikingTransformer:
    return convert(Own(), values(), "temporal_coding")


def llama() -> SpikingTransformer:
    return convert(Llama(), ids())
