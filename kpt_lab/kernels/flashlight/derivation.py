"""The proof that the output of one product is an attention: back from the values to softmaxes, scores, queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from kpt_lab.kernels.flashlight.assemble import assemble
from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Product, Variable, variables
from kpt_lab.kernels.flashlight.capture import is_random
from kpt_lab.kernels.flashlight.combination import Combination
from kpt_lab.kernels.flashlight.contraction import Contraction, contraction
from kpt_lab.kernels.flashlight.drafts import Draft, Refused, Scored, Term
from kpt_lab.kernels.flashlight.expression import Apply, Expression, Load, Score, replace
from kpt_lab.kernels.flashlight.index import pointwise
from kpt_lab.kernels.flashlight.nodes import CONTRACTIONS, Index, name_of, value

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.match import Matcher


class Derivation:
    """The proof that the output of one product is an attention."""

    def __init__(self, matcher: Matcher, end: fx.Node) -> None:
        self.matcher, self.reader, self.end = matcher, matcher.reader, end
        found = contraction(end, self.reader)
        assert found is not None
        self.outer = found

    # ---- the probabilities

    def draft(self) -> Draft:
        """Prove it; Refused or Unreadable say why not."""
        outer, reader = self.outer, self.reader
        self.out = tuple(self._variable("o", label, outer) for label in outer.output)
        reduction = {label: Variable(f"j{label}", outer.extents[label]) for label in outer.reduced}
        pair = outer.indices(reader, self.out, reduction)
        keys = tuple(reduction.values())
        reader.looking(frozenset())
        self.combination = Combination(self.matcher.anchors, frozenset(keys))
        side = self._side()
        reader.looking(frozenset(keys))
        if name_of(self.end) in ("baddbmm", "addmm"):
            raise Refused("something is added to the product with the values")
        probabilities, self.dropout = self.combination.undropped(reader.element(outer.operands[side], pair[side]))
        self._over_keys([part for part in probabilities.walk() if self.combination.is_softmax(part)], keys)
        self.terms = self.combination.terms(probabilities)
        self.value = (outer.operands[1 - side], pair[1 - side])
        self.key = self._key(keys)
        scored = [self._scored(term) for term in self.terms]
        return assemble(self, scored)

    def _variable(self, prefix: str, label: str, product: Contraction) -> Expression:
        extent = product.extents[label]
        return ZERO if extent == ONE else Variable(f"{prefix}{label}", extent)

    def _side(self) -> int:
        depends = [self._probable(node) for node in self.outer.operands]
        if all(depends):
            raise Refused("the probabilities meet themselves, so there is no product with values")
        if not any(depends):
            raise Refused(
                "the gradient is stopped, or something unread stands, between the softmax and the product with values"
            )
        return depends.index(True)

    def _probable(self, node: fx.Node) -> bool:
        """Whether an operand's element is made of softmaxes."""
        index = tuple(Variable(f"i{i}", n) for i, n in enumerate(self.reader.shape(node)))
        return any(self.combination.is_softmax(part) for part in self.reader.element(node, index).walk())

    # ---- over the keys

    def _over_keys(self, found: list[Expression], keys: tuple[Variable, ...]) -> None:
        for load in found:
            assert isinstance(load, Load)
            anchor = self.matcher.anchors[load.tensor]
            place = load.index[anchor.dim]
            if self.reader.shape(anchor.node)[anchor.dim] == ONE:
                raise Refused("there is one key, whose weight is 1 whatever its score: apply it to inputs with more of them")
            if not isinstance(place, Variable) or place not in keys:
                raise Refused(self._mixing(place) or "the softmax is not over the keys that meet the values")

    def _key(self, keys: tuple[Variable, ...]) -> Variable:
        """The variable that the softmaxes run over; it must be the one that the product with the values sums over."""
        found = set()
        for term in self.terms:
            anchor = self.matcher.anchors[term.load.tensor]
            place = term.load.index[anchor.dim]
            others = [i for d, i in enumerate(term.load.index) if d != anchor.dim]
            assert isinstance(place, Variable)
            if place.extent != self.reader.shape(anchor.node)[anchor.dim]:
                raise Refused("the softmax is not over the keys that meet the values alone: some are cut off after it")
            if any(variables(i) & set(keys) for i in others):
                raise Refused("the softmax is not over the keys alone: the product with the values sums over more")
            found.add(place)
        if len(found) != 1 or len(keys) != 1:
            raise Refused("the product with the values sums over more than the keys, so it mixes heads")
        return found.pop()

    def _mixing(self, place: Expression) -> str | None:
        """Whether another product sums over the softmax's dimension later on: then this one only mixed heads."""
        queue, seen = [self.end], {self.end}
        while queue:
            node = queue.pop(0)
            for user in node.users:
                if user in seen:
                    continue
                seen.add(user)
                later = contraction(user, self.reader)
                if later is not None:
                    if self._sums(later, place):
                        return "a product after the softmax mixes heads before the values are met"
                elif pointwise(user):
                    queue.append(user)
        return None

    def _sums(self, later: Contraction, place: Expression) -> bool:
        out = tuple(Variable(f"l{label}", later.extents[label]) for label in later.output)
        reduction = {label: Variable(f"r{label}", later.extents[label]) for label in later.reduced}
        position = self.out.index(place) if place in self.out else -1
        for operand, index in zip(later.operands, later.indices(self.reader, out, reduction), strict=True):
            for part in self.reader.element(operand, index).walk():
                if isinstance(part, Product) and part.node is self.end and position >= 0:
                    return bool(variables(part.index[position]) & set(reduction.values()))
        return False

    # ---- the scores

    def _scored(self, term: Term) -> Scored:
        anchor = self.matcher.anchors[term.load.tensor]
        between = anchor.logits(self.reader, term.load.index)
        if any(isinstance(part, Apply) and part.op == "dropout" for part in between.walk()):
            raise Refused("the scores are dropped before the softmax, which is random in a way that no kernel has")
        products = dict.fromkeys(part for part in between.walk() if isinstance(part, Product))
        keyed = [part for part in products if self.key in variables(part)]
        scores = [part for part in keyed if self._scores(part)]
        if not scores:
            raise Refused(self._why_no_score(keyed) or self._why_no_product(between))
        if len(scores) > 1:
            raise Refused(self._why_many(scores))
        product = scores[0]
        inner = contraction(product.node, self.reader)
        if inner is None:
            raise Refused("what the softmax takes is not a product of a query and a key")
        width = {label: Variable(f"d{label}", inner.extents[label]) for label in inner.reduced}
        pair = inner.indices(self.reader, product.index, width)
        depends = [self.key in frozenset().union(*map(variables, index)) if index else False for index in pair]
        if sum(depends) != 1:
            raise Refused(self._inside(pair, inner) or "what the softmax takes is not a product of a query and a key")
        right = depends.index(True)
        if reason := self._inside(pair, inner):
            raise Refused(reason)
        between = replace(between, lambda part: Score() if part == product else None)
        found = Scored(
            term, inner, between, (inner.operands[1 - right], pair[1 - right]), (inner.operands[right], pair[right]),
            tuple(width.values()),
        )  # fmt: skip
        self._check_gradients(anchor.node, inner.node)
        return found

    def _pair(self, product: Product) -> tuple[Contraction, tuple[Index, Index]] | None:
        inner = contraction(product.node, self.reader)
        if inner is None:
            return None
        return inner, inner.indices(self.reader, product.index, {x: Variable(f"d{x}", inner.extents[x]) for x in inner.reduced})

    def _scores(self, product: Product) -> bool:
        """Whether one operand is a key, which knows no query, and the other a query, which knows no key."""
        found = self._pair(product)
        if found is None:
            return False
        depends = [frozenset().union(*map(variables, index)) if index else frozenset() for index in found[1]]
        if (self.key in depends[0]) == (self.key in depends[1]):
            return False
        key, query = depends if self.key in depends[0] else depends[::-1]
        queries = self._queries()
        return not key & queries and (bool(query & queries) or not queries)

    def _why_no_score(self, keyed: list[Product]) -> str | None:
        for product in keyed:
            found = self._pair(product)
            if found is not None and (reason := self._inside(found[1], found[0])):
                return reason
        return None

    def _inside(self, pair: tuple[Index, Index], inner: Contraction) -> str | None:
        """Whether an operand holds scores itself: a product over heads of what another product gave."""
        for operand, index in zip(inner.operands, pair, strict=True):
            for part in self.reader.element(operand, index).walk():
                if isinstance(part, Product) and self.key in variables(part):
                    below = contraction(part.node, self.reader)
                    if below is None:
                        continue
                    places = below.indices(
                        self.reader, part.index, {x: Variable(f"w{x}", below.extents[x]) for x in below.reduced}
                    )
                    depends = [frozenset().union(*map(variables, i)) if i else frozenset() for i in places]
                    one, other = (d & frozenset(self._queries()) for d in depends)
                    if (self.key in depends[0]) != (self.key in depends[1]) and (one if self.key in depends[1] else other):
                        return "a product before the softmax mixes heads"
        return None

    def _queries(self) -> set[Variable]:
        """The variables of the output that the values don't depend on: the queries', among them."""
        held = frozenset().union(*map(variables, self.value[1])) if self.value[1] else frozenset()
        return {v for v in self.out if isinstance(v, Variable) and v not in held}

    def _check_gradients(self, *nodes: fx.Node) -> None:
        if len({self.matcher.modes[node] for node in (*nodes, self.end)}) > 1:
            raise Refused("gradients are switched on or off between the two products")

    def _why_no_product(self, between: Expression) -> str:
        for part in between.walk():
            if isinstance(part, Load) and self.key in variables(part):
                if is_random(part.tensor):
                    return "the scores are random"
                if part.tensor in self.matcher.anchors:
                    return "the softmax's input depends on the scores of another softmax"
                if part.tensor in self.reader.stopped:
                    return "the gradient is stopped between the two products, so it is not a product of a query and a key"
                if self._below_scores(part.tensor):
                    if "conv" in name_of(part.tensor) and self._channels(part.tensor):
                        return "a convolution of the scores mixes heads before the softmax"
                    return f"what the softmax takes depends on the scores through {name_of(part.tensor) or 'an operation'}"
        return "what the softmax takes is not a product of a query and a key"

    def _channels(self, node: fx.Node) -> bool:
        groups = node.args[-1] if isinstance(node.args[-1], int) else 1
        return len(node.args) < 7 or groups == 1

    def _below_scores(self, node: fx.Node) -> bool:
        """Whether a node depends on some product over the same key: then its elements come from scores."""
        queue, seen = [node], {node}
        key = self.key.extent
        while queue:
            for parent in queue.pop().all_input_nodes:
                if parent in seen:
                    continue
                seen.add(parent)
                if name_of(parent) in CONTRACTIONS and self.reader.shape(parent)[-2:].count(key) and _wide(parent):
                    return True
                queue.append(parent)
        return False

    def _why_many(self, keyed: list[Product]) -> str:
        nodes = {part.node for part in keyed}
        if len(nodes) == 1:
            return "what the softmax takes depends on the scores of other queries or keys too"
        for one in nodes:
            if any(other is not one and self.matcher.descends(other, one) for other in nodes):
                return "what the softmax takes depends on the scores through another product"
        return "beside the product of query and key there is another one that is computed in the graph for each query and key"


def _wide(node: fx.Node) -> bool:
    return value(node).dim() >= 2
