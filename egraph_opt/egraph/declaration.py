"""What can be known to be wrong about a rule when it is declared: unbound variables, sorts, kinds and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from egraph_opt.egraph.pattern import (
    CONSTRUCTORS,
    Constant,
    Each,
    Fact,
    Field,
    Node,
    Pattern,
    Variable,
    fields,
    parts,
    variables,
)
from egraph_opt.errors import EgraphOptError

if TYPE_CHECKING:
    from egraph_opt.egraph.language import Rule

# What each argument is called, and the kind of the texts among them.
_ARGUMENTS = {
    "Read": (("a buffer", None),),
    "View": (("a tensor", None), ("an index map", "map")),
    "Sum": (("a tensor", None), ("a number of axes", "integer")),
    "Reduce": (("a reduction", "text"), ("a tensor", None), ("a number of axes", "integer")),
    "Mul": (("a tensor", None), ("a tensor", None)),
    "Add": (("a tensor", None), ("a tensor", None)),
    "Apply1": (("a scalar function", "text"), ("a tensor", None)),
    "Apply2": (("a scalar function", "text"), ("a tensor", None), ("a tensor", None)),
    "Softmax": (("a tensor", None), ("a number of axes", "integer")),
    "Fill": (("a value", "text"), ("extents", "extents")),
    "Call": (("an operator", "text"), ("attributes", "text"), ("arguments", None), ("extents", "extents")),
    "Compute": (("a tensor", None),),
    "Reshape": (("a buffer", None), ("extents", "extents")),
    "Nil": (),
    "Cons": (("a buffer", None), ("arguments", None)),
    "+": (("a number", "integer"), ("a number", "integer")),
}
_ANNOTATION = {
    ("Tensor", None): "TensorVar",
    ("Buffer", None): "BufferVar",
    ("Args", None): "ArgsVar",
    ("String", "map"): "MapVar",
    ("String", "text"): "TextVar",
    ("String", "extents"): "ExtentsVar",
    ("i64", "integer"): "IntVar",
}


def check(rule: Rule) -> None:
    """Raise EgraphOptError, naming the rule, the variable and the fix, where a rule cannot be right."""
    _check_conditions(rule)
    found: Sequence[object] = rule.matched
    for left in found:
        if not isinstance(left, Node):
            _refuse(rule.name, f"the left-hand side is {_shown(left)}, which matches everything; write a term")
    matched = rule.matched
    rights = [rule.right, *(right for _, right in rule.more)]
    for side in (*matched, *rights):
        if not isinstance(side, Pattern):
            _refuse(rule.name, f"{side!r} is not a term; both sides are written with pattern variables")
        _check_sorts(rule.name, side)
    for side in matched:
        _check_matchable(rule.name, side)
    _check_bound(rule, matched)
    computed = list(dict.fromkeys(each for right in rights for each in fields(right)))
    if len(computed) > 1:
        _refuse(rule.name, f"the right-hand side uses {len(computed)} each() values; combine them into one function")
    for left, right in ((rule.left, rule.right), *rule.more):
        if left.sort != right.sort:
            _refuse(rule.name, f"a {left.sort} becomes a {right.sort}; use .read() or .compute() to go between them")
        if not rule.given:  # conditions may make ranks agree
            _check_ranks(rule.name, left, right)


def check_term(name: str, term: object) -> None:
    """Raise EgraphOptError where something is not a term that a function of the rule may build."""
    if not isinstance(term, Pattern):
        _refuse(name, f"{term!r} is not a term; write it with the variables of the members")
    _check_sorts(name, term)


def check_both_ways(name: str, left: Pattern, right: Pattern) -> None:
    """Raise EgraphOptError where an equation cannot be used from right to left."""
    if not isinstance(right, Node):
        _refuse(name, "the right-hand side is no term that can be found; use becomes() for one direction")
    if fields(right):
        _refuse(name, "the right-hand side computes each() values, which cannot be matched; use becomes()")
    for one, other, side in ((left, right, "right"), (right, left, "left")):
        missing = {v.name for v in variables(one)} - {v.name for v in variables(other)}
        if missing:
            _refuse(name, f"variable {min(missing)!r} does not occur on the {side}-hand side; use becomes()")


def _refuse(name: str, problem: str) -> NoReturn:
    raise EgraphOptError(f"rule {name!r}: {problem}")


def _check_conditions(rule: Rule) -> None:
    given: Sequence[object] = rule.given
    for condition in given:
        if not isinstance(condition, Each | Fact):
            name = getattr(condition, "__name__", repr(condition))
            _refuse(rule.name, f"given has {name}, which is no condition; write holds({name}, …) or constant(…)")
        if isinstance(condition, Fact) and condition.variable.sort not in ("Tensor", "Buffer"):
            _refuse(rule.name, f"constant({condition.variable.name}) asks about a tensor or buffer; this is none")
    kinds: dict[tuple[Each, int], str] = {}
    for side in (rule.right, *(right for _, right in rule.more)):
        for part in parts(side):
            if isinstance(part, Field) and kinds.setdefault((part.call, part.index), part.kind) != part.kind:
                _refuse(rule.name, f"{_shown(part)} is used both as .{kinds[part.call, part.index]} and .{part.kind}")
    for each in rule.calls:
        for argument in each.arguments:
            if isinstance(argument, Variable) and argument.kind is None:
                _refuse(
                    rule.name,
                    f"{argument.name!r} is passed to a Python function, which cannot see tensors; pass"
                    f" {argument.name}.extents",
                )


def _check_bound(rule: Rule, matched: Sequence[Pattern]) -> None:
    bound = {variable.name for side in matched for variable in variables(side)}
    used: Iterator[Variable] = (v for side in rule.sides for v in variables(side))
    conditions = (fact.variable for fact in rule.facts)
    for variable in (*used, *conditions, *rule.sharing, *(rule.united or ())):
        origin = variable.tensor or variable
        if origin.name not in bound:
            _refuse(
                rule.name,
                f"variable {origin.name!r} is not bound by the left-hand side; use it there or compute it with each()",
            )


def _check_matchable(name: str, side: Pattern) -> None:
    for part in parts(side):
        if isinstance(part, Field):
            _refuse(name, "the left-hand side uses an each() value; it can only be computed from what was matched")
        if isinstance(part, Variable) and part.tensor is not None:
            _refuse(name, f"{part.tensor.name}.extents cannot be matched; use it in given=[holds(…)] or on the right")
        if isinstance(part, Node) and part.constructor == "+":
            _refuse(name, "the left-hand side adds numbers; match a variable and compute with each()")


def _check_sorts(name: str, side: Pattern) -> None:
    for part in parts(side):
        if not isinstance(part, Node):
            continue
        if part.constructor not in _ARGUMENTS:
            known = "one or two" if part.constructor.startswith("Apply") else "other"
            _refuse(name, f"{part.constructor} is no constructor; scalar functions take {known} arguments")
        wanted = CONSTRUCTORS[part.constructor][0] if part.constructor != "+" else ("i64", "i64")
        for argument, sort, (meaning, kind) in zip(part.arguments, wanted, _ARGUMENTS[part.constructor], strict=True):
            found = getattr(argument, "sort", None)
            actual = getattr(argument, "kind", None) if not isinstance(argument, Constant | Node) else kind
            if found == sort and (kind is None or actual == kind):
                continue
            title = part.constructor.lower().rstrip("12")
            _refuse(name, f"{title} takes {meaning}, not {_shown(argument)}{_fix(argument, sort, kind)}")


def _shown(argument: object) -> str:
    match argument:
        case Variable(_, name, _):
            return f"{name!r}"
        case Field(_, Each(function), index):
            return f"field {index} of {getattr(function, '__name__', 'each()')}"
        case Node(_, constructor, _):
            return f"a {constructor.lower()}"
    return repr(argument)


def _fix(argument: object, sort: str, kind: str | None) -> str:
    if isinstance(argument, Variable) and (sort, kind) in _ANNOTATION:
        return f"; annotate it {_ANNOTATION[sort, kind]}"
    if isinstance(argument, Field) and kind is not None:
        return f"; name the field with .{kind}(…)"
    if getattr(argument, "sort", None) == "Tensor" and sort == "Buffer":
        return "; .compute() makes it a buffer"
    if getattr(argument, "sort", None) == "Buffer" and sort == "Tensor":
        return "; .read() makes it a tensor"
    return ""


# A rank as a sum of symbols and a constant (under the key "").
_Rank = Counter[str]


def _check_ranks(name: str, left: Pattern, right: Pattern) -> None:
    """Ranks must be able to agree: between the sides, and between the operands of every pointwise function."""
    for side in (left, right):
        for part in parts(side):
            if isinstance(part, Node) and part.constructor in ("Mul", "Add", "Apply2"):
                one, other = part.arguments[-2:]
                _compare(name, f"the operands of {part.constructor.lower().rstrip('12')}", one, other)
    if left.sort == "Tensor":
        _compare(name, "the two sides", left, right)


def _compare(name: str, what: str, one: Pattern, other: Pattern) -> None:
    difference = _rank(one)
    difference.subtract(_rank(other))
    symbols = {symbol: number for symbol, number in difference.items() if number}
    if symbols and all(symbol == "" or symbol.startswith("number ") for symbol in symbols):
        shown = " + ".join(
            str(number) if not symbol else f"{number}*{symbol.removeprefix('number ')}"
            for symbol, number in sorted(symbols.items())
        )
        _refuse(name, f"{what} can never have the same shape: their ranks differ by {shown}")


def _rank(pattern: Pattern) -> _Rank:
    match pattern:
        case Node(_, "View", (_, index)):
            return Counter({f"map {_shown(index)}": 1})
        case Node(_, "Sum" | "Softmax", (inner, count)):
            rank = _rank(inner)
            if pattern.constructor == "Sum":
                rank.subtract(_number(count))
            return rank
        case Node(_, "Reduce", (_, inner, count)):
            rank = _rank(inner)
            rank.subtract(_number(count))
            return rank
        case Node(_, "Mul" | "Add", (first, _)) | Node(_, "Apply1", (_, first)) | Node(_, "Apply2", (_, first, _)):
            return _rank(first)
        case Node(_, "Read" | "Compute", (inner,)):
            return _rank(inner)
        case Node(_, "Fill" | "Reshape", (_, extents)) | Node(_, "Call", (_, _, _, extents)):
            return _extents_rank(extents)
        case Variable(_, name):
            return Counter({f"rank of {name}": 1})
    return Counter({f"unknown {pattern!r}": 1})


def _extents_rank(extents: Pattern) -> _Rank:
    match extents:
        case Constant(_, value):
            return Counter({"": len(str(value).split(",")) if value else 0})
        case Variable(tensor=Variable(name=name)):
            return Counter({f"rank of {name}": 1})
    return Counter({f"extents {_shown(extents)}": 1})


def _number(count: Pattern) -> _Rank:
    match count:
        case Constant(_, value):
            return Counter({"": int(value)})
        case Node(_, "+", (one, other)):
            total = _number(one)
            total.update(_number(other))
            return total
        case Variable(_, name):
            return Counter({f"number {name}": 1})
    return Counter({f"computed {count!r}": 1})
