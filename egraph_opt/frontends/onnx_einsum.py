"""Encoding of Einsum: any number of operands, ellipses, diagonals; pairwise from left to right as runtimes do."""

from __future__ import annotations

from dataclasses import dataclass

from egraph_opt.frontends.onnx_context import NodeContext, OperatorEncoding, require
from egraph_opt.frontends.onnx_windows import Encoded
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.expr import Expr, Extents
from egraph_opt.ir.terms import Reduce, Tensor, View, mul

_ELLIPSIS = "..."
# Einstein sums of more operands stay as they are.
_MOST_OPERANDS = 16


@dataclass(frozen=True)
class _Operand:
    """A tensor with the label of each of its axes; the axes of an ellipsis are labelled by their distance from its
    end."""

    tensor: Tensor
    labels: tuple[str, ...]


def _labels(names: str, ellipsis: int) -> tuple[str, ...]:
    before, dots, after = names.partition(_ELLIPSIS)
    letters = before + after
    require(all(c.isascii() and c.isalpha() for c in letters), "an odd character in the equation")
    inner = tuple(f"...{i}" for i in reversed(range(ellipsis))) if dots else ()
    return (*before, *inner, *after)


def einsum(node: NodeContext) -> Encoded:
    equation, tensors = node.text("equation", "").replace(" ", ""), node.tensors()
    left, arrow, right = equation.partition("->")
    names = left.split(",")
    require(1 <= len(names) == len(tensors) <= _MOST_OPERANDS, "the equation has another number of operands")
    spare = [len(t.extents) - len(n.replace(_ELLIPSIS, "")) for n, t in zip(names, tensors, strict=True)]
    require(all(s >= 0 and (s == 0 or _ELLIPSIS in n) for s, n in zip(spare, names, strict=True)), "another rank")
    covered = max((s for s, n in zip(spare, names, strict=True) if _ELLIPSIS in n), default=0)
    operands = [_Operand(t, _labels(n, s)) for t, n, s in zip(tensors, names, spare, strict=True)]
    if not arrow:
        letters = left.replace(_ELLIPSIS, "")
        once = sorted(c for c in set(letters) - {","} if letters.count(c) == 1)
        right = (_ELLIPSIS if _ELLIPSIS in left else "") + "".join(once)
    result = _labels(right, covered)
    sizes: dict[str, int] = {}
    for operand in operands:
        for label, extent in zip(operand.labels, operand.tensor.extents, strict=True):
            known = sizes.setdefault(label, extent)
            if label.startswith(_ELLIPSIS) and 1 in (known, extent):
                sizes[label] = max(known, extent)
            else:
                require(known == extent, f"{label} has two extents")
    require(len(set(result)) == len(result) and set(result) <= set(sizes), "odd labels of the result")
    current = operands[0]
    if len(operands) == 1:
        return (_contracted((current,), result, sizes),)
    for position, operand in enumerate(operands[1:], 1):
        later = {label for other in operands[position + 1 :] for label in other.labels}
        kept = dict.fromkeys((*current.labels, *operand.labels))
        wanted = result if position == len(operands) - 1 else tuple(k for k in kept if k in later or k in result)
        current = _Operand(_contracted((current, operand), wanted, sizes), wanted)
    return (current.tensor,)


def _contracted(operands: tuple[_Operand, ...], result: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
    present = dict.fromkeys(label for operand in operands for label in operand.labels)
    order = [*result, *(label for label in present if label not in result)]
    product = tuple(sizes[label] for label in order)
    views = [View(o.tensor, maps.index_map(o.tensor.extents, product, _places(o, order, product))) for o in operands]
    whole: Tensor = mul(*views) if len(views) == 2 else views[0]
    return Reduce("sum", whole, len(order) - len(result)) if len(order) > len(result) else whole


def _places(operand: _Operand, order: list[str], product: Extents) -> list[Expr]:
    return [
        Expr(0) if extent == 1 and product[order.index(label)] != 1 else ex.iterator(order.index(label))
        for label, extent in zip(operand.labels, operand.tensor.extents, strict=True)
    ]


EINSUM = OperatorEncoding("Einsum", einsum, 12, outside=f"more than {_MOST_OPERANDS} inputs")
