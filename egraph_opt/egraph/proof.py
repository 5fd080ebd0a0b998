"""Proofs that a plan computes what the program says: chains of named rules with every term in between.

Every rule instance on record is an equation between ground terms once each class has a term that stands for it;
congruence closure over these equations explains why two terms are equal (:mod:`egraph_opt.egraph.closure`). The
equations of a first explanation are then reduced to a set of which none can be left out, and the chain is read off
that.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import cached_property

from egraph_opt.egraph.closure import Move
from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.proof_step import ProofStep
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.theory import Theory, Vocabulary
from egraph_opt.ir.program import Program
from egraph_opt.limits import Check, unlimited

# A chain longer than this is given as one step.
LONGEST = 400
# Attempts, for all proofs of one snapshot together, to do without an equation, and equations that these may look at:
# later chains may have needless steps.
TRIALS, TRIED = 500, 10_000
# Rule name of a step without a recovered chain.
UNKNOWN = "equal-class"


@dataclass(frozen=True)
class Proof:
    """Steps that lead from ``start`` to ``goal``, each an equation of a rule."""

    start: int
    goal: int
    steps: tuple[ProofStep, ...]


class Prover:
    """Proofs over the terms of one snapshot."""

    def __init__(self, snapshot: Snapshot, program: Program, rules: Iterable[Rule], check: Check = unlimited) -> None:
        """``check`` is called again and again and may raise to end it."""
        self.known = Vocabulary(snapshot, program, rules, check)
        self.terms = self.known.terms
        self._trials, self._tried = TRIALS, 0

    @cached_property
    def _whole(self) -> Theory:
        return Theory(self.known, self.known.instances)

    def prove(self, start: int, goal: int, opaque: Set[int] = frozenset()) -> Proof:
        """A chain from one term to an equal one; a single step named UNKNOWN where none is found.

        It leaves ``opaque`` terms as they are where that is possible.
        """
        if start == goal:
            return Proof(start, goal, ())
        best = self._whole
        if not best.equal(start, goal):
            return self._unexplained(start, goal)
        used = best.used(start, goal)
        fresh = Theory(self.known, used, opaque)
        if not fresh.equal(start, goal):
            opaque = frozenset()
            fresh = Theory(self.known, used)
        if fresh.equal(start, goal):
            best = fresh
            used = fresh.used(start, goal)
            for instance in reversed(used):
                if not self._trials or self._tried > TRIED:
                    break
                self._trials -= 1
                self._tried += len(used)
                fewer = [other for other in used if other is not instance]
                trial = Theory(self.known, fewer, opaque)
                if trial.equal(start, goal, fresh.rounds + 1):
                    used, best = trial.used(start, goal) if len(fewer) > 1 else fewer, trial
        steps = self._chain(best, start, goal)
        return self._unexplained(start, goal) if steps is None else Proof(start, goal, tuple(steps))

    def _unexplained(self, start: int, goal: int) -> Proof:
        return Proof(start, goal, (ProofStep(UNKNOWN, "", False, start, goal, goal, exact=False),))

    def _chain(self, theory: Theory, start: int, goal: int) -> list[ProofStep] | None:
        """Rewrite every occurrence at once where that leads on, else one at a time."""
        steps: list[ProofStep] = []
        seen = {start}
        current = start
        while current != goal:
            move = next(theory.closure.moves(current, goal))
            following = self.terms.replaced(current, move.old, move.new)
            # An occurrence inside an opaque term is another matter: nothing is known of what comes out of it.
            if following in seen or not theory.closure.equal(following, goal):
                following = self.terms.replaced_at(current, move.path, move.new)
            if following in seen or len(steps) > LONGEST:
                return self._static(theory, start, theory.closure.moves(start, goal))
            seen.add(following)
            steps.append(self._step(theory, move, following))
            current = following
        return steps

    def _static(self, theory: Theory, start: int, moves: Iterable[Move]) -> list[ProofStep] | None:
        """The explanation as it is, one occurrence after the other; None where it is too long."""
        steps: list[ProofStep] = []
        current = start
        for move in moves:
            if len(steps) > LONGEST:
                return None
            current = self.terms.replaced_at(current, move.path, move.new)
            steps.append(self._step(theory, move, current))
        return steps

    def _step(self, theory: Theory, move: Move, whole: int) -> ProofStep:
        equation = move.equation
        exact = equation.instance < 0 or theory.instances[equation.instance].exact
        given, because = -1, None
        if equation.premise is not None:
            given = equation.premise[0]
            because = self._static(theory, given, theory.closure.premise(move))
        return ProofStep(
            equation.rule, equation.group, move.backwards, move.old, move.new, whole, exact, given, tuple(because or ())
        )
