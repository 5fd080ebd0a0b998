"""One step of a proof, as it is found and as it is kept in a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProofStep:
    """``before`` became ``after`` by a rule inside ``whole``, which is the result; all are numbers of terms.

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
    because: tuple[ProofStep, ...] = ()

    @property
    def terms(self) -> tuple[int, ...]:
        """Numbers of all terms it mentions."""
        own = (self.before, self.after, self.whole, *(() if self.given < 0 else (self.given,)))
        return own + tuple(number for step in self.because for number in step.terms)
