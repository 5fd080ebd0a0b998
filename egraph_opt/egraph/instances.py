"""Which instance of which rule made two e-nodes equal: recovered from the record of derivations.

The record names the rule and the two e-nodes. Matching the rule's left-hand side at the first one again and looking its
right-hand side up in the snapshot gives the whole instance back, inner terms included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from egraph_opt.egraph import primitives
from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.pattern import (
    CONSTRUCTORS,
    Constant,
    Each,
    Field,
    Node,
    Pattern,
    Variable,
    format_extents,
    variables,
)
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.limits import Check, unlimited

TERMS = ("Tensor", "Buffer", "Args")
# Matches of one rule at one e-node that are looked through; the instance counts as found by its e-nodes beyond.
MATCHES = 20_000

Bound = Mapping[str, int | str]


@dataclass(frozen=True)
class Skeleton:
    """A term with classes for leaves: an argument is a literal, a class id or a skeleton, as the sort tells."""

    constructor: str
    arguments: tuple[int | str | Skeleton, ...]


@dataclass(frozen=True)
class Instance:
    """``left`` became equal to ``right`` by a rule, both terms over classes; a class alone stands for any term of it.

    ``exact`` is False where only the outermost e-nodes are known.
    """

    rule: str
    group: str
    left: Skeleton
    right: Skeleton | int
    exact: bool = True


# For every constructor which of its arguments are terms.
_ARE_TERMS = {name: tuple(sort in TERMS for sort in sorts) for name, (sorts, _) in CONSTRUCTORS.items()}


def arguments(node: ENode | Skeleton) -> Iterator[tuple[int | str | Skeleton, bool]]:
    """The arguments of an e-node and whether they are terms."""
    return zip(node.arguments, _ARE_TERMS[node.constructor], strict=True)


class Instances:
    """Recovers the instances behind a snapshot's derivations, given all rules that may have run."""

    def __init__(self, snapshot: Snapshot, rules: Iterable[Rule], check: Check = unlimited) -> None:
        """``check`` is called again and again and may raise to end it."""
        self.snapshot = snapshot
        self.check = check
        self.owner = {node: owner for owner, nodes in snapshot.classes.items() for node in nodes}
        self.rules: dict[str, list[Rule]] = {}
        for rule in rules:
            self.rules.setdefault(rule.name, []).append(rule)
        self._by_constructor: dict[tuple[int, str], list[ENode]] = {}
        self._everywhere: dict[str, list[ENode]] = {}
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                self._by_constructor.setdefault((owner, node.constructor), []).append(node)
                self._everywhere.setdefault(node.constructor, []).append(node)
        self._matches: dict[tuple[Node, ENode], list[tuple[dict[str, int | str], Skeleton]]] = {}

    def all(self) -> list[Instance]:
        """Every instance, each once, in an order that depends on the terms alone."""
        found = dict.fromkeys(self._collapses())
        wanted: dict[tuple[str, ENode], set[ENode]] = {}
        for derivation in self.snapshot.derivations:
            one, other = self.owner.get(derivation.origin), self.owner.get(derivation.result)
            if one is not None and one == other and derivation.origin != derivation.result:
                wanted.setdefault((derivation.rule, derivation.origin), set()).add(derivation.result)
        order = {node: number for number, node in enumerate(self.owner)}
        for rule, origin in sorted(wanted, key=lambda key: (order[key[1]], key[0])):
            self.check()
            results = wanted[rule, origin]
            recovered = list(self._recovered(rule, origin, results))
            found.update(dict.fromkeys(recovered))
            seen = {self._node(part) for instance in recovered for part in _parts(instance.right)}
            group = next((r.group for r in self.rules.get(rule, ())), "")
            left, exact = self._member(rule, origin)
            for result in sorted(results - seen, key=order.__getitem__):
                found[Instance(rule, group, left, _skeleton(result), exact)] = None
        return list(found)

    def _member(self, name: str, origin: ENode) -> tuple[Skeleton, bool]:
        """The left-hand side where the right-hand side is known by its outermost e-node only.

        For the rules that combine all their matches that is all there is to know.
        """
        for rule in self.rules.get(name, ()):
            if rule.combine is not None:
                for _, skeleton in self.matches(rule.left, origin):
                    return skeleton, True
        return _skeleton(origin), False

    def _recovered(self, name: str, origin: ENode, results: set[ENode]) -> Iterator[Instance]:
        for rule in self.rules.get(name, ()):
            if rule.combine is not None or rule.united is not None:
                continue
            for left, right in ((rule.left, rule.right), *rule.more):
                if left.constructor != origin.constructor:
                    continue
                others = [node for node, _ in ((rule.left, rule.right), *rule.more) if node is not left]
                for bound, skeleton in self.matches(left, origin):
                    for full in self._beside(others, bound):
                        for built in self._built(rule, right, full):
                            if isinstance(built, Skeleton) and self._node(built) in results:
                                yield Instance(rule.name, rule.group, skeleton, built)

    def _beside(self, patterns: list[Node], bound: dict[str, int | str]) -> Iterator[dict[str, int | str]]:
        """All ways in which further terms match somewhere, given what is bound already."""
        if not patterns:
            yield bound
            return
        for node in self._everywhere.get(patterns[0].constructor, ()):
            for more, _ in self._match(patterns[0], node, bound):
                yield from self._beside(patterns[1:], more)

    def _collapses(self) -> Iterator[Instance]:
        """Instances of the rules whose right-hand side is a variable: nothing new was made, so nothing is on record."""
        for rules in self.rules.values():
            for rule in rules:
                if not isinstance(rule.right, Variable) or rule.united is not None or rule.combine is not None:
                    continue
                for node in self._everywhere.get(rule.left.constructor, ()):
                    for bound, skeleton in self.matches(rule.left, node):
                        owner = bound[rule.right.name]
                        if owner == self.owner[node] and any(True for _ in self._built(rule, rule.right, bound)):
                            yield Instance(rule.name, rule.group, skeleton, int(owner))

    def matches(self, pattern: Node, node: ENode) -> list[tuple[dict[str, int | str], Skeleton]]:
        """What a pattern binds at an e-node, and the e-nodes it finds there."""
        key = (pattern, node)
        if key not in self._matches:
            self._matches[key] = list(self._match(pattern, node, {}))
        return self._matches[key]

    def _match(
        self, pattern: Node, node: ENode, bound: dict[str, int | str]
    ) -> list[tuple[dict[str, int | str], Skeleton]]:
        if pattern.constructor != node.constructor:
            return []
        states: list[tuple[dict[str, int | str], tuple[int | str | Skeleton, ...]]] = [(bound, ())]
        for inner, argument in zip(pattern.arguments, node.arguments, strict=True):
            following: list[tuple[dict[str, int | str], tuple[int | str | Skeleton, ...]]] = []
            for known, done in states:
                match inner:
                    case Variable(_, name, _) if known.get(name, argument) == argument:
                        following.append(({**known, name: argument}, (*done, argument)))
                    case Constant(_, value) if value == argument:
                        following.append((known, (*done, argument)))
                    case Node(_, constructor, _):
                        for below in self._by_constructor.get((int(argument), constructor), ()):
                            following += [(more, (*done, s)) for more, s in self._match(inner, below, known)]
                if len(following) > MATCHES:
                    break
            states = following
        return [(known, Skeleton(node.constructor, done)) for known, done in states]

    def _built(self, rule: Rule, right: Pattern, bound: Bound) -> Iterator[Skeleton | int | str]:
        """The right-hand side of every firing with these bindings, where all of it is in the snapshot."""
        bound = self._with_extents(rule, bound)
        if any(variable.name not in bound for variable in rule.asked):
            return
        for answer in primitives.answers(rule, tuple(bound[variable.name] for variable in rule.asked)):
            answered = dict(zip(rule.answered, answer, strict=True))
            built = self._build(right, bound, answered)
            if built is not None:
                yield built

    def _with_extents(self, rule: Rule, bound: Bound) -> Bound:
        sides: tuple[Pattern | Each, ...] = (rule.right, *(right for _, right in rule.more), *rule.calls)
        extents = {
            v.name: format_extents(self.snapshot.extents[int(bound[v.tensor.name])])
            for side in sides
            for v in variables(side)
            if v.tensor is not None and v.tensor.name in bound
        }
        return {**bound, **extents} if extents else bound

    def _build(
        self, pattern: Pattern, bound: Bound, answered: Mapping[Field, int | str]
    ) -> Skeleton | int | str | None:
        match pattern:
            case Variable(_, name, _):
                return bound.get(name)
            case Constant(_, value):
                return value
            case Field():
                return answered[pattern]
            case Node(_, "+", operands):
                numbers = [self._build(operand, bound, answered) for operand in operands]
                return sum(number for number in numbers if isinstance(number, int))
            case Node(_, constructor, inner):
                built = [self._build(argument, bound, answered) for argument in inner]
                if any(part is None for part in built):
                    return None
                found = Skeleton(constructor, tuple(part for part in built if part is not None))
                return found if self._node(found) in self.owner else None
        return None

    def _node(self, skeleton: Skeleton) -> ENode:
        """The e-node of a skeleton; an e-node that is not there where some part of it is not."""
        return ENode(
            skeleton.constructor,
            tuple(
                self.owner.get(self._node(argument), -1) if isinstance(argument, Skeleton) else argument
                for argument in skeleton.arguments
            ),
        )


def _skeleton(node: ENode) -> Skeleton:
    return Skeleton(node.constructor, node.arguments)


def _parts(skeleton: Skeleton | int) -> Iterator[Skeleton]:
    if isinstance(skeleton, Skeleton):
        yield skeleton
        for argument, is_term in arguments(skeleton):
            if is_term and isinstance(argument, Skeleton):
                yield from _parts(argument)
