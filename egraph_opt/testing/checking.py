"""Property tests of rules: programs are drawn, the rule runs alone on each, and every e-node is judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from egraph_opt.egraph.language import Rule, RuleGroup
from egraph_opt.egraph.pattern import Node, text
from egraph_opt.errors import UsageError
from egraph_opt.ir.program import Program
from egraph_opt.testing import operators
from egraph_opt.testing.growth import changed, programs_of
from egraph_opt.testing.normalizations import NORMALIZATIONS
from egraph_opt.testing.report import CheckReport, RuleReport, Stop
from egraph_opt.testing.reproduction import Counterexample
from egraph_opt.testing.trial import EXACT, FLOATS_ONLY, are_silent, attempt

Programs = st.SearchStrategy[Program] | Sequence[Program]
EXAMPLES = 100
SECONDS = 10.0
# So many programs are first tried at once, where the rule did not fire on those before.
_BATCH = 16
# Of one kind of whole operator no more than this share needs to fire.
_FIRING = 5
# Where a rule fired on fewer programs than this, more are grown, this many times at most.
_ENOUGH = 10
# Programs times values that a rule is tried on at least, where it fires at all.
_VALUES = 30
_ROUNDS = 3
# Hypothesis draws some programs again and again; it is asked so often for as many different ones as are wanted.
_DRAWS = 3
# So many programs are tried to make a fault smaller.
_SHRINKING = 250


def check_rule(
    rule: Rule,
    *,
    programs: Programs | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    seconds: float = SECONDS,
    simplify: bool = False,
) -> RuleReport:
    """Check one rule on drawn programs: every e-node of every class that it touches must have its class's value.

    ``examples`` programs are grown from its left-hand side, near misses among them, and more where it rarely fires;
    where sums of products or windows stand in it, as many whole operators of each kind are drawn as well
    (convolutions, matrix products, pools, normalizations, siblings and chains of them). ``programs`` are tried first:
    a list, or a strategy of which ``examples`` are drawn. The draws depend on ``seed`` only, and a program that shows a
    fault is shrunk. ``seconds`` limits the whole check; the report counts what was tried. With ``simplify`` the
    simplifications run after the rule.

    What the two sides must agree in depends on what the rule claims: "bitwise" all bits, NaN, infinities and signed
    zeros included, sums being taken in order; "reassociates" up to rounding, and pointwise rules in where a result is
    not finite; "real_only" up to rounding where both are finite; ``approximate(bound)`` within the bound. All but the
    approximate ones must also hold exactly, in integers modulo a prime with opaque functions; a rule that names
    functions may use what division, exponentials (two finite fields) or order (fractions) say.
    """
    search = _Search(rule, seed, simplify, time.monotonic() + seconds)
    started = time.monotonic()
    if programs is not None and not isinstance(programs, st.SearchStrategy):
        for program in programs:
            if not isinstance(program, Program):
                raise UsageError(f"programs: {program!r} is no Program; pass a list of Programs or a strategy")
            search.try_one(program)
    if isinstance(programs, st.SearchStrategy):
        search.draw(programs, examples, "given")
    grown = programs_of(rule)
    kinds = _whole_operators(rule)
    for kind in kinds:
        search.corpus(kind, examples)
    # Chance hardly completes what uses one tensor in many places.
    is_hopeless = search.fired > 0 and any(kind in NORMALIZATIONS for kind in kinds)
    for turn in range(0 if is_hopeless else _ROUNDS):
        before = search.fired
        search.draw(grown, examples, f"grown {turn}")
        if search.fired >= _ENOUGH or (before and search.fired == before):
            break
    search.more_values(min(examples, _VALUES))
    return RuleReport(
        rule.name,
        rule.group,
        rule.exactness,
        search.examples,
        search.fired,
        search.matches,
        search.checked,
        time.monotonic() - started,
        search.evidence,
        search.stop,
        search.counterexample,
    )


def check_rules(
    rules: Any,
    *,
    programs: Mapping[str, Programs] | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
    seconds: float = SECONDS,
    simplify: bool = False,
    progress: Callable[[RuleReport], None] | None = None,
) -> CheckReport:
    """Check a rule group, a pack, or any number of rules and groups: see :func:`check_rule`.

    ``programs`` are programs for some rules, by the rule's name. ``seconds`` is the limit for each rule; ``progress``
    is called with every report as it comes. Raises UsageError for something that is no rule.
    """
    given_programs = dict(programs or {})
    found = list(_rules(rules))
    unknown = sorted(set(given_programs) - {rule.name for rule in found})
    if unknown:
        raise UsageError(f"programs are given for {unknown[0]!r}, which is none of the rules")
    reports = []
    for rule in found:
        report = check_rule(
            rule,
            programs=given_programs.get(rule.name),
            examples=examples,
            seed=seed,
            seconds=seconds,
            simplify=simplify,
        )
        reports.append(report)
        if progress is not None:
            progress(report)
    return CheckReport(tuple(reports))


def _rules(what: Any) -> Iterator[Rule]:
    if isinstance(what, Rule):
        yield what
    elif isinstance(what, RuleGroup):
        yield from what.rules
    elif hasattr(what, "groups"):
        yield from _rules(what.groups)
    elif isinstance(what, Iterable) and not isinstance(what, str | bytes):
        for part in what:
            yield from _rules(part)
    else:
        raise UsageError(f"{what!r} is no rule; pass a Rule, a RuleGroup, a pack or a list of them")


def programs(rule: Rule | None = None) -> st.SearchStrategy[Program]:
    """Programs of whole operators; for a rule also those grown from its left-hand side."""
    if rule is None:
        return operators.anything()
    return st.one_of(programs_of(rule), *map(_strategy, _whole_operators(rule)))


def _whole_operators(rule: Rule) -> list[str]:
    """Kinds of operators that a rule's left-hand side may be found in."""
    sums = [p for p in operators_in(rule) if p.constructor in ("Sum", "Reduce")]
    factors = [inner for p in sums for inner in p.arguments if isinstance(inner, Node)]
    quotients = [p for p in operators_in(rule) if p.constructor == "Apply2" and p.arguments[0] == text("div")]
    if sums and quotients:
        return list(NORMALIZATIONS)
    if any(inner.constructor in ("Mul", "Apply2") for inner in factors):
        return list(operators.CONTRACTIONS)
    return list(operators.REDUCTIONS) if sums else []


def _strategy(kind: str) -> st.SearchStrategy[Program]:
    if kind in NORMALIZATIONS:
        found = NORMALIZATIONS[kind]()
    else:
        found = operators.commuted({**operators.CONTRACTIONS, **operators.REDUCTIONS}[kind]())
    return st.one_of(found, found, found, found, changed(found))


@lru_cache(maxsize=64)
def _corpus(kind: str, number: int, seed: int) -> list[tuple[Program, str]]:
    """Operators of one kind, which all rules are tried on."""
    return _different(_strategy(kind), number, f"{seed} {kind}")


def _different(
    strategy: st.SearchStrategy[Program], number: int, seed: str, is_over: Callable[[], bool] = bool
) -> list[tuple[Program, str]]:
    """Different programs of a strategy, as many as asked for if there are, each with the seed of its draw."""
    found: dict[Any, tuple[Program, str]] = {}
    for turn in range(_DRAWS):
        own, before = f"{seed} {turn}", len(found)

        def body(program: Program, own: str = own) -> None:
            if len(found) < number:
                found.setdefault(program.definitions, (program, own))

        # Where nothing can be drawn there is nothing to try.
        with suppress(HypothesisException, _Over):
            _drawn(_until(strategy, is_over), number, own, (Phase.generate,), body)
        if len(found) >= number or len(found) == before or is_over():
            break
    return list(found.values())


def _until(strategy: st.SearchStrategy[Program], is_over: Callable[[], bool]) -> st.SearchStrategy[Program]:
    """The same draws, ended at once when time is over: patterns that hardly anything fits are drawn again and again."""

    @st.composite
    def until(draw: st.DrawFn) -> Program:
        if is_over():
            raise _Over("time")
        return draw(strategy)

    return until()


def _drawn(
    strategy: st.SearchStrategy[Program],
    number: int,
    seed: str,
    phases: tuple[Phase, ...],
    body: Callable[[Program], None],
) -> None:
    """Call ``body`` with programs of a strategy; equal arguments draw equal programs."""

    @seeded(seed)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def run(program: Program) -> None:
        body(program)

    run()


def operators_in(rule: Rule) -> list[Node]:
    """The constructors of everything that a rule has to find."""
    return [part for side in rule.matched for part in _nodes(side)]


def _nodes(pattern: Any) -> Iterator[Node]:
    if isinstance(pattern, Node):
        yield pattern
        for argument in pattern.arguments:
            yield from _nodes(argument)


class _Wrong(Exception):  # noqa: N818
    """Tells hypothesis that an example shows a fault."""


class _Over(SkipTest):
    """Ends a run of hypothesis at once; it lets tests be skipped."""


@dataclass
class _Search:
    """Tries programs and counts; keeps the last fault, which is the smallest once hypothesis has shrunk it."""

    rule: Rule
    seed: int
    simplify: bool
    deadline: float
    examples: int = 0
    fired: int = 0
    matches: int = 0
    checked: int = 0
    counterexample: Counterexample | None = None
    stop: Stop = "done"
    ranks: set[str] = field(default_factory=set)
    seen: set[Any] = field(default_factory=set)
    firing: list[Program] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        if time.monotonic() > self.deadline:
            self.stop = "time"
        return self.stop == "time"

    @property
    def evidence(self) -> str:
        """The weakest arithmetic that was needed."""
        order = (*EXACT, FLOATS_ONLY)
        return max(self.ranks, key=order.index, default="")

    def try_one(self, program: Program) -> None:
        if self.counterexample is None and not self.is_over:
            self.counterexample = self.tried(program)

    def tried(self, program: Program) -> Counterexample | None:
        trial = attempt(self.rule, program, seed=self.seed, simplify=self.simplify)
        if self.counterexample is None:
            self.examples += 1
            self.fired += trial.matches > 0
            if trial.matches:
                self.firing.append(program)
            self.matches += trial.matches
            self.checked += trial.checked
            self.ranks |= {trial.evidence} - {""}
        return trial.failure

    def more_values(self, enough: int) -> None:
        """Where few different programs fire, other values of their sources instead."""
        firing = list(self.firing)
        for turn in range(1, 1 + (enough - len(firing)) // max(1, len(firing))):
            for program in firing:
                if self.counterexample is None and not self.is_over:
                    trial = attempt(self.rule, program, seed=self.seed + turn, simplify=self.simplify)
                    self.checked += trial.checked
                    self.counterexample = trial.failure

    def draw(self, strategy: st.SearchStrategy[Program], number: int, what: str) -> None:
        """Try ``number`` different programs of a strategy."""
        if self.counterexample is None and not self.is_over:
            programs = _different(strategy, number, f"{self.seed} {what}", lambda: self.is_over)
            self.try_all(programs, strategy, number)

    def corpus(self, kind: str, number: int) -> None:
        """Try whole operators of one kind, until the rule has fired on some of them."""
        if self.counterexample is None and not self.is_over:
            strategy, enough = _strategy(kind), self.fired + max(1, number // _FIRING)
            self.try_all(_corpus(kind, number, self.seed), strategy, number, enough)

    def try_all(
        self,
        programs: Sequence[tuple[Program, str]],
        strategy: st.SearchStrategy[Program],
        number: int,
        enough: int | None = None,
    ) -> None:
        """Try programs until the rule has fired on ``enough``, many at once as long as it is silent."""
        quiet = True
        for start in range(0, len(programs), _BATCH):
            batch = [pair for pair in programs[start : start + _BATCH] if pair[0].definitions not in self.seen]
            self.seen.update(program.definitions for program, _ in batch)
            if self.is_over or (enough is not None and self.fired >= enough):
                return
            if quiet and are_silent(self.rule, [program for program, _ in batch]):
                self.examples += len(batch)
                continue
            before = self.fired
            for program, drawn_by in batch:
                self.try_one(program)
                if self.counterexample is not None:
                    self.shrink(program, strategy, number, drawn_by)
                    return
            quiet = self.fired - before <= 1

    def shrink(self, faulty: Program, strategy: st.SearchStrategy[Program], number: int, drawn_by: str) -> None:
        """Draw as before, and let hypothesis make the program that shows a fault smaller."""
        attempts = 0

        def body(program: Program) -> None:
            nonlocal attempts
            if self.is_over or attempts > _SHRINKING:
                raise _Over("enough")
            if attempts == 0 and program != faulty:
                return
            attempts += 1
            found = self.tried(program)
            if found is not None:
                self.counterexample = found
                raise _Wrong

        with suppress(_Wrong, _Over, HypothesisException):
            limited = _until(strategy, lambda: self.is_over)
            _drawn(limited, number, drawn_by, (Phase.generate, Phase.shrink), body)
