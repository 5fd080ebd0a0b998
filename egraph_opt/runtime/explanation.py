"""Why an optimized model computes what it does: chains of rules, costs and runners-up, as data inside the model.

The data are plain and complete: every term of every chain is there, so that a chain can be shown, and replayed by the
interpreter, from the written model alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from egraph_opt.egraph.proof_step import ProofStep
from egraph_opt.errors import InputRejected
from egraph_opt.runtime import records
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
    steps: tuple[ProofStep, ...]
    plan: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A way to fill a buffer: its own cost and that with all it needs; ``source`` is "measured" or "estimated".

    ``charge`` is the part of its own cost that was neither: what every step costs on top of its work.
    """

    text: str
    cost: float
    total: float
    source: str
    charge: float = 0.0


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
    return records.packed(to_plain(explanation))


def unpacked(text: str) -> Explanation:
    """Inverse of :func:`packed`. Raises InputRejected for anything else."""
    data = records.unpacked(text, what="the explanation", largest=LARGEST)
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
