"""The programs between the original and the plan as lists of named lines, the same names for the same things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from egraph_opt.egraph.proof_step import ProofStep
from egraph_opt.runtime.explanation import Chain, Part
from egraph_opt.runtime.explanation_replay import terms_of

# What marks the sub-term that a step changes.
OPEN, CLOSE = "\x01", "\x02"
# Attributes that say nothing where all their numbers are these.
PLAIN = {"dilations": "1", "strides": "1", "group": "1", "pads": "0", "output_padding": "0"}


@dataclass(frozen=True)
class Line:
    """``name = text``; ``changed`` against the program one step before. The changed sub-term is between marks."""

    name: str
    text: str
    changed: bool

    @property
    def plain(self) -> str:
        """The line without marks."""
        return f"{self.name} = {self.text}".replace(OPEN, "").replace(CLOSE, "")


@dataclass(frozen=True)
class Stage:
    """The program after ``step`` (None: the original); ``gone`` are lines of the program before that are no more.

    For a step that rests on others, ``because`` are the stages of these.
    """

    step: ProofStep | None
    lines: tuple[Line, ...]
    gone: tuple[Line, ...] = ()
    because: tuple[Stage, ...] = ()


class Programs:
    """Shows the chains of one part."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.terms = terms_of(part)
        self.labels = part.names

    def stages(self, chain: Chain) -> list[Stage]:
        """The program of the original and after every step."""
        own = {chain.tensor, *chain.covered}
        leaves = {number: name for number, name in self.labels.items() if name not in own}
        lines = {number: name for number, name in self.labels.items() if name in own}
        return list(self._stages(chain.start, chain.steps, leaves, lines, chain.tensor))

    def _stages(
        self,
        start: int,
        steps: Sequence[ProofStep],
        leaves: Mapping[int, str],
        lines: Mapping[int, str],
        result: str,
    ) -> Iterator[Stage]:
        fresh = (f"t{number}" for number in count(1))
        names = dict(lines)
        shown = self._lines(start, result, names, leaves, fresh, -1)
        before = {line.plain for line in shown}
        yield Stage(None, tuple(shown))
        current = start
        for step in steps:
            old = self._lines(current, result, dict(names), leaves, fresh, step.before)
            names = self._carried(current, step, names)
            shown = self._lines(step.whole, result, names, leaves, fresh, step.after)
            marked = [Line(line.name, line.text, line.plain not in before) for line in shown]
            inner: tuple[Stage, ...] = ()
            if step.given >= 0:
                inner = tuple(self._stages(step.given, step.because, leaves, {}, "both"))
            after = {line.plain for line in shown}
            yield Stage(step, tuple(marked), tuple(line for line in old if line.plain not in after), inner)
            before = after
            current = step.whole

    def _carried(self, whole: int, step: ProofStep, names: Mapping[int, str]) -> dict[int, str]:
        """Names of the lines after a step: what stands in the place of a line keeps its name."""
        present = self._parts(step.whole)
        result = {number: name for number, name in names.items() if number in present}
        taken = set(result.values())
        pending = [(self._bare(whole), self._bare(step.whole))]
        done: set[tuple[int, int]] = set()
        while pending:
            old, new = pending.pop()
            if old == new or (old, new) in done:
                continue
            done.add((old, new))
            if old in names and names[old] not in taken and new not in result:
                result[new] = names[old]
                taken.add(names[old])
            one, other = self.terms.nodes[old], self.terms.nodes[new]
            if (old, new) != (self._bare(step.before), self._bare(step.after)) and (
                one.constructor == other.constructor and len(one.children) == len(other.children)
            ):
                pairs = zip(one.children, other.children, strict=True)
                pending += [(self._bare(a), self._bare(b)) for a, b in pairs]
        return result

    def _bare(self, number: int) -> int:
        """A tensor for the buffer that holds it, a buffer for what reads it: both have one name."""
        node = self.terms.nodes[number]
        return node.children[0] if node.constructor in ("Read", "Compute") else number

    def _parts(self, number: int) -> set[int]:
        found: set[int] = set()
        pending = [number]
        while pending:
            current = pending.pop()
            if current not in found:
                found.add(current)
                pending += self.terms.nodes[current].children
        return found

    def _lines(
        self,
        whole: int,
        result: str,
        names: dict[int, str],
        leaves: Mapping[int, str],
        fresh: Iterator[str],
        marked: int,
    ) -> list[Line]:
        """The lines of a program, what is used before what uses it; ``names`` gets the names of new lines."""
        root = self._bare(whole)
        names[root] = result
        known = {self._bare(number): name for number, name in leaves.items()}
        reached: dict[int, int] = {}
        pending = [root]
        while pending:
            current = self._bare(pending.pop())
            reached[current] = reached.get(current, 0) + 1
            if reached[current] == 1 and current not in known:
                pending += self.terms.operands(current)
        # Parts have smaller numbers.
        order = sorted(n for n in reached if n not in known and self.terms.nodes[n].constructor not in ("Nil", "Cons"))
        for number in order:
            node = self.terms.nodes[number]
            alone = number == root or node.constructor == "Call" or (reached[number] > 1 and bool(node.children))
            if number not in names and (alone or self._handed_over(number, order)):
                names[number] = next(fresh)
        bare = -1 if marked < 0 else self._bare(marked)
        found = []
        for number in order:
            if number in names:
                named = {**names, **known}
                del named[number]
                found.append(Line(names[number], self._text(number, named, bare), False))
        return found

    def _handed_over(self, number: int, order: Sequence[int]) -> bool:
        """Whether a kernel fills a buffer with this for a library call."""
        if self.terms.nodes[number].constructor in ("Source", "Reshape", "Fill"):
            return False
        for user in order:
            if self.terms.nodes[user].constructor in ("Call", "Reshape"):
                held = [self._bare(o) for o in self.terms.operands(user) if o != number]
                if number in held:
                    return True
        return False

    def _text(self, number: int, names: Mapping[int, str], marked: int) -> str:
        number = self._bare(number)
        if number in names:
            return names[number]
        parts = [self._text(part, names, marked) for part in self.terms.operands(number)]
        shown = expression(self.terms.nodes[number].constructor, self.terms.nodes[number].arguments, parts)
        return f"{OPEN}{shown}{CLOSE}" if number == marked else shown


def expression(constructor: str, arguments: Sequence[int | str], parts: Sequence[str]) -> str:
    """Text of a term over the texts of its parts."""
    match constructor:
        case "Read" | "Compute":
            return parts[0]
        case "View":
            return f"{parts[0]}{indices(str(arguments[1]))}"
        case "Sum" | "Softmax":
            return f"{constructor.lower()}[{arguments[1]}]({parts[0]})"
        case "Reduce":
            return f"{arguments[0]}[{arguments[2]}]({parts[0]})"
        case "Mul" | "Add":
            return f"({parts[0]} {'*' if constructor == 'Mul' else '+'} {parts[1]})"
        case "Apply1" | "Apply2":
            return f"{arguments[0]}({', '.join(parts)})"
        case "Fill" | "Source":
            return str(arguments[0])
        case "Reshape":
            return f"reshape({parts[0]}, {str(arguments[1]).replace(',', '×')})"
        case "Call":
            return f"{arguments[0]}{attributes(str(arguments[1]))}({', '.join(parts)})"
    return f"({', '.join(parts)})"


def indices(text: str) -> str:
    """An index map as subscripts: ``[indices → extents of the result]``."""
    extents, _, rest = text.partition(": ")
    result = extents.rpartition("->")[2].strip("[]").replace(",", "×") or "scalar"
    return f"[{rest or '·'} → {result}]"


def attributes(text: str) -> str:
    """The attributes of a call that are not the plainest."""
    pairs = [pair.partition("=") for pair in text.split(";") if pair]
    told = [f"{key}={value}" for key, _, value in pairs if {*value.split(",")} != {PLAIN.get(key)}]
    return "{" + " ".join(told) + "}" if told else ""
