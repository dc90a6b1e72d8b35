"""A digits transformer trained here, converted by both strategies; and the recorded benchmark, which must show the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "benchmarks" / "recorded" / "spiking_digits.cpu.json"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spiking_digits", ROOT / "benchmarks" / "spiking_digits.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _one_thread():
    """Steps this small are slower on two threads, and far slower where other processes want the second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_a_trained_digits_transformer(script: ModuleType) -> None:
    pytest.importorskip("sklearn")
    x, y, tested, labels = script.data(0)
    model = script.train(x, y, seed=0, epochs=12)
    with torch.no_grad():
        standard = script.accuracy(model(tested), labels)
    assert standard > 0.9
    for strategy, steps in (("exact", 32), ("temporal_coding", 32)):
        found = script.converted(model, x, tested, labels, strategy, steps)
        assert found["largest_difference"] <= 1e-5
        assert found["same_argmax"] == len(tested) == 360
        assert 100 * (standard - found["accuracy"]) <= 2
        assert found["most_spikes_of_a_neuron"] == (1 if strategy == "temporal_coding" else steps)


def test_the_record_shows_exactness_and_at_most_two_points_lost() -> None:
    runs = json.loads(RECORDED.read_text())["runs"]
    assert {run["seed"] for run in runs} == set(range(5))
    for run in runs:
        assert run["largest_difference"] <= 1e-5
        assert run["same_argmax"] == 360
        if run["strategy"] == "temporal_coding":
            assert run["most_spikes_of_a_neuron"] == 1
        if (run["strategy"], run["timesteps"]) in (("temporal_coding", 32), ("exact", 64)):
            assert run["lost_points"] <= 2


def test_patches_are_the_images_cut_up(script: ModuleType) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    from kpt_lab.frontier.spiking.digits import pictures

    x, _, tested, _ = script.data(3)
    back = pictures(torch.cat([x, tested])) * 16
    wanted = torch.tensor(datasets.load_digits().images, dtype=torch.float32)
    assert torch.equal(back.flatten(1).unique(dim=0), wanted.flatten(1).unique(dim=0))


def test_populations_send_in_the_windows_that_the_answer_waits_for() -> None:
    from kpt_lab.frontier.spiking import SpikingTransformer

    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)
    )
    made = SpikingTransformer.from_standard(model, timesteps=4, calibration=torch.rand(5, 3))
    made(torch.rand(2, 3))
    assert list(made.last.sent.values()) == [0, 1, 2]
    assert made.last.windows == 3
