"""Whether a graph reads only what is there: on a GPU, an index beyond its tensor is no exception but the end of the process's device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from kpt_lab.kernels.flashlight.nodes import Arguments, name_of

ALONG_DIM = ("gather", "index_select", "index_add", "index_copy", "index_fill", "scatter", "scatter_add", "take_along_dim")


class Bounded(fx.Interpreter):
    """Runs a graph, and raises IndexError, as a CPU would, before an operator is given indices beyond what they index."""

    def run_node(self, n: fx.Node) -> Any:
        """What the node gives."""
        for index, extent, least in self._indices(n):
            if index.numel() and not least <= int(index.min()) <= int(index.max()) < extent:
                raise IndexError(f"{name_of(n)} reads at {int(index.min())} to {int(index.max())} of {extent}")
        return super().run_node(n)

    def _indices(self, n: fx.Node) -> Iterator[tuple[Tensor, int, int]]:
        """Index tensors of a node, each with the extent that it indexes and the least that it may hold."""
        name = name_of(n)
        if name not in (*ALONG_DIM, "index", "_unsafe_index", "index_put", "embedding", "take"):
            return
        given: dict[str, Any] = fx.node.map_arg(Arguments(n).values, lambda x: self.env[x])
        along = given.get("index", given.get("indices"))
        if name == "embedding":
            yield given["indices"], given["weight"].shape[0], 0
        elif name == "take" or given.get("dim", 0) is None:
            yield along, given["self"].numel(), -given["self"].numel()  # type: ignore[misc]
        elif name in ALONG_DIM:
            extent = given["self"].shape[given["dim"]] if given["self"].dim() else 1
            yield along, extent, -extent if name == "take_along_dim" else 0  # type: ignore[misc]
        else:
            dim = 0
            for index in given["indices"]:
                truth = index is not None and index.dtype in (torch.bool, torch.uint8)
                if index is not None and not truth:
                    yield index, given["self"].shape[dim], -given["self"].shape[dim]
                dim += index.dim() if truth else 1
