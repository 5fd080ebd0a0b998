"""Why an optimized model computes what it does: chains of rules, costs and runners-up, as data inside the model.

The data are plain and complete: every term of every chain is there, so that a chain can be shown, and replayed by the
interpreter, from the written model alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass

from egraph_opt.errors import InputRejected
from egraph_opt.runtime.records import from_plain, to_plain

# The metadata entry of the model that holds the explanation.
KEY = "egraph_opt.explanation"
SCHEMA = 2
# What may come out of a compressed entry, in bytes: files come from anywhere.
LARGEST = 1 << 28


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of the model before or after."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A constructor with its arguments; terms in it are given by their position in the table."""

    constructor: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainStep:
    """``before`` became ``after`` by a rule inside ``whole``, which is the result; all are positions in the table.

    ``backwards``: the rule was read from right to left. ``exact``: False where only the outermost parts are on record.
    A rule by which parts of equal terms are equal holds ``because`` of the steps that lead from term ``given`` to the
    other one; these are about that term alone.
    """

    rule: str
    group: str
    backwards: bool
    before: int
    after: int
    whole: int
    exact: bool = True
    given: int = -1
    because: tuple[ChainStep, ...] = ()

    @property
    def terms(self) -> tuple[int, ...]:
        """Positions of all terms it mentions."""
        own = (self.before, self.after, self.whole, *(() if self.given < 0 else (self.given,)))
        return own + tuple(number for step in self.because for number in step.terms)


@dataclass(frozen=True, slots=True)
class Chain:
    """How ``tensor`` of the original became what the plan computes.

    ``nodes`` of the original compute the ``covered`` tensors, which the chain takes apart. ``steps`` lead from term
    ``start`` to term ``goal``; ``plan`` names the plan steps that compute it.
    """

    tensor: str
    covered: tuple[str, ...]
    nodes: tuple[str, ...]
    start: int
    goal: int
    steps: tuple[ChainStep, ...]
    plan: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A way to fill a buffer: its own cost and that with all it needs; ``source`` is "measured" or "estimated"."""

    text: str
    cost: float
    total: float
    source: str


@dataclass(frozen=True, slots=True)
class PlanStep:
    """A step that was chosen, the best of what else there was, and why it was chosen.

    ``nodes`` are the nodes of the written model that do it (none for a change of shape that costs nothing); ``chain``
    is the position of the chain that leads to it, -1 where there is none.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    chosen: Option
    runners_up: tuple[Option, ...]
    why: str
    chain: int = -1


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the model that was replaced as a whole; ``cost`` is what its plan should cost, in the ``unit`` of all
    costs: seconds, or what else programs were chosen by."""

    name: str
    before: tuple[GraphNode, ...]
    after: tuple[GraphNode, ...]
    steps: tuple[PlanStep, ...]
    cost: float
    terms: tuple[Term, ...] = ()
    labels: dict[str, int] | None = None
    chains: tuple[Chain, ...] = ()
    note: str = ""
    unit: str = "s"

    @property
    def names(self) -> dict[int, str]:
        """Names of the terms that have one: the original's tensors and weights."""
        return {term: name for name, term in reversed((self.labels or {}).items())}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All replaced parts of a model, ``kept`` of whose parts remained as they were."""

    model: str
    parts: tuple[Part, ...]
    kept: int = 0
    version: str = ""
    schema: int = SCHEMA


def packed(explanation: Explanation) -> str:
    """An explanation as text for a model's metadata; equal explanations give equal texts."""
    plain = json.dumps(to_plain(explanation), separators=(",", ":"), sort_keys=True, ensure_ascii=True)
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


def unpacked(text: str) -> Explanation:
    """Inverse of :func:`packed`. Raises InputRejected for anything else."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), LARGEST)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise InputRejected("the explanation in the model is cut off or too large")
        data = json.loads(content)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise InputRejected(f"the explanation in the model cannot be read: {error}") from error
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise InputRejected(f"the explanation in the model has schema {schema}, this program knows {SCHEMA}")
    explanation = from_plain(Explanation, data, where="explanation")
    for part in explanation.parts:
        _check(part)
    return explanation


def _check(part: Part) -> None:
    from egraph_opt.egraph.pattern import CONSTRUCTORS

    for position, term in enumerate(part.terms):
        sorts = CONSTRUCTORS.get(term.constructor, ((), ""))[0]
        if term.constructor not in CONSTRUCTORS or len(sorts) != len(term.arguments):
            raise InputRejected(f"the explanation in the model holds an unknown term {term.constructor!r}")
        for argument, sort in zip(term.arguments, sorts, strict=True):
            if sort in ("Tensor", "Buffer", "Args") and not (argument.isdecimal() and int(argument) < position):
                raise InputRejected(f"the explanation in the model: term {position} refers to {argument!r}")
    used = [number for chain in part.chains for number in (chain.start, chain.goal)]
    used += [number for chain in part.chains for step in chain.steps for number in step.terms]
    used += list((part.labels or {}).values())
    if any(not 0 <= number < len(part.terms) for number in used):
        raise InputRejected("the explanation in the model refers to terms that it does not hold")
    if any(not -1 <= step.chain < len(part.chains) for step in part.steps):
        raise InputRejected("the explanation in the model refers to chains that it does not hold")
