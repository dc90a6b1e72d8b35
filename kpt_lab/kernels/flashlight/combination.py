"""The probabilities that meet the values, as a linear combination of softmaxes."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import fx

from kpt_lab.kernels.flashlight import softmaxes
from kpt_lab.kernels.flashlight.algebra import apply
from kpt_lab.kernels.flashlight.atoms import Variable, variables
from kpt_lab.kernels.flashlight.drafts import Refused, Term
from kpt_lab.kernels.flashlight.expression import Apply, Constant, Expression, Load
from kpt_lab.kernels.flashlight.softmaxes import bare


class Combination:
    """Reads expressions of the probabilities; `anchors` are the graph's softmaxes, `keys` what the product with the values sums over."""

    def __init__(self, anchors: Container[fx.Node], keys: frozenset[Variable]) -> None:
        self.anchors, self.keys = anchors, keys

    def is_softmax(self, part: Expression) -> bool:
        """Whether it is an element of a softmax."""
        return isinstance(part, Load) and part.tensor in self.anchors

    def _holds_softmax(self, expression: Expression) -> bool:
        return any(self.is_softmax(part) for part in expression.walk())

    def undropped(self, expression: Expression) -> tuple[Expression, float]:
        """The expression without its dropout, and the probability of that."""
        inner = bare(expression)
        if isinstance(inner, Apply) and inner.op == "dropout":
            number = inner.arguments[1]
            assert isinstance(number, Constant)
            rest, again = self.undropped(inner.arguments[0])
            if again:
                raise Refused("the probabilities are dropped twice, which is random in a way that no kernel has")
            return rest, float(number.value)
        return expression, 0.0

    def terms(self, expression: Expression) -> list[Term]:
        """The expression as a sum of softmaxes with coefficients."""
        match expression:
            case Load(tensor, _) if tensor in self.anchors:
                return [Term(expression)]
            case Apply("to", (inner,), dtype) if dtype.is_floating_point:
                return self.terms(inner)
            case Apply("add" | "sub" as op, (left, right), _):
                if not (self._holds_softmax(left) and self._holds_softmax(right)):
                    raise Refused("something is added to the probabilities, so they are no softmax over keys")
                other = self.terms(right)
                return self.terms(left) + ([self._times(t, Constant(-1.0)) for t in other] if op == "sub" else other)
            case Apply("neg", (inner,), _):
                return [self._times(term, Constant(-1.0)) for term in self.terms(inner)]
            case Apply("mul", (left, right), _) if self._holds_softmax(left) != self._holds_softmax(right):
                kept, factor = (left, right) if self._holds_softmax(left) else (right, left)
                condition = softmaxes.holds(factor)
                if condition is not None:
                    return self._guarded(kept, condition)
                return [self._times(term, factor) for term in self.terms(kept)]
            case Apply("mul" | "pow", _, _):
                raise Refused(
                    "the coefficient of a softmax depends on the key: multiplied probabilities are no linear combination of softmaxes"
                )
            case Apply("div", (left, right), dtype) if not self._holds_softmax(right):
                return [self._times(term, apply("div", (Constant(1.0), right), dtype)) for term in self.terms(left)]
            case Apply("nan_to_num", (inner, Constant(number)), _) if number == 0:
                return self._guarded(inner, None)
            case Apply("where", (condition, kept, Constant(number)), _) if number == 0 and self._holds_softmax(kept):
                if condition == Apply("logical_not", (Apply("isnan", (kept,), torch.bool),), torch.bool):
                    return self._guarded(kept, None)
                if not self._holds_softmax(condition):
                    return self._guarded(kept, condition)
            case Apply("dropout", _, _):
                raise Refused("dropout stands on a part of the probabilities only, which is random in a way that no kernel has")
        raise Refused("what is done to the probabilities is no linear combination of softmaxes")

    def _guarded(self, expression: Expression, guard: Expression | None) -> list[Term]:
        terms = self.terms(expression)
        if len(terms) > 1:
            raise Refused("a combination of softmaxes is masked again after the softmax")
        terms[0].guards.append(guard)
        return terms

    def _times(self, term: Term, factor: Expression) -> Term:
        if variables(factor) & self.keys:
            raise Refused("the coefficient of a softmax depends on the key")
        held = term.coefficient
        term.coefficient = factor if held is None else apply("mul", (held, factor), torch.float32)
        return term
