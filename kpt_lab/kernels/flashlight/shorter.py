"""The differential check of attentions whose scores are too many to hold: at small lengths, in a capture with symbolic ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from kpt_lab.core import Unsupported
from kpt_lab.kernels.flashlight import differential, match
from kpt_lab.kernels.flashlight.capture import functional_form

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.rewrite import Backend


class _Seen(Exception):
    """Ends the capture before its graph runs."""


def check(fn: Callable[..., Any], args: Sequence[Any], lengths: set[int], backend: Backend) -> str:
    """What was compared at small lengths, or why nothing was; raises differential.Differs where the lowered one differs.

    Every dimension of `args` whose size is one of `lengths` becomes symbolic; nothing runs at the sizes of `args`.
    """
    found: list[str] = []
    failed: list[Exception] = []

    def probe(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        try:
            graph = functional_form(graph_module, inputs)
            drafts, _ = match.find(graph, backend.options.empty_rows == "zero")
            found.extend(backend.compare(graph, draft.build()) for draft in drafts)
        except (Unsupported, differential.Differs) as error:
            failed.append(error)
        raise _Seen

    for x in args:
        if isinstance(x, torch.Tensor):
            for dim, size in enumerate(x.shape):
                if size in lengths:
                    torch._dynamo.maybe_mark_dynamic(x, dim)
    try:
        torch.compile(fn, backend=probe)(*args)
    except Exception as error:  # Dynamo wraps what a backend raises
        if not found and not failed:
            return f"not checked: no capture with symbolic lengths: {type(error).__name__}"
    if failed and isinstance(failed[0], differential.Differs):
        raise failed[0]
    if failed or not found:
        return f"not checked: {failed[0] if failed else 'no attention was found with symbolic lengths'}"
    return f"{'; '.join(dict.fromkeys(found))}, in a capture with symbolic lengths"
