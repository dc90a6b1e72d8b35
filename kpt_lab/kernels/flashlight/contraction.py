"""Contractions of two tensors in one form: matmul, bmm, baddbmm, einsum, linear, and a product that is summed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from kpt_lab.kernels.flashlight.atoms import ONE, ZERO, Variable
from kpt_lab.kernels.flashlight.expression import Expression
from kpt_lab.kernels.flashlight.index import Reader
from kpt_lab.kernels.flashlight.nodes import Arguments, Index, is_tensor, name_of, value

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Contraction:
    """output[labels] = sum over `reduced` of left[labels] · right[labels]; a label names one dimension everywhere."""

    node: fx.Node
    operands: tuple[fx.Node, fx.Node]
    labels: tuple[Labels, Labels]
    output: Labels
    extents: dict[str, Expression]

    @property
    def reduced(self) -> Labels:
        """The labels that are summed over."""
        return tuple(dict.fromkeys(x for labels in self.labels for x in labels if x not in self.output))

    def indices(self, reader: Reader, index: Index, reduction: dict[str, Variable]) -> tuple[Index, Index]:
        """The index into each operand of the term at `index` of the output and at the reduction's variables."""
        places: dict[str, Expression] = {**reduction, **dict(zip(self.output, index, strict=True))}
        left, right = (
            tuple(ZERO if extent == ONE else places[label] for label, extent in zip(labels, reader.shape(operand), strict=True))
            for operand, labels in zip(self.operands, self.labels, strict=True)
        )
        return left, right


def contraction(node: fx.Node, reader: Reader) -> Contraction | None:
    """The contraction that a node computes, or None where it computes something else."""
    name = name_of(node)
    if name == "einsum":
        return _einsum(node, reader)
    if name == "sum":
        return _summed(node, reader)
    if name not in ("matmul", "bmm", "mm", "baddbmm", "addmm", "linear"):
        return None
    a = list(Arguments(node).values.values())
    left, right = a[1:3] if name in ("baddbmm", "addmm") else a[0:2]
    if name == "linear" and a[2] is not None:
        return None
    if not (is_tensor(left) and is_tensor(right)):
        return None
    m, n = value(left).dim(), value(right).dim()
    rank = max(m, n, 2) - 2
    batch = tuple(f"x{i}" for i in range(rank))
    rows = (*batch[rank - max(m - 2, 0) :], *(("m", "r") if m >= 2 else ("r",)))
    if name == "linear":
        columns: Labels = ("n", "r") if n == 2 else ("r",)
    else:
        columns = (*batch[rank - max(n - 2, 0) :], *(("r", "n") if n >= 2 else ("r",)))
    output = (*batch, *(("m",) if m >= 2 else ()), *(("n",) if n >= 2 else ()))
    return _checked(node, (left, right), (rows, columns), output, reader)


def _checked(node: fx.Node, operands: tuple, labels: tuple, output: Labels, reader: Reader) -> Contraction | None:
    extents: dict[str, Expression] = {}
    for operand, names in zip(operands, labels, strict=True):
        if len(names) != len(set(names)) or len(names) != len(reader.shape(operand)):
            return None  # a diagonal
        for label, extent in zip(names, reader.shape(operand), strict=True):
            if extents.get(label, ONE) == ONE:
                extents[label] = extent
    if any(label not in extents for label in output):
        return None
    return Contraction(node, operands, labels, output, extents)


def _einsum(node: fx.Node, reader: Reader) -> Contraction | None:
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, (list, tuple)) or len(operands) != 2:
        return None
    sides, arrow, out = equation.replace(" ", "").partition("->")
    inputs = sides.split(",")
    if len(inputs) != 2:
        return None
    dots = [value(x).dim() - len(s.replace("...", "")) if "..." in s else 0 for s, x in zip(inputs, operands, strict=True)]
    wide = tuple(f".{i}" for i in range(max(dots)))

    def labels(text: str, count: int) -> Labels:
        before, ellipsis, after = text.partition("...")
        return (*before, *(wide[len(wide) - count :] if ellipsis else ()), *after)

    given = tuple(labels(s, count) for s, count in zip(inputs, dots, strict=True))
    if arrow:
        output = labels(out, len(wide))
    else:
        counted = sorted({x for x in (*given[0], *given[1]) if not x.startswith(".")})
        output = (*wide, *(x for x in counted if (given[0] + given[1]).count(x) == 1))
    return _checked(node, tuple(operands), given, output, reader)


def _summed(node: fx.Node, reader: Reader) -> Contraction | None:
    """(x * y).sum(dim) with broadcasting operands."""
    a = Arguments(node)
    source = a.values["self"]
    if name_of(source) not in ("mul", "multiply") or a.get("dim") in (None, []) or a.get("keepdim"):
        return None
    operands = list(Arguments(source).values.values())[:2]
    if not all(is_tensor(x) for x in operands) or operands[0] is operands[1]:
        return None
    rank = value(source).dim()
    gone = {d % rank for d in ([a.dim] if isinstance(a.dim, int) else a.dim)}
    names = tuple(f"x{i}" for i in range(rank))
    labels = tuple(names[rank - value(x).dim() :] for x in operands)
    return _checked(node, tuple(operands), labels, tuple(x for i, x in enumerate(names) if i not in gone), reader)
