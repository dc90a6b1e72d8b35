"""Finding attentions in a functional graph and proving that they are ones; names of nodes and modules play no part.

Each softmax is followed forward to the products that its probabilities meet the values in. There the proof starts: the
probabilities' element is read back to a linear combination of softmaxes over the summed index, each softmax's input to one
product of a query and a key, and everything between becomes an expression. Then the dimensions get their roles.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from kpt_lab.kernels.flashlight import softmaxes
from kpt_lab.kernels.flashlight.contraction import contraction
from kpt_lab.kernels.flashlight.derivation import Derivation
from kpt_lab.kernels.flashlight.drafts import Draft, Refused
from kpt_lab.kernels.flashlight.expression import Refusal
from kpt_lab.kernels.flashlight.gradients import gradient_modes
from kpt_lab.kernels.flashlight.index import Reader, pointwise
from kpt_lab.kernels.flashlight.nodes import Unreadable, name_of


def find(graph_module: fx.GraphModule, lenient: bool = False) -> tuple[list[Draft], list[Refusal]]:
    """The attentions of a functional graph, and a refusal for each softmax that is in none.

    lenient: rows without any key may come out as zeros, so that masks need no proof to be taken out.
    """
    return Matcher(graph_module, lenient).find()


class Matcher:
    """The search over one graph."""

    def __init__(self, graph_module: fx.GraphModule, lenient: bool = False) -> None:
        self.graph, self.lenient = graph_module.graph, lenient
        first = Reader(self.graph, module=graph_module)
        self.anchors = {anchor.node: anchor for anchor in softmaxes.find(self.graph, first)}
        self.reader = Reader(self.graph, frozenset(self.anchors), graph_module)
        self.below: dict[fx.Node, set[fx.Node]] = {}
        self.modes = gradient_modes(self.graph)

    def find(self) -> tuple[list[Draft], list[Refusal]]:
        reasons: dict[fx.Node, str] = {}
        ends: dict[fx.Node, list[fx.Node]] = {}
        for node in self.anchors:
            ends[node], reasons[node] = self._forward(node)
        drafts: list[Draft] = []
        for end in (node for node in self.graph.nodes if any(node in found for found in ends.values())):
            above = [anchor for anchor, found in ends.items() if end in found]
            try:
                drafts.append(Derivation(self, end).draft())
            except Refused as refused:
                for anchor in above:
                    reasons[anchor] = str(refused)
            except (Unreadable, RecursionError) as error:
                for anchor in above:
                    reasons[anchor] = str(error) or "what stands between the two products is too deep to be read"
        drafts = self._only_dead(drafts, reasons, ends)
        matched = {anchor for draft in drafts for anchor in draft.anchors}
        return drafts, [Refusal(node, reasons[node]) for node in self.anchors if node not in matched]

    # ---- where the probabilities go

    def _forward(self, start: fx.Node) -> tuple[list[fx.Node], str]:
        """The products that the probabilities reach, and what to say should none of them be an attention."""
        seen, queue, ends, reason = {start}, [start], [], "there is no product with values after the softmax"
        returned = False
        while queue:
            node = queue.pop(0)
            for user in node.users:
                if user in seen:
                    continue
                seen.add(user)
                if user.op == "output" or name_of(user) == "copy_":
                    returned = True
                elif contraction(user, self.reader) is not None:
                    ends.append(user)
                elif name_of(user) in ("linear", "addmm", "baddbmm"):
                    reason = "a product after the softmax mixes heads, or something is added to the product with values"
                elif name_of(user) == "sum":
                    continue
                elif "conv" in name_of(user):
                    reason = "a convolution mixes heads after the softmax"
                elif user in self.anchors:
                    continue
                elif pointwise(user):
                    queue.append(user)
        if returned and not ends:
            reason = "the probabilities are returned, and there is no product with values"
        return ends, reason

    def _only_dead(self, drafts: list[Draft], reasons: dict[fx.Node, str], ends: dict[fx.Node, list[fx.Node]]) -> list[Draft]:
        """Keep the attentions whose scores nothing else needs once all outputs are computed otherwise."""
        while True:
            replaced = {draft.output for draft in drafts}
            kept = []
            for draft in drafts:
                reason = self._alive((*draft.scores, *draft.anchors), replaced)
                if reason is None and draft.dropout and any(len(ends[anchor]) > 1 for anchor in draft.anchors):
                    reason = "the dropped probabilities are used elsewhere: two products need the same random draw"
                if reason is None:
                    kept.append(draft)
                else:
                    reasons.update(dict.fromkeys(draft.anchors, reason))
            if len(kept) == len(drafts):
                return kept
            drafts = kept

    def _alive(self, start: Iterable[fx.Node], replaced: set[fx.Node]) -> str | None:
        """Why the nodes would still be needed with the `replaced` ones gone, or None."""
        seen, queue, plain = set(start), [(node, True) for node in start], True
        verdict = None
        while queue:
            node, plain = queue.pop(0)
            for user in node.users:
                if user in replaced:
                    continue
                if user.op == "output" or name_of(user) == "copy_":
                    if plain:
                        return "the scores or probabilities are returned"
                    verdict = "the scores or probabilities are used elsewhere"
                elif user not in seen:
                    seen.add(user)
                    queue.append((user, plain and (pointwise(user) or user in self.anchors)))
        return verdict

    def descends(self, node: fx.Node, ancestor: fx.Node) -> bool:
        """Whether a node depends on another."""
        if ancestor not in self.below:
            found, queue = {ancestor}, [ancestor]
            while queue:
                for user in queue.pop().users:
                    if user not in found:
                        found.add(user)
                        queue.append(user)
            self.below[ancestor] = found
        return node in self.below[ancestor]
