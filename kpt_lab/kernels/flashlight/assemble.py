"""From a proved product of products to an Attention: roles of the dimensions, operands, mask and score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from kpt_lab.kernels.flashlight import masks, proofs, roles
from kpt_lab.kernels.flashlight.algebra import apply, substitute, truth
from kpt_lab.kernels.flashlight.arithmetic import COMPARISONS
from kpt_lab.kernels.flashlight.atoms import ONE, Variable, variables
from kpt_lab.kernels.flashlight.capture import is_random
from kpt_lab.kernels.flashlight.contraction import contraction
from kpt_lab.kernels.flashlight.drafts import Draft, Refused, Scored, coordinates, replaced_products
from kpt_lab.kernels.flashlight.expression import Apply, Attention, Constant, Expression, Fill, Load, Part, Score
from kpt_lab.kernels.flashlight.logic import conjuncts, negate
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, name_of, value
from kpt_lab.kernels.flashlight.roles import Digits, Roles, Source

if TYPE_CHECKING:
    from kpt_lab.kernels.flashlight.derivation import Derivation

NAN = ("infinite", "none")  # without a mask a bias may still be -inf throughout a row


class Assembly:
    """One attention while its roles are found."""

    def __init__(self, proof: Derivation, scored: list[Scored]) -> None:
        self.proof, self.scored, self.reader = proof, scored, proof.reader
        self.known = self._digits()
        self.keys = self._of(proof.key)
        self.anchored = [self._anchored(part) for part in scored]
        self.values = self._source(proof.value, "value")
        self.keyed_sources = [self._source(part.key, "key", True) for part in scored]
        self.query_sources = [self._source(part.query, "query", True) for part in scored]
        self._same_dtype()
        self.roles = self._roles()
        self.widths = [tuple(d for w in part.width for d in self._of(w)) for part in scored]
        held = {d for digits in self.values.digits for d in digits}
        self.depth = tuple(d for d in self._ordered_out() if d in held and d not in self._all_places())

    # -- digits

    def _digits(self) -> dict[Variable, Expression]:
        """Each variable that views take apart, as the number of its digits."""
        chains: list[Expression] = []
        for node, index in self._operands():
            for _, at, _, _ in roles.descend(node, index, self.reader, numbers=True):
                chains += at
        for part in self.scored:
            chains += part.term.load.index
        found: dict[Variable, Expression] = {}
        everything = frozenset().union(*map(variables, chains)) | {v for v in self.proof.out if isinstance(v, Variable)}
        for variable in sorted(everything, key=str):
            digits = roles.splits(variable, chains)
            if len(digits) > 1:
                found[variable] = roles.radix(digits)
        return found

    def _operands(self) -> list[tuple[fx.Node, Index]]:
        return [self.proof.value, *(part.query for part in self.scored), *(part.key for part in self.scored)]

    def _of(self, variable: Expression) -> Digits:
        number = self.known.get(variable, variable) if isinstance(variable, Variable) else variable
        if isinstance(number, Constant):
            return ()
        assert isinstance(variable, Variable)
        return roles.digits_of(number, variable.extent) or (variable,)

    def _anchored(self, part: Scored) -> Digits:
        """The digits of a softmax's own dimensions, in their order; they must be those of the output."""
        found: list[Variable] = []
        shape = self.reader.shape(part.term.load.tensor)
        for i, (place, extent) in enumerate(zip(part.term.load.index, shape, strict=True)):
            digits = roles.digits_of(substitute(place, self.known), extent, partial=True)
            if digits is None:
                raise Refused(f"dimension {i} of the softmax is only met in part by the product with the values")
            found += [digit for digit in digits if not isinstance(digit, roles.Fixed)]
        if len(found) != len(set(found)):
            raise Refused("the product with the values meets a diagonal of the softmax")
        return tuple(found)

    def _source(
        self, where: tuple[fx.Node, Index], what: str, numbers: bool = False, dtype: torch.dtype | None = None
    ) -> Source:
        node, index = where
        index = tuple(substitute(i, self.known) for i in index)
        found = roles.cleanest(roles.descend(node, index, self.reader, numbers), self.reader, dtype)
        if found is None:
            raise Refused(f"the {what} is read in an order that no kernel reads")
        return found

    def _same_dtype(self) -> None:
        """Peel exact casts off query and key where that gives all operands one dtype, and leave them where it doesn't."""
        wanted = value(self.values.node).dtype
        for sources, name in ((self.query_sources, "query"), (self.keyed_sources, "key")):
            for i, part in enumerate(self.scored):
                if value(sources[i].node).dtype != wanted:
                    node = (part.query if name == "query" else part.key)[0]
                    own = value(node).dtype
                    sources[i] = self._source((part.query if name == "query" else part.key), name, True, own)

    # -- roles

    def _all_places(self) -> set[Variable]:
        return {d for digits in self.anchored for d in digits}

    def _ordered_out(self) -> list[Variable]:
        return [d for v in self.proof.out for d in (self._of(v) if isinstance(v, Variable) else ())]

    def _roles(self) -> Roles:
        held = [{d for digits in s.digits for d in digits} for s in (self.values, *self.keyed_sources)]
        for found, what in zip(held, ("values", *["keys"] * len(self.scored)), strict=True):
            if not set(self.keys) <= found:
                raise Refused(f"the {what} don't depend on the whole key")
        mine = {d for part in self.scored for d in self._width(part)}
        keyed = frozenset().union(*held)
        order = [d for d in self.anchored[0] if d not in self.keys]
        if any(set(other) != set(self.anchored[0]) for other in self.anchored[1:]):
            raise Refused("the softmaxes of the combination run over different dimensions")
        extra = [d for d in self._ordered_out() if d not in order and any(d in h for h in held[1:])]
        order = extra + order
        for source in self.query_sources:
            strange = {d for digits in source.digits for d in digits if not isinstance(d, roles.Fixed)} - set(order) - mine
            if strange:
                raise Refused("the query depends on the key, so the scores are not a product of a query and a key")
        compared = frozenset(d for part in self.scored for d in self._compared(part.between))
        shape = self.reader.shape(self.scored[0].term.load.tensor)
        assigned = roles.assign(order, keyed, self.keys, compared, len(shape) > 3 and shape[0] == ONE)
        if not assigned.q and not any(extent == ONE for extent in shape):
            raise Refused("there is no product with values that queries share: each query has values of its own")
        return assigned

    def _width(self, part: Scored) -> set[Variable]:
        return {d for w in part.width for d in self._of(w)}

    def _compared(self, between: Expression) -> set[Variable]:
        """The variables that stand in a comparison together with the key."""
        found: set[Variable] = set()
        for part in substitute(between, self.known).walk():
            if isinstance(part, Apply) and part.op in COMPARISONS and set(self.keys) & variables(part):
                found |= variables(part)
        return found

    # -- expressions

    def whole(self, expression: Expression) -> Expression:
        """An expression of the proof's variables in the whole roles b, h, q and k."""
        return roles.renamed(substitute(expression, self.known), self.roles.known())

    def check(self, expression: Expression, scores: tuple[fx.Node, ...]) -> None:
        """Refuse where something that is read depends on scores, is random, or is computed for each query and key."""
        for load in masks.loads(expression):
            if is_random(load.tensor):
                raise Refused("a bias or mask is random")
            if any(self.proof.matcher.descends(load.tensor, score) for score in scores):
                raise Refused(f"a bias or mask depends on the scores through {name_of(load.tensor) or load.tensor.name}")
            if self._of_pairs(load) and not (self._given(load.tensor) and self._projected(load)):
                what = name_of(load.tensor) or "an operation"
                raise Refused(f"a bias or mask with an element for each query and key is computed in the graph by {what}")

    def _of_pairs(self, load: Load) -> bool:
        """Whether the tensor has an element for each query and key: one dimension for each, or one for both."""
        names = [{v.name for v in variables(i)} & {"q", "k"} for i in load.index]
        if len(set().union(*names)) < 2 if names else True:
            return False
        pairs = roles.hint(self.roles.place("q").extent) * roles.hint(self.roles.place("k").extent)
        apart = any("q" in a and "k" in b for i, a in enumerate(names) for j, b in enumerate(names) if i != j)
        return apart or any(
            len(n) == 2 and roles.hint(x) >= pairs for n, x in zip(names, self.reader.shape(load.tensor), strict=True)
        )

    def _projected(self, load: Load) -> bool:
        """Whether a product that the load reads multiplies pairs by weights, and not queries or keys by pairs."""
        found = contraction(load.tensor, self.reader)
        if found is None:
            return True
        inner = {x: Variable(f"w{x}", found.extents[x]) for x in found.reduced}
        names = [
            {v.name for i in index for v in variables(i)} & {"q", "k"}
            for index in found.indices(self.reader, load.index, inner)
        ]
        return not min(names, key=len)

    def _given(self, node: fx.Node) -> bool:
        """Whether the caller passed a tensor of queries by keys that this one is made of: then one more is theirs too."""
        wanted = {self.roles.place("q").extent, self.roles.place("k").extent}
        queue, seen = [node], {node}
        while queue:
            held = queue.pop()
            if held.op in ("placeholder", "get_attr") and isinstance(value(held), torch.Tensor):
                shape = self.reader.shape(held)
                if wanted <= set(shape) and (len(wanted) == 2 or shape.count(next(iter(wanted))) > 1):
                    return True
            new = [parent for parent in held.all_input_nodes if parent not in seen]
            seen.update(new)
            queue += new
        return node.op in ("placeholder", "get_attr")

    def part(self, i: int) -> tuple[Expression, float | Expression, Expression | None, Fill, Expression | None]:
        """Score, scale, mask, fill and coefficient of one softmax."""
        scored = self.scored[i]
        between = replaced_products(masks.without_casts(self.whole(scored.between)))
        nodes = tuple(part.product.node for part in self.scored)
        key, query = self.roles.place("k"), self.roles.place("q") if self.roles.q else None
        written, between = between, self._without_rows(between, nodes, key)
        if masks.decides_by_score(between):
            raise Refused("a mask depends on the scores")
        self.check(between, nodes)

        def certain(mask: Expression) -> bool:
            return proofs.some_key_always(mask, key, query)

        found = masks.Splitter(certain, self.proof.matcher.lenient).split(between)
        fill = self._guarded(scored, found, certain, unshifted=between == written)
        scale, score = masks.take_scale(found.score)
        factor = self.query_sources[i].factor * self.keyed_sources[i].factor
        if factor != 1.0:
            if isinstance(scale, float):
                scale *= factor
            else:
                score = substitute(score, {})
                score = masks.replace(
                    score, lambda p: apply("mul", (Score(), Constant(factor)), torch.float32) if p == Score() else None
                )
        coefficient = scored.term.coefficient
        if coefficient is not None:
            coefficient = replaced_products(self.whole(coefficient))
            self.check(coefficient, nodes)
            if variables(coefficient) & {key}:
                raise Refused("the coefficient of a softmax depends on the key")
            coefficient = coordinates(coefficient)
        mask = None if found.mask is None else coordinates(found.mask)
        return coordinates(score), scale, mask, fill, coefficient

    def _without_rows(self, between: Expression, scores: tuple[fx.Node, ...], key: Variable) -> Expression:
        """Without what is subtracted from a whole row and comes from its scores: softmax doesn't see it."""
        match between:
            case Apply("sub" | "add", (left, right), _) if isinstance(right, Load) and key not in variables(right):
                if any(self.proof.matcher.descends(right.tensor, score) for score in scores):
                    return self._without_rows(left, scores, key)
            case Apply("mul" | "div" as op, (left, right), dtype) if key not in variables(right) and not masks.scored(right):
                return apply(op, (self._without_rows(left, scores, key), right), dtype)
            case Apply("where", (condition, kept, Constant(number)), dtype) if (
                isinstance(number, float) and number <= masks.LOW
            ):
                return Apply("where", (condition, self._without_rows(kept, scores, key), Constant(number)), dtype)
        return between

    def _guarded(self, scored: Scored, found: masks.Masked, certain, unshifted: bool) -> Fill:
        """What a row without any key gives after the guards that stand behind the softmax; unshifted: no row's largest was subtracted."""
        fill = found.kind()
        anchor = self.proof.matcher.anchors[scored.term.load.tensor]
        if anchor.divided and unshifted:  # exponentials that are all 0 give 0 / 0, and not their mean
            if masks.holds_low(found.score):
                raise Refused(
                    "very low numbers are filled in before exponentials from which no maximum is subtracted: a row may be 0 / 0"
                )
            fill = "infinite" if fill == "finite" else fill
        if anchor.guarded and fill in NAN:
            fill = "zero"
        for guard in scored.term.guards:
            if guard is None:
                fill = "zero" if fill in NAN else fill
                continue
            condition = self.whole(guard)
            if self.roles.place("k") not in variables(condition):
                condition = self._quantified(condition, found.mask)
            wanted, present = set(conjuncts(condition)), set(conjuncts(found.mask))
            if not wanted <= present:
                raise Refused(
                    "the coefficient of the softmax depends on the key: it is masked afterwards by what the scores were not"
                )
            if found.mask is not None and not certain(found.mask):
                if wanted != present:
                    raise Refused("the probabilities are masked after the softmax by a part of the mask only")
                fill = "zero"
        return fill

    def _quantified(self, condition: Expression, mask: Expression | None) -> Expression:
        """`any key of this row is attended`, as the mask that it was computed from."""
        negated = isinstance(condition, Apply) and condition.op == "logical_not"
        load = condition.arguments[0] if negated and isinstance(condition, Apply) else condition
        if isinstance(load, Load) and name_of(load.tensor) in ("any", "all"):
            a = Arguments(load.tensor)
            source, dim = a.values["self"], a.get("dim")
            if isinstance(dim, int) and (name_of(load.tensor) == "all") == negated:
                dim %= value(source).dim()
                rest = load.index[dim + 1 :] if a.keepdim else load.index[dim:]
                found = self.reader.element(source, (*load.index[:dim], self.roles.place("k"), *rest))
                return negate(truth(found)) if negated else truth(found)
        raise Refused("the probabilities of some rows are replaced after the softmax")

    # -- the graph

    def operands(self) -> tuple[tuple[Digits, ...], tuple[Digits, ...]]:
        """The digits of (b, h, l, d) that a key and a value must have: those of the shared heads are left out where they can be."""
        r = self.roles
        heads = tuple(d for d in r.h if d not in r.shared)
        return (r.b, heads, r.k), (r.b, heads, r.k)


def assemble(proof: Derivation, scored: list[Scored]) -> Draft:
    """The draft of an attention; its operands are put into the graph when it is built."""
    made = Assembly(proof, scored)
    contents = [made.part(i) for i in range(len(scored))]
    graph, end, r = proof.matcher.graph, proof.end, made.roles

    def build() -> Attention:
        with graph.inserting_before(end):
            (kb, kh, kk), _ = made.operands()
            parts = []
            for i, (score, scale, mask, fill, coefficient) in enumerate(contents):
                width = made.widths[i]
                query = roles.operand(made.query_sources[i], (r.b, r.h, r.q, width), graph)
                key = roles.operand(made.keyed_sources[i], (kb, kh, kk, width), graph)
                groups = roles.extent_of(r.shared)
                count = groups.value if isinstance(groups, Constant) else roles.hint(groups)
                parts.append(Part(query, key, score, scale, mask, fill, int(count), coefficient))  # type: ignore[arg-type]
            held = roles.operand(made.values, (kb, kh, kk, made.depth), graph)
        output, dims = _output(made, graph, end)
        return Attention(tuple(parts), held, tuple(s.term.load.tensor for s in scored), output, dims, proof.dropout)

    anchors = tuple(dict.fromkeys(part.term.load.tensor for part in scored))
    scores = tuple(dict.fromkeys(part.product.node for part in scored))
    return Draft(end, anchors, scores, proof.dropout, build)


def _output(made: Assembly, graph: fx.Graph, end: fx.Node) -> tuple[fx.Node, tuple]:
    """The node to replace, with its dimensions' roles; a view apart and back is inserted where a dimension mixes roles."""
    r = made.roles
    wanted = (r.b, r.h, r.q, made.depth)
    digits = tuple(made._of(v) if isinstance(v, Variable) else () for v in made.proof.out)
    apart = roles.separated(digits, wanted)
    node = end
    if len(apart) != len(digits):
        with graph.inserting_before(end):
            extents, back = ([roles.number(roles.extent_of(held), graph) for held in x] for x in (apart, digits))
        with graph.inserting_after(end):
            node = roles.call(graph, torch.ops.aten.reshape.default, end, extents)
        with graph.inserting_after(node):
            whole = roles.call(graph, torch.ops.aten.reshape.default, node, back)
        end.replace_all_uses_with(whole, delete_user_cb=lambda user: user is not node)
    return node, roles.places(apart, wanted)
