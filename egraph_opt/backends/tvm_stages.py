"""Softmaxes and long reductions of a kernel, computed where their leading indices are fixed; no tvm in here."""

from __future__ import annotations

from collections.abc import Callable, Set

from egraph_opt.backends import tvm_tree as tree
from egraph_opt.backends.tvm_tree import Call, Condition, Guard, Loop, Node, Stage

Conditions = tuple[Condition, ...]
Visit = Callable[[Node], Node]


def placed(root: Node, fixed: Set[int], compute: Callable[[Stage, Conditions, Visit], Node]) -> Node:
    """A tree with ``compute(stage, conditions, visit)`` for the stages whose leading iterators are all ``fixed``.

    ``conditions`` are those above the stage that depend on nothing else; ``visit`` does the same inside another tree.
    """
    done: dict[object, Node] = {}

    def visit(node: Node, conditions: Conditions) -> Node:
        key = (id(node), conditions)
        if key in done:
            return done[key]
        found: Node = node
        match node:
            case Guard(more, value, other):
                known = [c for c in more if c.expr.iterators <= fixed]
                found = Guard(more, visit(value, tuple(dict.fromkeys((*conditions, *known)))), other)
            case Stage() if all(e.iterators <= fixed for e in node.lead):
                found = compute(node, conditions, lambda inner: visit(inner, conditions))
            case Loop(operation, iterators, value):
                found = Loop(operation, iterators, visit(value, conditions))
            case Call(function, arguments):
                found = tree.call(function, tuple(visit(a, conditions) for a in arguments))
            case tree.Fold(operation, items):
                found = tree.fold(operation, [visit(item, conditions) for item in items])
        done[key] = found
        return found

    return visit(root, ())
