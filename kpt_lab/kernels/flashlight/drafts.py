"""What a proof of an attention is made of while it grows, and why it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from kpt_lab.kernels.flashlight.atoms import Product, Variable
from kpt_lab.kernels.flashlight.contraction import Contraction
from kpt_lab.kernels.flashlight.expression import (
    Attention,
    Coordinate,
    Expression,
    Load,
    Part,
    replace,
)
from kpt_lab.kernels.flashlight.nodes import Index, name_of


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
