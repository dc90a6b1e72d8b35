"""Gram matrices collected by hooks against activations kept by hand; what is counted, what is refused, what is left behind."""

from __future__ import annotations

import gc
from collections import UserDict

import pytest
import torch
from torch import nn

from kpt_lab.sparsity import Calibration


class Net(nn.Module):
    """Two linear layers that run, one that doesn't; the second is called by keyword."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.unused = nn.Linear(8, 12), nn.Linear(12, 4), nn.Linear(8, 8)

    def forward(self, x, attention_mask=None):
        return self.two(input=torch.tanh(self.one(x)))


@pytest.fixture
def net():
    return Net().eval()


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_pre_hooks) + len(part._forward_hooks) for part in model.modules())


def test_grams_are_those_of_activations_kept_by_hand(net):
    batches = [torch.randn(3, 5, 8), torch.randn(7, 8), torch.randn(8)]  # 15, 7 and 1 rows
    found = Calibration.collect(net, batches)
    first = torch.cat([batch.reshape(-1, 8) for batch in batches])
    second = torch.tanh(net.one(first)).detach()
    assert list(found.grams) == ["one", "two"]
    assert found.tokens == {"one": 23, "two": 23}
    for name, rows in (("one", first.double()), ("two", second.double())):
        assert found.gram(name).dtype == torch.float64
        torch.testing.assert_close(found.gram(name), rows.T @ rows, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.norms(name), rows.norm(dim=0), rtol=1e-6, atol=1e-6)
    with pytest.raises(KeyError, match="no layer 'unused'; it has 'one', 'two'"):
        found.gram("unused")


def test_accumulation_is_float64_even_where_float32_would_lose_rows(net):
    loud, quiet = torch.full((1, 8), 4096.0), torch.full((1000, 8), 0.5)  # 2**24 + 250: float32 steps by 2 there
    exact = Calibration.collect(net, [loud, *quiet.split(1)]).gram("one")
    narrow = Calibration.collect(net, [loud, *quiet.split(1)], accumulate=torch.float32).gram("one")
    assert exact[0, 0].item() == 2**24 + 250
    assert narrow.dtype == torch.float32
    assert narrow[0, 0].item() == 2**24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_narrow_models_are_converted_before_they_are_multiplied(net, dtype):
    x = torch.randn(6, 8).to(dtype)
    assert torch.equal(Calibration.collect(net.to(dtype), [x]).gram("one"), x.double().T @ x.double())


def test_autocast_does_not_round_the_products(net):
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Calibration.collect(net, [x], accumulate=torch.float32)
    torch.testing.assert_close(found.gram("one"), x.T @ x)


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_batches_come_as_tensors_tuples_and_mappings_and_padding_is_not_counted(net, kind):
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    whole = Calibration.collect(net, [x])
    assert torch.equal(whole.gram("one"), Calibration.collect(net, [(x,)]).gram("one"))
    assert torch.equal(whole.gram("one"), Calibration.collect(net, iter([[x]])).gram("one"))
    assert torch.equal(whole.gram("one"), Calibration.collect(net, [kind(x=x)]).gram("one"))
    masked = Calibration.collect(net, [kind(x=x, attention_mask=mask)])
    rows = x[mask.bool()].double()
    torch.testing.assert_close(masked.gram("one"), rows.T @ rows)
    assert masked.tokens == {"one": 3, "two": 3}
    # inputs that are no (batch, tokens, features) are counted whole
    assert Calibration.collect(net, [kind(x=x[0], attention_mask=mask)]).tokens == {"one": 3, "two": 3}


def test_no_activation_no_gradient_and_no_hook_stays(net):
    def live() -> dict[int, torch.Tensor]:
        gc.collect()
        return {id(thing): thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)}

    before = live()  # held, so that what other tests left can neither go nor give its place to a new one
    found = Calibration.collect(net, (torch.randn(4, 8) for _ in range(5)))
    assert len(live().keys() - before.keys()) == len(found.grams)
    assert not any(gram.requires_grad for gram in found.grams.values())
    assert hooks(net) == 0


def test_hooks_are_removed_when_the_model_or_a_batch_fails(net):
    def batches():
        yield torch.randn(2, 8)
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        Calibration.collect(net, batches())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Calibration.collect(net, [torch.randn(2, 5)])
    with pytest.raises(ValueError, match="NaN"):
        Calibration.collect(net, [torch.full((2, 8), float("nan"))])
    assert hooks(net) == 0


def test_a_layer_used_twice_counts_both(net):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh())
    both = nn.Sequential(model, model).eval()
    x = torch.randn(5, 4)
    again = torch.tanh(model[0](x)).detach()
    found = Calibration.collect(both, [x])
    assert found.tokens == {"0.0": 10}
    torch.testing.assert_close(found.gram("0.0").float(), x.T @ x + again.T @ again)


def test_not_finite_activations_name_the_first_layer(net):
    with torch.no_grad():
        net.one.bias[3] = float("inf")
    x = torch.randn(2, 8)
    net.one.register_forward_hook(lambda module, args, output: output - output)  # infinity minus itself
    with pytest.raises(ValueError, match="NaN or infinity at the input of layer 'two'"):
        Calibration.collect(net, [x])
    with pytest.raises(ValueError, match=r"layer 'one' overflow torch\.float32 when squared"):
        Calibration.collect(net, [x * 1e30], accumulate=torch.float32)
    with pytest.raises(ValueError, match="at the input of layer 'two'"):
        Calibration.collect(net, [x * 1e30])  # float64 holds the first layer's squares


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda net: Calibration.collect(net.train(), [torch.ones(1, 8)]), ValueError, "training mode .model itself.; call model.eval"),
        (lambda net: Calibration.collect(nn.Sequential(nn.ReLU()).eval(), [torch.ones(1)]), ValueError, "has no nn.Linear"),
        (lambda net: Calibration.collect(torch.tanh, []), TypeError, "model is builtin_function"),
        (lambda net: Calibration.collect(net, []), ValueError, "batches is empty"),
        (lambda net: Calibration.collect(net, torch.ones(2, 8)), TypeError, r"batches is one Tensor; .* pass \[batch\]"),
        (lambda net: Calibration.collect(net, {"x": torch.ones(2, 8)}), TypeError, "batches is one dict"),
        (lambda net: Calibration.collect(net, 3), TypeError, "batches is one int"),
        (lambda net: Calibration.collect(net, [torch.ones(2, 8)], accumulate=torch.bfloat16), ValueError, "accumulate is torch.bfloat16"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_a_sentence(net, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(net)
    assert hooks(net) == 0


def test_one_part_in_training_mode_is_named(net):
    net.two.train()
    with pytest.raises(ValueError, match=r"training mode \(two\)"):
        Calibration.collect(net, [torch.ones(1, 8)])


def test_a_model_whose_linear_layers_never_run_says_so():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x @ self.linear.weight

    with pytest.raises(ValueError, match=r"no nn\.Linear of model ran"):
        Calibration.collect(Around().eval(), [torch.ones(1, 4)])
