"""One rule alone on one program: every e-node of every class must have its class's value, in every arithmetic that is
fit for what the rule claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from egraph_opt.egraph.encoding import named, union
from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.language import Approximate, Rule, RuleGroup
from egraph_opt.egraph.pattern import Field, Node, Pattern, Variable, parts
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import Mismatch, Verdict, judge
from egraph_opt.errors import EgraphOptError
from egraph_opt.ir import library
from egraph_opt.ir.arithmetics import MagnitudeArithmetic, RationalArithmetic, SequentialArithmetic, TwoFieldArithmetic
from egraph_opt.ir.interpreter import ModularArithmetic, evaluate
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Read, Tensor
from egraph_opt.rules.schedule import SIMPLIFICATION
from egraph_opt.testing.operators import renamed
from egraph_opt.testing.reproduction import Counterexample, term_of
from egraph_opt.testing.values import Values, source_values

Array = np.ndarray[Any, Any]
# Classes with more elements are not evaluated.
_LARGEST = 1 << 16
# Disagreement that is forgiven where operators are computed by numpy alone, of the largest magnitude of the result.
_COARSE = 1e-7
# Sums whose order may change: their infinities are not promised.
_SUMMING = ("Sum", "Softmax", "Call")
EXACT: dict[str, Any] = {
    "modulo a prime": ModularArithmetic(),
    "two fields": TwoFieldArithmetic(),
    "fractions": RationalArithmetic(),
}
FLOATS_ONLY = "floats only"


@dataclass(frozen=True)
class Trial:
    """What one program showed: how often the rule ``matches``, e-nodes ``checked``, and what is wrong if anything.

    ``evidence`` is the strongest arithmetic in which the rule holds here; empty where it did not fire.
    """

    matches: int = 0
    checked: int = 0
    evidence: str = ""
    failure: Counterexample | None = None


@dataclass(frozen=True)
class _Pass:
    kind: str
    values: Values
    arithmetic: Any
    agrees: Callable[[Array, Array], bool]
    shown: str


def attempt(rule: Rule, program: Program, *, seed: int = 0, simplify: bool = False) -> Trial:
    """Run a rule alone on a program and judge what it made, by all arithmetics that are fit for its exactness."""
    try:
        return replay(rule, program, seed=seed, simplify=simplify)
    except BaseException as error:
        # What egglog raises when it panics is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if not _is_sound_alone(program, seed):
            return Trial()
        shown = f"{type(error).__name__}: {error}"
        return Trial(1, failure=Counterexample(rule, program, "raised an error", seed, error=shown))


def _is_sound_alone(program: Program, seed: int) -> bool:
    """Whether a program has a value without any rule."""
    try:
        egraph = EGraph()
        egraph.add_program(program)
        arithmetic = MagnitudeArithmetic()
        return not judge(Snapshot(egraph), source_values(program, "normal", seed), arithmetic, _LARGEST).mismatches
    except Exception:
        return False


def _run(rule: Rule, program: Program, seed: int, simplify: bool) -> tuple[int, EGraph]:
    egraph = EGraph()
    alone = RuleGroup("alone", (rule,))
    egraph.add_rules([alone, SIMPLIFICATION] if simplify and rule not in SIMPLIFICATION.rules else [alone])
    egraph.add_program(program)
    if rule.united is not None and len(program.outputs) > 1 and _are_equal(program, seed):
        egraph.egglog.run_program(union(*(named(name) for name in program.outputs[:2])))
    matches = egraph.run("alone").matches.get(rule.name, 0)
    if matches and SIMPLIFICATION.name in egraph.groups:
        egraph.run(SIMPLIFICATION.name, until_saturated=True)
    return matches, egraph


def _are_equal(program: Program, seed: int) -> bool:
    """Whether the first two tensors of a program are equal, whatever its sources hold."""
    values = source_values(program, "residues", seed)
    one, other = (evaluate(term, values, ModularArithmetic()) for _, term in program.definitions[:2])
    return one.shape == other.shape and bool(np.array_equal(one, other))


def _judged(rule: Rule, program: Program, seed: int, matches: int, snapshot: Snapshot) -> Trial:
    checked = 0
    is_exact = _is_exact(snapshot)
    for step in _passes(rule, is_exact):
        verdict = _verdict(snapshot, program, seed, step)
        checked = max(checked, verdict.checked)
        if verdict.mismatches:
            found = _counterexample(rule, program, seed, snapshot, verdict, step)
            return Trial(matches, checked, failure=found)
    if isinstance(rule.exactness, Approximate) or not is_exact:
        return Trial(matches, checked, FLOATS_ONLY)
    strict = not speaks_of_functions(rule) and rule.exactness != "real_only"
    for name, arithmetic in EXACT.items():
        agrees = getattr(arithmetic, "agrees", np.array_equal)
        values: Values = "small" if name == "fractions" else "residues"
        step = _Pass(f"the two sides differ {_IN[name]}", values, arithmetic, agrees, type(arithmetic).__name__)
        verdict = _verdict(snapshot, program, seed, step)
        checked = max(checked, verdict.checked)
        if not verdict.mismatches:
            return Trial(matches, checked, name)
        if strict:
            found = _counterexample(rule, program, seed, snapshot, verdict, step)
            return Trial(matches, checked, failure=found)
    return Trial(matches, checked, FLOATS_ONLY)


_IN = {
    "modulo a prime": "for other functions, and modulo a prime",
    "two fields": "in two fields",
    "fractions": "in exact fractions",
}


def _passes(rule: Rule, is_exact: bool) -> Iterator[_Pass]:
    """Passes in floating point, the plainest values first."""
    differ = "the two sides differ"
    if isinstance(rule.exactness, Approximate):
        within = _Within(rule.exactness.bound)
        for values in _FINITE:
            kind = f"the two sides differ by more than {rule.exactness.bound} of the result"
            yield _Pass(kind, values, SequentialArithmetic(), within, "FloatArithmetic")
        return
    close: Any = MagnitudeArithmetic() if is_exact else SequentialArithmetic()
    agrees = close.agrees if is_exact else _Within(_COARSE)
    for values in _FINITE:
        yield _Pass(differ, values, close, agrees, "FloatArithmetic")
    if rule.exactness == "bitwise":
        bits = SequentialArithmetic()
        for values in ("normal", "special"):
            yield _Pass("the two sides differ in their bits", values, bits, bits.agrees, "SequentialArithmetic")
    elif rule.exactness == "reassociates" and is_pointwise(rule):
        kind = "NaN or infinity in other places, or values that differ beyond rounding"
        yield _Pass(kind, "moderate", close, _Placed(agrees), "SequentialArithmetic")


_FINITE: tuple[Values, ...] = ("small", "normal", "positive")


@dataclass(frozen=True)
class _Within:
    """Finite values agree within a share of the largest magnitude."""

    bound: float

    def __call__(self, one: Array, other: Array) -> bool:
        finite = np.isfinite(one) & np.isfinite(other)
        if not finite.any():
            return True
        a, b = one[finite], other[finite]
        return bool(abs(a - b).max() <= self.bound * max(abs(a).max(), abs(b).max()))


@dataclass(frozen=True)
class _Placed:
    """What is not finite stands in the same places; finite values agree."""

    agrees: Callable[[Array, Array], bool]

    def __call__(self, one: Array, other: Array) -> bool:
        return bool((np.isfinite(one.real) == np.isfinite(other.real)).all()) and self.agrees(one, other)


def _verdict(snapshot: Snapshot, program: Program, seed: int, step: _Pass) -> Verdict:
    values = source_values(program, step.values, seed)
    with np.errstate(all="ignore"):
        return judge(snapshot, values, step.arithmetic, _LARGEST, step.agrees)


def _is_exact(snapshot: Snapshot) -> bool:
    """Whether all operators that are called have a meaning in every arithmetic."""
    calls = (node for nodes in snapshot.classes.values() for node in nodes if node.constructor == "Call")
    return all(
        library.POINTWISE_ATTRIBUTE in library.parse_attributes(str(node.arguments[1]))
        or library.lookup(str(node.arguments[0])).exact
        for node in calls
    )


def _counterexample(
    rule: Rule, program: Program, seed: int, snapshot: Snapshot, verdict: Verdict, step: _Pass
) -> Counterexample:
    def terms(mismatch: Mismatch) -> tuple[Tensor, Tensor] | None:
        made = {derivation.result for derivation in snapshot.derivations}
        pair = (mismatch.other, mismatch.node)
        if mismatch.other in made and mismatch.node not in made:
            pair = pair[::-1]
        try:
            left, right = (term_of(snapshot, node, verdict.chosen) for node in pair)
        except EgraphOptError:
            return None
        return tuple(t if isinstance(t, Tensor) else Read(t) for t in (left, right))  # type: ignore[return-value]

    found = [pair for pair in map(terms, verdict.mismatches) if pair is not None]
    if not found:
        error = f"e-node {verdict.mismatches[0].node} does not type-check"
        return Counterexample(rule, program, "made a term whose extents do not fit", seed, error=error)
    left, right = min(found, key=lambda pair: len(str(pair)))
    return Counterexample(rule, program, step.kind, seed, left, right, step.values, step.shown)


def replay(rule: Rule, program: Program, *, seed: int = 0, simplify: bool = False) -> Trial:
    """Run a rule alone on a program once more, as a counterexample tells; errors that it raises are raised again."""
    matches, egraph = _run(rule, program, seed, simplify)
    return _judged(rule, program, seed, matches, Snapshot(egraph)) if matches else Trial()


def are_silent(rule: Rule, programs: Sequence[Program]) -> bool:
    """Whether a rule does not fire on any of some programs, found out at once."""
    if rule.united is not None:
        return False
    egraph = EGraph()
    egraph.add_rules([RuleGroup("alone", (rule,))])
    for number, program in enumerate(programs):
        egraph.add_program(renamed(program, f"p{number}-"))
    try:
        return not egraph.run("alone").matches.get(rule.name, 0)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return False


def is_pointwise(rule: Rule) -> bool:
    """Whether a rule speaks of elements one by one: nothing in it is summed."""
    return rule.combine is None and not any(
        isinstance(part, Node) and part.constructor in _SUMMING for part in _parts(rule)
    )


def speaks_of_functions(rule: Rule) -> bool:
    """Whether a rule names a scalar function, or looks at the name of one, so that it may use what it knows of it.

    A rule for any function must hold for one of which nothing is known.
    """
    for part in _parts(rule):
        if not isinstance(part, Node) or part.constructor not in ("Apply1", "Apply2", "Reduce", "Softmax", "Call"):
            continue
        if part.constructor == "Softmax":
            return True
        name = part.arguments[0]
        bound_only = isinstance(name, Variable) and name not in rule.asked and rule.combine is None
        if not bound_only and (isinstance(name, Field) or part.constructor != "Call" or _is_users(name)):
            return True
    return False


def _is_users(name: Pattern) -> bool:
    return getattr(name, "value", None) in library.ADDED


def _parts(rule: Rule) -> Iterator[Pattern]:
    for side in (rule.left, rule.right, *([rule.beside] if rule.beside else []), *(s for p in rule.more for s in p)):
        yield from parts(side)
