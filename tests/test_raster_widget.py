"""The raster view without a browser: its lines against the run's own trains, the front end's reading of them in Node, and refusals."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kpt_lab.frontier.spiking import SpikingTransformer
from kpt_lab.site import views as site

pytest.importorskip("anywidget", reason="the views need anywidget")
from kpt_lab.widgets import front, views

from kpt_lab import widgets

module = importlib.import_module("kpt_lab.widgets.raster")  # the package's attribute of that name is the function
NODE = shutil.which("node")
INPUTS = torch.linspace(-1, 1, 3 * 7 * 4).reshape(3, 7, 4)


class Small(nn.Module):
    """Two tokens' worth of a transformer: a residual, a norm and a mean, so that several populations share a window."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.up(self.norm(x)).relu()
        return self.head(x.mean(1))


def made(strategy: str = "exact", steps: int = 6) -> SpikingTransformer:
    torch.manual_seed(4)
    return SpikingTransformer.from_standard(Small().eval(), strategy, calibration=INPUTS, timesteps=steps)


def networks() -> dict[str, SpikingTransformer]:
    return {"count": made(), "time": made("temporal_coding", 9)}


def view(**options: Any) -> Any:
    return widgets.raster(networks(), INPUTS, labels=[0, 1, 2], **options)


def run_node(tmp_path: Any, script: str, given: Any) -> Any:
    source = front.module().removesuffix("export default { render };\n")
    tail = (
        f"\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf8'));\nconsole.log(JSON.stringify(({script})(given)));\n"
    )
    path = tmp_path / "raster.cjs"
    path.write_text(source + tail, encoding="utf-8")
    done = subprocess.run(
        ["node", str(path)], input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


READ = """({table}) => table.networks.map((network) => table.inputs.map((_, input) => {
  const at = (step) => rasterPlace(table, rasterState(table, { network: network.name, input, step }));
  const place = at(null);
  return {
    spikes: network.populations.map((_, p) => rasterSpikes(place, p).map(({ row, at, sign }) => [row, at, sign])),
    sent: network.populations.map((_, p) => Array.from({ length: place.end + 1 }, (_, step) => rasterSent(place, p, step))),
    outputs: Array.from({ length: place.end + 1 }, (_, step) => rasterOutput(place, step)),
    said: [0, place.end - 1, place.end].map((step) => rasterSentence(table, at(step))),
  };
}))"""


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_front_end_reads_the_runs_own_trains(tmp_path: Any) -> None:
    """Every neuron is kept here, so that what is read must be all of each train, at the steps of its window."""
    data = view(neurons=64).data
    found = run_node(tmp_path, READ, {"table": data})
    for (name, network), table, per_input in zip(networks().items(), data["networks"], found, strict=True):
        logits = network.spike_forward(network.encode(INPUTS), keep_trains=True)
        run = network.last
        assert (table["name"], table["windows"], table["timesteps"]) == (name, run.windows, run.steps)
        for k, read in enumerate(per_input):
            for p, population in enumerate(run.trains):
                train, start = run.trains[population][:, k].flatten(1), run.sent[population] * run.steps
                wanted = {(n, start + t + 1, int(train[t, n])) for t, n in train.nonzero().tolist()}
                assert set(map(tuple, read["spikes"][p])) == wanted
                assert read["sent"][p][-1] == len(wanted) == int(train.count_nonzero())
                assert read["sent"][p][start] == 0
                assert read["sent"][p][start + 1] == int(train[0].count_nonzero())
            before = (run.windows - 1) * run.steps
            assert read["outputs"][: before + 1] == [None] * (before + 1)
            for t, output in enumerate(read["outputs"][before + 1 :]):
                assert output == pytest.approx(run.readout[t, k].tolist(), rel=1e-5)
            assert read["outputs"][-1] == pytest.approx(logits[k].tolist(), rel=1e-4)
            assert "Nothing has reached the output neurons yet." in read["said"][0]
            answer = int(logits[k].argmax())
            assert f"The answer is {answer}" in read["said"][2]
            assert ("which is its label" if answer == k else f"its label is {k}") in read["said"][2]


def test_neurons_are_evenly_spaced_and_the_counts_are_the_whole_populations() -> None:
    table = view(neurons=4).data["networks"][0]
    network = made()
    network.spike_forward(network.encode(INPUTS), keep_trains=True)
    for population, train in zip(table["populations"], network.last.trains.values(), strict=True):
        assert population["size"] == train[0, 0].numel()
        assert len(population["neurons"]) == 4
        assert population["neurons"][0] == 0
        assert population["neurons"][-1] == population["size"] - 1
    sent = sum(int(count) for run in table["runs"] for line in run["sent"] for count in line.split())
    assert sent == network.last.total("spikes")


def test_populations_are_called_by_what_they_send() -> None:
    found = [(p["name"], p["window"]) for p in view().data["networks"][0]["populations"]]
    assert found == [("x", 0), ("embed", 1), ("norm", 2), ("add", 3), ("mean", 4)]


@pytest.mark.parametrize(
    ("winners", "first"), [([0, 1, 1, 1], 2), ([1, 1, 1], 1), ([0, 1, 0], 3), ([2, 1, 1, 2, 1], 5), ([0], 1)]
)
def test_settled_is_the_first_step_from_which_the_answer_stays(winners: list[int], first: int) -> None:
    assert module.settled([[float(k == winner) for k in range(3)] for winner in winners]) == first


def test_the_view_holds_runs_and_state_and_the_site_takes_it() -> None:
    found = view(network="time", input=1, step=3, show="the window under way", pictures=torch.rand(3, 2, 2))
    assert repr(found) == "raster: input 1 in time, step 3, simulated"
    assert found.state == {"network": "time", "input": 1, "step": 3, "show": "the window under way"}
    assert view().state["step"] == 5 * 6
    content = site.checked(found._repr_mimebundle_()[0][views.MIME])
    key, script = site.data_script(site.columns_of(content, front.FOLDER))
    assert len(script) < 20_000
    assert 'data-view="raster"' in site.view_html(content, key, 1)
    json.dumps(content, allow_nan=False)


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_copied_call_makes_the_same_state(tmp_path: Any) -> None:
    state = view(network="time", input=2, step=7).state
    call = run_node(tmp_path, '(state) => pythonCall("raster", state)', state)
    made_again = eval(call, {"raster": widgets.raster, "networks": networks(), "inputs": INPUTS})
    assert made_again.state == state


def test_the_figure_draws_the_kept_spikes_and_all_classes() -> None:
    found = view(network="time")
    figure = module.raster_figure(found)
    table = found.data["networks"][1]
    events = [int(e) for line in table["runs"][0]["events"] for e in line.split()]
    drawn = {trace.name: trace for trace in figure.data}
    assert len(drawn["spikes of +1"].x) == sum(e > 0 for e in events)
    assert len(drawn["spikes of -1"].x) == sum(e < 0 for e in events)
    assert {"class 0", "class 1", "class 2"} <= set(drawn)
    assert list(drawn["class 0"].x) == list(range(37, 46))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ x.mT).softmax(-1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"networks": {}}, "networks must be a SpikingTransformer, or several by name"),
        ({"networks": {"a": Small()}}, "networks must be a SpikingTransformer"),
        ({"inputs": [1.0]}, "inputs is list; a tensor"),
        (
            {"inputs": torch.zeros(13, 7, 4)},
            r"inputs is a tensor of shape \(13, 7, 4\); a tensor \(batch, ...\) of 1 to 12 inputs",
        ),
        ({"labels": [1]}, "labels holds 1 for 3 inputs"),
        ({"pictures": torch.zeros(3, 4)}, r"pictures has shape \(3, 4\)"),
        ({"classes": ["a"]}, "classes holds 1 names; the networks' outputs have 3 classes"),
        ({"neurons": 0}, "neurons is 0; a whole number from 1 to 64"),
        ({"network": "rate"}, "network is 'rate'; accepted are 'exact'"),
        ({"input": 3}, "input is 3; a whole number from 0 to 2"),
        ({"step": 31}, "step is 31; a whole number from 0 to 30"),
        ({"show": "all"}, "show is 'all'; accepted are 'every window', 'the window under way'"),
    ],
)
def test_what_is_not_accepted_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    options = {"networks": made(), "inputs": INPUTS, **given}
    with pytest.raises(ValueError, match=sentence):
        widgets.raster(options.pop("networks"), options.pop("inputs"), **options)


def test_an_output_that_is_no_linear_layers_is_refused() -> None:
    network = SpikingTransformer.from_standard(Pair(), calibration=INPUTS, timesteps=4)
    with pytest.raises(ValueError, match=r"exact has no output \(batch, classes\) of a last linear layer"):
        widgets.raster(network, INPUTS)
