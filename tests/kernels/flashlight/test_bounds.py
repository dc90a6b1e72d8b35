"""A graph that is made to say where it reads, before a GPU would find out by losing its device."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from kpt_lab.kernels.flashlight.bounds import Bounded

TABLE = torch.arange(35.0).view(5, 7)
PLACES = {
    "index": (lambda t, i: t[i], 5, True),
    "index behind a slice": (lambda t, i: t[:, i], 7, True),
    "index behind truth values": (lambda t, i: t[:, None, :][t[:, :1] > 15, i], 7, True),
    "index_put": (lambda t, i: t.index_put((i,), torch.zeros(7)), 5, True),
    "index_select": (lambda t, i: t.index_select(1, i), 7, False),
    "gather": (lambda t, i: t.gather(0, i.expand(2, -1)), 5, False),
    "scatter": (lambda t, i: t.scatter(1, i.expand(2, -1), 0.0), 7, False),
    "embedding": (lambda t, i: torch.nn.functional.embedding(i, t), 5, False),
    "take": (lambda t, i: t.take(i), 35, True),
}


@pytest.mark.parametrize("name", PLACES)
def test_it_runs_what_is_inside_and_raises_before_what_is_not(name):
    fn, extent, negative = PLACES[name]
    graph = make_fx(fn)(TABLE, torch.tensor([0, 1]))
    ran = []

    class Watched(Bounded):
        def call_function(self, target, args, kwargs):
            ran.append(target)
            return super().call_function(target, args, kwargs)

    def run(*places):
        ran.clear()
        return Watched(graph).run(TABLE, torch.tensor(places))

    assert torch.equal(run(extent - 1, 0), fn(TABLE, torch.tensor([extent - 1, 0])))
    whole = len(ran)
    with pytest.raises(IndexError, match=rf"reads at 0 to {extent} of {extent}"):
        run(extent, 0)
    assert len(ran) < whole
    if negative:
        assert torch.equal(run(-extent, 1), fn(TABLE, torch.tensor([-extent, 1])))
    with pytest.raises(IndexError):
        run(-extent - 1, 0)


def test_no_index_is_inside_everything():
    graph = make_fx(lambda t, i: t[i])(TABLE, torch.tensor([0]))
    assert Bounded(graph).run(TABLE, torch.zeros(0, dtype=torch.long)).shape == (0, 7)
