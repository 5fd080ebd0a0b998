"""What rule instances say about ground terms: each becomes an equation between terms that stand for its classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice, product

from egraph_opt.egraph import primitives
from egraph_opt.egraph.closure import Closure, Equation
from egraph_opt.egraph.ground import Terms, rebuilt
from egraph_opt.egraph.instances import Instance, Instances, Skeleton, arguments
from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.pattern import Constant, Node, Variable
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.ir.program import Program
from egraph_opt.limits import Check, unlimited

# Rounds in which instances are used on the parts of classes.
ROUNDS = 8
# Ways to use an instance on the parts of its classes.
COMBINATIONS = 16


class Vocabulary:
    """Ground terms and the classes of a snapshot they belong to; ``named`` gives the terms of the program's tensors."""

    def __init__(self, snapshot: Snapshot, program: Program, rules: Iterable[Rule], check: Check = unlimited) -> None:
        """``check`` is called again and again and may raise to end it."""
        self.snapshot = snapshot
        self.check = check
        self.terms = Terms()
        self.rules = list(rules)
        recovered = Instances(snapshot, self.rules, check)
        self.owner = recovered.owner
        self.instances = recovered.all()
        self.named: dict[str, int] = {}
        for source in program.inputs:
            self.named[source.name] = self.terms.held(self.terms.encode(source, {}))
        for name, term in program.definitions:
            self.named[name] = self.terms.encode(term, self.named)
        self._forms: dict[int, ENode] = {}
        self._classes: dict[int, int] = {}
        self._others: dict[int, dict[int, None]] = {}
        self._flattest: dict[int, int] = {}
        # What stands for a class that the program itself has a term of, and the e-nodes it is made of.
        self.program_terms: dict[int, int] = {}
        self.program_forms: set[ENode] = set()
        for number, node in enumerate(list(self.terms.nodes)):
            owner = self.owner_of(number)
            if owner is not None:
                self.program_terms.setdefault(owner, number)
                children = [self.owner_of(child) for child in node.children]
                self.program_forms.add(rebuilt(node, [child for child in children if child is not None]))

    def owner_of(self, number: int) -> int | None:
        """The snapshot's class of a term, None where it is not in the snapshot."""
        if number not in self._classes:
            node = self.terms.nodes[number]
            children = [self.owner_of(child) for child in node.children]
            found = -1
            if all(child is not None for child in children):
                found = self.owner.get(rebuilt(node, [c for c in children if c is not None]), -1)
            self._classes[number] = found
        found = self._classes[number]
        return None if found < 0 else found

    def form(self, skeleton: Skeleton) -> ENode:
        """The e-node of a skeleton."""
        # Instances keep their skeletons alive, and there are many of them.
        found = self._forms.get(id(skeleton))
        if found is None:
            found = self._forms[id(skeleton)] = ENode(
                skeleton.constructor,
                tuple(self.owner.get(self.form(a), -1) if isinstance(a, Skeleton) else a for a in skeleton.arguments),
            )
        return found

    def belongs(self, number: int, owner: int) -> None:
        """A term is of a class, too: it stands there for one that is the same memory."""
        if self.owner_of(number) is None:
            self._classes[number] = owner
        elif self.owner_of(number) != owner:
            self._others.setdefault(number, {})[owner] = None

    def owners(self, number: int) -> Iterator[int]:
        """All classes of a term."""
        owner = self.owner_of(number)
        if owner is not None:
            yield owner
        yield from self._others.get(number, ())

    def flattest(self, owner: int) -> int:
        """The flattest term of a class."""
        if owner not in self._flattest:
            # The first e-node is the flattest, so this comes to an end.
            node = self.snapshot.classes[owner][0]
            parts = [self.flattest(child) for child in node.children]
            self._flattest[owner] = self.terms.add(rebuilt(node, parts))
        return self._flattest[owner]


class Theory:
    """The closure of some instances, over terms that stand for the classes."""

    def __init__(self, known: Vocabulary, instances: Sequence[Instance], opaque: Set[int] = frozenset()) -> None:
        self.known = known
        self.terms = known.terms
        self.closure = Closure(known.terms, opaque, known.check)
        self.instances = list(instances)
        self.rounds = 0
        self._spread_on: set[tuple[int, ...]] = set()
        self._standing: dict[int, int] = {}
        self._available: set[ENode] = set()
        self._met: set[int] = set()
        pending = list(range(len(self.instances)))
        while pending:
            late = [n for n in pending if not self._ready(self.instances[n].left)]
            # Those that need what no other makes come last, all together.
            now = pending if len(late) == len(pending) else sorted(set(pending) - set(late))
            for number in now:
                self._assume(number)
            pending = [] if now is pending else late

    def equal(self, one: int, other: int, rounds: int = ROUNDS) -> bool:
        """Whether these instances make two terms equal, after so many rounds of spreading at most."""
        while not self.closure.equal(one, other):
            if self.rounds >= rounds:
                return False
            self.rounds += 1
            if not self._spread() and not self._cancel():
                return False
        return True

    def used(self, one: int, other: int) -> list[Instance]:
        """The instances an explanation rests on, in their order here."""
        numbers = {equation.instance for equation in self.closure.used(one, other)}
        return [instance for number, instance in enumerate(self.instances) if number in numbers]

    def _ready(self, skeleton: Skeleton) -> bool:
        form = self.known.form(skeleton)
        return (form in self._available or form in self.known.program_forms) and all(
            self._ready(argument) for argument in skeleton.arguments if isinstance(argument, Skeleton)
        )

    def _assume(self, number: int, standing: Mapping[int, int] | None = None) -> bool:
        """Take an instance for true, over these terms for its classes; whether that was new."""
        self.known.check()
        instance = self.instances[number]
        left = self._ground(instance.left, standing)
        right = self._ground(instance.right, standing)
        new = not self.closure.equal(left, right)
        if new:
            self.closure.merge(Equation(instance.rule, instance.group, left, right, number))
        return new

    def _spread(self) -> bool:
        """Use instances on the parts of classes that are not known to be equal yet; whether it helped."""
        parts: dict[int, dict[int, int]] = {}
        for number in self.closure.known():
            for owner in self.known.owners(number):
                parts.setdefault(owner, {}).setdefault(self.closure.find(number), number)
        split = {owner: list(found.values()) for owner, found in parts.items() if len(found) > 1}
        changed = False
        for number, instance in enumerate(self.instances):
            classes = [owner for owner in _leaves(instance.left) if owner in split]
            for chosen in islice(product(*(split[owner] for owner in classes)), COMBINATIONS):
                key = (number, *chosen)
                if classes and key not in self._spread_on:
                    self._spread_on.add(key)
                    changed |= self._assume(number, dict(zip(classes, chosen, strict=True)))
        return changed

    def _ground(self, skeleton: Skeleton | int, standing: Mapping[int, int] | None = None) -> int:
        if isinstance(skeleton, int):
            return standing[skeleton] if standing and skeleton in standing else self._standing_for(skeleton)
        parts: list[int | str] = []
        for argument, is_term in arguments(skeleton):
            if is_term:
                assert not isinstance(argument, str)
                parts.append(self._ground(argument, standing))
            else:
                assert not isinstance(argument, Skeleton)
                parts.append(argument)
        found = self.terms.add(ENode(skeleton.constructor, tuple(parts)))
        form = self.known.form(skeleton)
        if form not in self._available:
            self._available.add(form)
            if form in self.known.owner:
                self._standing.setdefault(self.known.owner[form], found)
                self.known.belongs(found, self.known.owner[form])
        self._introduce(found)
        return found

    def _introduce(self, number: int) -> None:
        """The first term met of a class stands for it."""
        pending = [number]
        while pending:
            current = pending.pop()
            if current in self._met:
                continue
            self._met.add(current)
            owner = self.known.owner_of(current)
            node = self.terms.nodes[current]
            children = [self.known.owner_of(child) for child in node.children]
            if owner is not None and None not in children:
                form = rebuilt(node, [child for child in children if child is not None])
                self._standing.setdefault(owner, current)
                self._available.add(form)
            if current not in self.closure.opaque:
                pending += node.children
        self.closure.know(number)

    def _standing_for(self, owner: int) -> int:
        if owner not in self._standing and owner in self.known.program_terms:
            self._introduce(self.known.program_terms[owner])
            self._standing[owner] = self.known.program_terms[owner]
        if owner not in self._standing:
            if self.known.snapshot.sorts[owner] in ("Tensor", "Buffer"):
                other = self._holder(owner)
                if other is not None:
                    return self._standing.setdefault(owner, self.terms.held(other))
            # The first e-node is the flattest, so this comes to an end.
            node = self.known.snapshot.classes[owner][0]
            number = self.terms.add(rebuilt(node, [self._standing_for(child) for child in node.children]))
            self.closure.know(number)
            self._standing.setdefault(owner, number)
        return self._standing[owner]

    def _holder(self, owner: int) -> int | None:
        """What stands for the tensor in a buffer or the buffer of a tensor."""
        tensor = self.known.snapshot.sorts[owner] == "Tensor"
        other = self.known.owner.get(ENode("Compute" if tensor else "Read", (owner,)))
        return None if other is None else self._standing.get(other)

    def _cancel(self) -> bool:
        """Rules by which parts of equal terms are equal; whether they said anything new."""
        changed = False
        again = True
        while again:
            again = False
            for rule in self.known.rules:
                if rule.united is not None and rule.beside is not None:
                    again = self._cancelled(rule, rule.left, rule.beside, rule.united) or again
            changed = changed or again
        return changed

    def _cancelled(self, rule: Rule, left: Node, beside: Node, united: tuple[Variable, Variable]) -> bool:
        buckets: dict[tuple[int, tuple[int | str, ...]], list[int]] = {}
        for number in self.closure.known():
            node = self.terms.nodes[number]
            if node.constructor == left.constructor == beside.constructor:
                literals = tuple(a for a, is_term in arguments(node) if not is_term and not isinstance(a, Skeleton))
                buckets.setdefault((self.closure.find(number), literals), []).append(number)
        found = False
        for members in buckets.values():
            for other in members[1:]:
                one = self._bound(left, members[0], {})
                both = None if one is None else self._bound(beside, other, one)
                if both is None or not all(variable.name in both for variable in rule.asked):
                    continue
                x, y = (int(both[variable.name]) for variable in united)
                if self.closure.equal(x, y) or not primitives.answers(rule, tuple(both[v.name] for v in rule.asked)):
                    continue
                self.closure.merge(Equation(rule.name, rule.group, x, y, premise=(members[0], other)))
                found = True
        return found

    def _bound(self, pattern: Node, number: int, bound: Mapping[str, int | str]) -> dict[str, int | str] | None:
        """What a flat pattern binds at a term; None where it does not match."""
        result = dict(bound)
        for inner, (argument, is_term) in zip(pattern.arguments, arguments(self.terms.nodes[number]), strict=True):
            assert not isinstance(argument, Skeleton)
            match inner:
                case Constant(_, value):
                    if value != argument:
                        return None
                case Variable(_, name, _):
                    known = result.setdefault(name, argument)
                    if known != argument and not (is_term and self.closure.equal(int(known), int(argument))):
                        return None
                case _:
                    return None
        return result


def _leaves(skeleton: Skeleton) -> dict[int, None]:
    """The classes a skeleton is written over."""
    found: dict[int, None] = {}
    for argument, is_term in arguments(skeleton):
        if isinstance(argument, Skeleton):
            found |= _leaves(argument)
        elif is_term:
            found[int(argument)] = None
    return found
