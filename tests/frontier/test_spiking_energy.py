"""Operations against counts by hand, joules against sums by hand, and what may be compared with what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import kpt_lab as kpt
from kpt_lab import baselines
from kpt_lab.core import Incomparable
from kpt_lab.frontier.spiking import SpikingTransformer
from kpt_lab.frontier.spiking.technique import spiking
from kpt_lab.ratios import compare, speedup

PICO = 1e-12


def three_layers() -> nn.Sequential:
    """2 inputs, 3 and 2 hidden neurons, 1 output; whole weights, so that every membrane can be worked out by hand."""
    model = nn.Sequential(
        nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, 1.0]]))
    return model


def ran(strategy: str, target: str = "simulation") -> SpikingTransformer:
    """The three layers with all thresholds 1 and windows of 4 steps, on the input (2, 3).

    Membranes: 2, 3, -1; after ReLU 2, 3, 0; then 5, -2; after ReLU 5, 0, of which 4 steps can say 4; output 4.
    """
    made = SpikingTransformer.from_standard(three_layers(), strategy, target, timesteps=4, calibration=torch.rand(5, 2))
    made.scales = dict.fromkeys(made.scales, 1.0)
    assert made.spike_forward(made.encode(torch.tensor([[2.0, 3.0]]))).tolist() == [[4.0]]
    return made


HAND = {
    "exact": {
        "spikes": 5 + 5 + 4, "synaptic": 5 * 3 + 5 * 2 + 4 * 1, "integrated": 0, "latched": 0, "neurons": 2 + 3 + 2,
        "neuron_steps": (3 + 2) * 4, "functions": 3 + 2, "macs": 6 + 6 + 2, "multiplies": 0, "adds": 0, "read": 2 * 14,
        "written": 3 + 2 + 1,
    },
    "temporal_coding": {
        "spikes": 2 + 2 + 1, "synaptic": 2 * 3 + 2 * 2 + 1 * 1, "integrated": 4 * (3 + 2 + 1), "latched": 0, "neurons": 2 + 3 + 2,
        "neuron_steps": (3 + 2) * 4, "functions": 3 + 2, "macs": 6 + 6 + 2, "multiplies": 0, "adds": 0, "read": 2 * 14,
        "written": 3 + 2 + 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("strategy", HAND)
def test_counts_are_those_by_hand(strategy: str) -> None:
    made = ran(strategy)
    assert made.energy().counts == HAND[strategy]
    assert made.last.spikes_per_synapse == HAND[strategy]["synaptic"] / 14
    assert made.last.spikes_per_neuron == HAND[strategy]["spikes"] / 7


@pytest.mark.parametrize(
    ("strategy", "label", "metric", "picojoules"),
    [  # 8 KB: 10 pJ for 64 bits, so 5 for 32 and 1.25 for 8
        ("exact", "spiking float32", "energy.compute", 29 * 0.9),
        ("exact", "standard float32", "energy.compute", 14 * (3.7 + 0.9)),
        ("exact", "standard int8", "energy.compute", 14 * (0.2 + 0.1)),
        ("exact", "spiking float32", "energy.with_memory", 29 * (0.9 + 5 + 10) + 20 * (0.9 + 10) + 14 * 10),
        ("exact", "spiking int8", "energy.compute", 29 * 0.1),
        ("exact", "spiking int8", "energy.with_memory", 29 * (0.1 + 1.25 + 10) + 20 * (0.1 + 10) + 14 * 10),
        ("exact", "standard float32", "energy.with_memory", 14 * 4.6 + (28 + 6) * 5),
        ("exact", "standard int8", "energy.with_memory", 14 * 0.3 + (28 + 6) * 1.25),
        ("exact", "spiking int8", "energy.loihi", 29 * 23.6 + 14 * 1.7 + 20 * 52),
        (
            "temporal_coding", "spiking float32", "energy.with_memory",
            11 * (0.9 + 5 + 10) + 24 * (0.9 + 10 + 5) + 20 * (0.9 + 10) + 5 * 10,
        ),
        ("temporal_coding", "spiking int8", "energy.loihi", 11 * 23.6 + 5 * 1.7 + (20 + 24) * 52),
    ],
)  # fmt: skip
def test_joules_are_those_by_hand(strategy: str, label: str, metric: str, picojoules: float) -> None:
    found = ran(strategy, "Intel_Loihi").energy().of(label).metrics[metric]
    assert found.value == pytest.approx(picojoules * PICO, rel=1e-12)
    assert found.provenance == "modelled"
    assert ("Davies" if metric == "energy.loihi" else "Horowitz") in found.source
    assert found.unit == "J"


def test_counts_are_per_inference() -> None:
    made = ran("exact")
    made.spike_forward(made.encode(torch.tensor([[2.0, 3.0], [2.0, 3.0], [0.0, 0.0], [0.0, 0.0]])))
    assert made.energy().counts["synaptic"] == HAND["exact"]["synaptic"] / 2
    assert made.energy().counts["macs"] == HAND["exact"]["macs"]


class Gram(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ x.mT


def test_a_product_of_two_trains_latches_one_and_is_driven_by_the_other() -> None:
    made = SpikingTransformer.from_standard(Gram(), timesteps=4, calibration=torch.rand(2, 3, 2))
    made.scales = {"x": 1.0}
    x = torch.tensor([[[1.0, 2.0], [0.0, 3.0], [-1.0, 0.0]]])  # 7 spikes
    assert torch.equal(made(x), x @ x.mT)
    counts = made.energy().counts
    assert (counts["synaptic"], counts["latched"], counts["macs"], counts["spikes"]) == (7 * 3, 7, 3 * 3 * 2, 7)
    assert made.last.windows == 2  # the driving train waits until the other is latched


def test_residuals_means_and_embeddings_are_counted() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.linear = nn.Embedding(7, 4), nn.Linear(4, 4, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            return (x + self.linear(x)).mean(1)

    made = SpikingTransformer.from_standard(Small(), calibration=torch.arange(6).view(2, 3))
    made(torch.arange(3).view(1, 3))
    works = {(w.name, w.step): w for w in made.last.works if w.step != "add" or w.adds}
    sent = works["tokens_fired", "fire"].spikes
    assert works["tokens", "embedding"].synaptic == 3 * 4
    assert works["linear", "linear"].synaptic == sent * 4
    assert works["add", "add"].adds == 12
    assert sum(w.synaptic for w in made.last.works if w.step == "add") == sent  # the residual arrives by one synapse a neuron
    assert works["mean", "mean"].synaptic == works["add_fired", "fire"].spikes
    assert works["mean", "mean"].adds == 12


def planted(spikes: int, **options: int) -> SpikingTransformer:
    """One linear layer of 1000 lines, of which so many fire once."""
    made = SpikingTransformer.from_standard(nn.Linear(1000, 10, bias=False), **options)
    train = torch.zeros(64, 1, 1000)
    train[torch.arange(spikes) % 64, 0, torch.randperm(1000)[:spikes]] = 1
    made.spike_forward(train)
    return made


def test_planted_trains_fall_on_the_right_sides_of_a_hundred() -> None:
    sparse, less = planted(50).energy(), planted(60).energy()
    assert sparse.spikes_per_synapse == 0.05
    assert less.spikes_per_synapse == 0.06
    assert sparse.gain("energy.compute") == pytest.approx(4.6 / (0.05 * 0.9))
    assert sparse.gain("energy.compute") > 100 > less.gain("energy.compute")
    assert sparse.gain("energy.with_memory") < 100  # weights and membranes move too
    assert planted(30, weight_bits=8).energy().gain("energy.compute", "int8") == pytest.approx(100)  # 0.3 / (0.03 * 0.1)


def test_more_than_five_spikes_a_synapse_need_more_energy_than_the_standard_network() -> None:
    def gain(every: int) -> float:
        made = SpikingTransformer.from_standard(nn.Linear(50, 10, bias=False))
        train = torch.zeros(64, 1, 50)
        train[:every] = 1
        made.spike_forward(train)
        return made.energy().gain("energy.compute")

    assert gain(5) > 1 > gain(6)


def test_a_larger_memory_costs_more() -> None:
    made = ran("exact")
    small, large = (made.energy(memory).of("spiking float32").metrics["energy.with_memory"] for memory in ("8KB", "1MB"))
    assert large.value > 9 * small.value
    assert "1MB" in large.source
    with pytest.raises(ValueError, match="memory is '4KB'; accepted are 8KB, 32KB, 1MB"):
        made.energy("4KB")
    with pytest.raises(ValueError, match="label is 'GPU'; there are standard float32, standard int8, spiking float32"):
        made.energy().of("GPU")
    with pytest.raises(ValueError, match="count is 'joules'; accepted are spikes, synaptic"):
        made.last.total("joules")


def test_energies_are_compared_only_within_one_boundary() -> None:
    energy = ran("exact", "Intel_Loihi").energy()
    ours, theirs = energy.of("spiking int8"), energy.of("standard int8")
    ratio = compare(ours, theirs, "energy.with_memory")
    assert ratio.provenance == "modelled"
    assert "Horowitz" in ratio.note
    with pytest.raises(Incomparable, match=r"'standard int8' has no metric 'energy.loihi'"):
        compare(ours, theirs, "energy.loihi")


def test_measured_its_clock_is_the_simulators_and_its_error_that_of_its_definition() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).eval()
    workload = kpt.workload(model, torch.randn(5, 6))
    trials = kpt.measure(workload, [baselines.eager, spiking(strategy="temporal_coding")], processes=0, budget=0.05)
    (trial,) = trials.where(technique="spiking")
    (eager,) = trials.where(technique="eager")
    assert trial.status == "ok", trial.advice
    assert trial.simulates == "Intel_Loihi"
    assert "time" not in trial.metrics
    assert trial.metrics["simulation_time"].provenance in ("measured", "simulated")
    assert trial.metrics["energy.compute"].provenance == "modelled"
    assert 0 < trial.metrics["spikes_per_synapse"].value <= 1
    with pytest.raises(Incomparable, match="simulation_time"):
        speedup(trial, eager)


def test_a_function_without_structure_is_unsupported() -> None:
    (trial,) = kpt.measure(kpt.workload(torch.relu, torch.randn(4)), [spiking], processes=0, budget=0.05).where(
        technique="spiking"
    )
    assert trial.status == "unsupported"
    assert "needs an nn.Module, whose structure can be read" in trial.advice
