"""Finding attentions in a functional graph and proving that they are ones; names of nodes and modules play no part.

Each softmax is followed forward to the products that its probabilities meet the values in. There the proof starts: the
probabilities' element is read back to a linear combination of softmaxes over the summed index, each softmax's input to one
product of a query and a key, and everything between becomes an expression. Then the dimensions get their roles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx

from kpt_lab.kernels.flashlight import softmaxes
from kpt_lab.kernels.flashlight.algebra import apply
from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Product, Variable, variables
from kpt_lab.kernels.flashlight.capture import is_random
from kpt_lab.kernels.flashlight.contraction import Contraction, contraction
from kpt_lab.kernels.flashlight.expression import (
    Apply,
    Attention,
    Constant,
    Coordinate,
    Expression,
    Load,
    Part,
    Refusal,
    Score,
    replace,
)
from kpt_lab.kernels.flashlight.index import _RULES, CONTRACTIONS, SAME_SHAPE, Index, Reader, Unreadable, name_of, value
from kpt_lab.kernels.flashlight.softmaxes import bare

REDUCTIONS = {"amax", "max", "logsumexp"}


class Refused(Exception):
    """The proof failed; the message is the reason, one sentence."""


@dataclass
class Term:
    """One softmax of the linear combination: its element, what multiplies it, and what guards it."""

    load: Load
    coefficient: Expression | None = None
    guards: list[Expression | None] = field(default_factory=list)  # conditions; None stands for NaN to zero


@dataclass
class Scored:
    """A term with its product of query and key found."""

    term: Term
    product: Contraction
    between: Expression
    query: tuple[fx.Node, Index]
    key: tuple[fx.Node, Index]
    width: tuple[Variable, ...]


@dataclass
class Draft:
    """A proved attention whose operands are not in the graph yet; `build` inserts them and gives the Attention."""

    output: fx.Node
    anchors: tuple[fx.Node, ...]
    scores: tuple[fx.Node, ...]
    dropout: float
    build: Callable[[], Attention]
    parts: tuple[Part, ...] = ()


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
        self.modes = _gradient_modes(self.graph)

    def find(self) -> tuple[list[Draft], list[Refusal]]:
        reasons: dict[fx.Node, str] = {}
        ends: dict[fx.Node, list[fx.Node]] = {}
        for node in self.anchors:
            ends[node], reasons[node] = self._forward(node)
        drafts: list[Draft] = []
        for end in (node for node in self.graph.nodes if any(node in found for found in ends.values())):
            above = [anchor for anchor, found in ends.items() if end in found]
            try:
                drafts.append(_Proof(self, end).draft())
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
                elif _pointwise(user):
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
                    queue.append((user, plain and (_pointwise(user) or user in self.anchors)))
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


def _pointwise(node: fx.Node) -> bool:
    name = name_of(node)
    if name in CONTRACTIONS or name == "sum":
        return False
    return name in SAME_SHAPE or name in _RULES or _is_view(node)


def _is_view(node: fx.Node) -> bool:
    from kpt_lab.kernels.flashlight.index import _VIEWS, IDENTITIES, RESHAPES

    return name_of(node) in _VIEWS or name_of(node) in IDENTITIES or name_of(node) in RESHAPES or name_of(node) in (
        "detach", "dropout", "native_dropout", "type_as",
    )  # fmt: skip


def _gradient_modes(graph: fx.Graph) -> dict[fx.Node, bool]:
    enabled, found = True, {}
    for node in graph.nodes:
        if node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
        found[node] = enabled
    return found


class _Proof:
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
        side = self._side()
        reader.looking(frozenset(keys))
        if name_of(self.end) in ("baddbmm", "addmm"):
            raise Refused("something is added to the product with the values")
        probabilities, self.dropout = self._undropped(reader.element(outer.operands[side], pair[side]))
        self._over_keys([part for part in probabilities.walk() if self._is_anchor(part)], keys)
        self.terms = self._linear(probabilities)
        self.value = (outer.operands[1 - side], pair[1 - side])
        self.key = self._key(keys)
        scored = [self._scored(term) for term in self.terms]
        return self._with_roles(scored)

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
        return any(self._is_anchor(part) for part in self.reader.element(node, index).walk())

    def _is_anchor(self, part: Expression) -> bool:
        return isinstance(part, Load) and part.tensor in self.matcher.anchors

    def _has_anchor(self, expression: Expression) -> bool:
        return any(self._is_anchor(part) for part in expression.walk())

    def _undropped(self, expression: Expression) -> tuple[Expression, float]:
        inner = bare(expression)
        if isinstance(inner, Apply) and inner.op == "dropout":
            number = inner.arguments[1]
            assert isinstance(number, Constant)
            rest, again = self._undropped(inner.arguments[0])
            if again:
                raise Refused("the probabilities are dropped twice, which is random in a way that no kernel has")
            return rest, float(number.value)
        return expression, 0.0

    def _linear(self, expression: Expression) -> list[Term]:
        """The expression as a sum of softmaxes with coefficients."""
        match expression:
            case Load(tensor, _) if tensor in self.matcher.anchors:
                return [Term(expression)]
            case Apply("to", (inner,), dtype) if dtype.is_floating_point:
                return self._linear(inner)
            case Apply("add" | "sub" as op, (left, right), _):
                if not (self._has_anchor(left) and self._has_anchor(right)):
                    raise Refused(self._crossing("something is added to the probabilities, so they are no softmax over keys"))
                other = self._linear(right)
                return self._linear(left) + ([self._times(t, Constant(-1.0)) for t in other] if op == "sub" else other)
            case Apply("neg", (inner,), _):
                return [self._times(term, Constant(-1.0)) for term in self._linear(inner)]
            case Apply("mul", (left, right), _) if self._has_anchor(left) != self._has_anchor(right):
                kept, factor = (left, right) if self._has_anchor(left) else (right, left)
                condition = softmaxes.holds(factor)
                if condition is not None:
                    return self._guarded(kept, condition)
                return [self._times(term, factor) for term in self._linear(kept)]
            case Apply("mul" | "pow", _, _):
                raise Refused(
                    "the coefficient of a softmax depends on the key: multiplied probabilities are no linear combination of softmaxes"
                )
            case Apply("div", (left, right), dtype) if not self._has_anchor(right):
                return [self._times(term, apply("div", (Constant(1.0), right), dtype)) for term in self._linear(left)]
            case Apply("nan_to_num", (inner, Constant(number)), _) if number == 0:
                return self._guarded(inner, None)
            case Apply("where", (condition, kept, Constant(number)), _) if number == 0 and self._has_anchor(kept):
                if condition == Apply("logical_not", (Apply("isnan", (kept,), torch.bool),), torch.bool):
                    return self._guarded(kept, None)
                if not self._has_anchor(condition):
                    return self._guarded(kept, condition)
            case Apply("dropout", _, _):
                raise Refused("dropout stands on a part of the probabilities only, which is random in a way that no kernel has")
        raise Refused(self._crossing("what is done to the probabilities is no linear combination of softmaxes"))

    def _guarded(self, expression: Expression, guard: Expression | None) -> list[Term]:
        terms = self._linear(expression)
        if len(terms) > 1:
            raise Refused("a combination of softmaxes is masked again after the softmax")
        terms[0].guards.append(guard)
        return terms

    def _times(self, term: Term, factor: Expression) -> Term:
        if variables(factor) & self.reader.keys:
            raise Refused("the coefficient of a softmax depends on the key")
        held = term.coefficient
        term.coefficient = factor if held is None else apply("mul", (held, factor), torch.float32)
        return term

    def _crossing(self, otherwise: str) -> str:
        """The reason for a combination of probabilities that isn't linear: heads or queries mixed, or else."""
        return otherwise

    # ---- over the keys

    def _over_keys(self, found: list[Expression], keys: tuple[Variable, ...]) -> None:
        for load in found:
            assert isinstance(load, Load)
            place = load.index[self.matcher.anchors[load.tensor].dim]
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
                elif _pointwise(user):
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

    # ---- roles

    def _with_roles(self, scored: list[Scored]) -> Draft:
        from kpt_lab.kernels.flashlight.assemble import assemble

        return assemble(self, scored)


def _wide(node: fx.Node) -> bool:
    return value(node).dim() >= 2


def coordinates(expression: Expression) -> Expression:
    """Whole roles as coordinates: the last step before an expression leaves the matcher."""

    def change(part: Expression) -> Expression | None:
        return Coordinate(part.name) if isinstance(part, Variable) else None  # type: ignore[arg-type]

    return replace(expression, change)


def replaced_products(expression: Expression) -> Expression:
    """Products that are no scores as loads of their tensors."""

    def change(part: Expression) -> Expression | None:
        match part:
            case Product(node, index):
                if name_of(node) in ("baddbmm", "addmm"):
                    raise Refused(f"{node.name} adds to a product that is computed in the graph")
                return Load(node, index)
        return None

    return replace(expression, change)
