"""What the e-graph knows of every class when some rule asks for it: extents, and whether it depends on weights only."""

from __future__ import annotations

from egraph_opt.egraph import primitives
from egraph_opt.egraph.compiler import Question, Row
from egraph_opt.egraph.language import Rule, variables
from egraph_opt.egraph.pattern import format_extents, parse_extents


def _map_extents(arguments: Row) -> list[Row]:
    return [(format_extents(primitives.map_of(str(arguments[0])).result),)]


def _fewer(arguments: Row) -> list[Row]:
    extents = parse_extents(str(arguments[0]))
    return [(format_extents(extents[: len(extents) - int(arguments[1])]),)]


_EXTENTS = """
(function TensorExtents (Tensor) String :merge old)
(function BufferExtents (Buffer) String :merge old)
(relation ask-map (String)) (relation ask-map! (String String))
(relation ask-fewer (String i64)) (relation ask-fewer! (String i64 String))
(rule ((View x m)) ((ask-map m)) :ruleset extents-find)
(rule ((Sum x k) (= e (TensorExtents x))) ((ask-fewer e k)) :ruleset extents-find)
(rule ((Reduce f x k) (= e (TensorExtents x))) ((ask-fewer e k)) :ruleset extents-find)
(rule ((ask-map m)) ((delete (ask-map m))) :ruleset extents-forget)
(rule ((ask-fewer e k)) ((delete (ask-fewer e k))) :ruleset extents-forget)
(rule ((= t (View x m)) (ask-map! m e)) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Sum x k)) (= e (TensorExtents x)) (ask-fewer! e k f)) ((set (TensorExtents t) f)) :ruleset extents)
(rule ((= t (Reduce o x k)) (= e (TensorExtents x)) (ask-fewer! e k f)) ((set (TensorExtents t) f)) :ruleset extents)
(rule ((= t (Mul x y)) (= e (TensorExtents x))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Add x y)) (= e (TensorExtents x))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Apply1 f x)) (= e (TensorExtents x))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Apply2 f x y)) (= e (TensorExtents x))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Softmax x k)) (= e (TensorExtents x))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Fill v e))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= t (Read b)) (= e (BufferExtents b))) ((set (TensorExtents t) e)) :ruleset extents)
(rule ((= b (Compute t)) (= e (TensorExtents t))) ((set (BufferExtents b) e)) :ruleset extents)
(rule ((= b (Source n e k))) ((set (BufferExtents b) e)) :ruleset extents)
(rule ((= b (Call o a l e))) ((set (BufferExtents b) e)) :ruleset extents)
(rule ((= b (Reshape c e))) ((set (BufferExtents b) e)) :ruleset extents)
"""

_CONSTANT = """
(relation ConstantTensor (Tensor)) (relation ConstantBuffer (Buffer)) (relation ConstantArgs (Args))
(rule ((= b (Source n e "constant"))) ((ConstantBuffer b)) :ruleset constant)
(rule ((= b (Compute t)) (ConstantTensor t)) ((ConstantBuffer b)) :ruleset constant)
(rule ((= b (Reshape c e)) (ConstantBuffer c)) ((ConstantBuffer b)) :ruleset constant)
(rule ((= b (Call o a l e)) (ConstantArgs l)) ((ConstantBuffer b)) :ruleset constant)
(rule ((= l (Nil))) ((ConstantArgs l)) :ruleset constant)
(rule ((= l (Cons b r)) (ConstantBuffer b) (ConstantArgs r)) ((ConstantArgs l)) :ruleset constant)
(rule ((= t (Read b)) (ConstantBuffer b)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Fill v e))) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (View x m)) (ConstantTensor x)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Sum x k)) (ConstantTensor x)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Reduce o x k)) (ConstantTensor x)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Softmax x k)) (ConstantTensor x)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Mul x y)) (ConstantTensor x) (ConstantTensor y)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Add x y)) (ConstantTensor x) (ConstantTensor y)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Apply1 f x)) (ConstantTensor x)) ((ConstantTensor t)) :ruleset constant)
(rule ((= t (Apply2 f x y)) (ConstantTensor x) (ConstantTensor y)) ((ConstantTensor t)) :ruleset constant)
"""

TEXTS = {"extents": _EXTENTS, "constant": _CONSTANT}


def questions(analysis: str) -> list[Question]:
    """What an analysis asks Python."""
    return [Question("ask-map", _map_extents), Question("ask-fewer", _fewer)] if analysis == "extents" else []


def wanted(rule: Rule) -> set[str]:
    """The analyses that a rule's conditions and right-hand sides use."""
    extents = any(v.tensor is not None for side in rule.sides for v in variables(side))
    return ({"extents"} if extents else set()) | {fact.name for fact in rule.facts}
