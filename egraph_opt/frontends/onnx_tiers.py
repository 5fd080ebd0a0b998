"""What happens to every standard operator, as a table: taken into the algebra, folded, or left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx import defs

from egraph_opt.frontends.onnx_folding import FOLDABLE
from egraph_opt.frontends.onnx_operators import OPERATORS

Tier = Literal["algebraic", "fold only", "opaque"]
# Folded by code of their own.
_SOURCES = frozenset(("Constant", "Shape", "Size"))

_INTRODUCTION = """# Operators

Written by `python -m bench.operators`; a test fails when it is out of date.

Every model that onnxruntime runs is accepted. What the optimizer does with a node depends on its operator:

- **algebraic**: it becomes a term and takes part in the search, if its inputs are float32 tensors of static shape and
  what must be constant (shapes, axes, pads …) is. The last column says what else keeps a node of this operator outside.
- **fold only**: evaluated beforehand when all inputs are constant, within a budget of bytes and evaluations.
- **opaque**: kept as it is, byte for byte, between the regions that are optimized.

Algebraic operators whose inputs are all constant are folded too, where the column *folded* says so. Nodes of other
domains and calls of functions that the model defines are opaque. All versions that onnx defines are covered.
"""


@dataclass(frozen=True)
class Row:
    """One operator: the versions that onnx defines it in, its tier, and when a node of it stays outside the algebra."""

    operator: str
    versions: tuple[int, ...]
    tier: Tier
    folded: bool
    outside: str


def rows() -> list[Row]:
    """All standard operators, algebraic ones first, each tier in the order of the names."""
    versions: dict[str, list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema.since_version)
    found = [_row(operator, tuple(sorted(known))) for operator, known in versions.items()]
    order: Sequence[Tier] = ("algebraic", "fold only", "opaque")
    return sorted(found, key=lambda row: (order.index(row.tier), row.operator))


def _row(operator: str, versions: tuple[int, ...]) -> Row:
    folded = operator in FOLDABLE or operator in _SOURCES
    encoding = OPERATORS.get(operator)
    if encoding is None:
        return Row(operator, versions, "fold only" if folded else "opaque", folded, "")
    return Row(operator, versions, "algebraic", folded, encoding.outside)


def document() -> str:
    """The table with its introduction, in Markdown."""
    found = rows()
    counts = {tier: sum(row.tier == tier for row in found) for tier in ("algebraic", "fold only", "opaque")}
    total = ", ".join(f"{count} {tier}" for tier, count in counts.items())
    lines = [
        _INTRODUCTION,
        f"{len(found)} operators up to opset {defs.onnx_opset_version()}: {total}.",
        "",
        "| operator | versions | tier | folded | stays a node with |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        versions = ", ".join(map(str, row.versions))
        lines.append(f"| {row.operator} | {versions} | {row.tier} | {'yes' if row.folded else ''} | {row.outside} |")
    return "\n".join(lines) + "\n"
