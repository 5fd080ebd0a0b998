"""All built-in rule groups, and the phases in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from egraph_opt.egraph.language import RuleGroup
from egraph_opt.rules.association import association
from egraph_opt.rules.derivation import contraction_forms, phases, splitting, substitution, windows
from egraph_opt.rules.instantiation import epilogue, instantiation, layout, pooling, transposed_operands
from egraph_opt.rules.normalization import normalization
from egraph_opt.rules.pointwise import pointwise
from egraph_opt.rules.siblings import siblings, sums
from egraph_opt.rules.simplification import simplification


@dataclass(frozen=True)
class Phase:
    """Run ``group`` for at most ``rounds`` rounds, simplifying to saturation after each."""

    group: RuleGroup
    rounds: int


# Rounds that the groups of a rule pack run at each of their two places.
PACK_ROUNDS = 2


def schedule(packs: Sequence[RuleGroup] = ()) -> tuple[Phase, ...]:
    """The phases in their order, with the groups of rule packs at two places: first on the program's own terms, then on
    the library calls.

    Each phase sees what the phases before it made. Generative groups run a bounded number of rounds: a split begets
    only splits by smaller factors, a summation splits once, and matched operators are not taken apart again.
    """
    foreign = tuple(Phase(group, PACK_ROUNDS) for group in packs)
    return (
        *foreign,
        Phase(normalization, 1),
        Phase(contraction_forms, 1),
        Phase(association, 4),
        Phase(sums, 64),
        Phase(phases, 8),
        Phase(siblings, 1),
        Phase(windows, 3),
        Phase(splitting, 1),
        Phase(substitution, 1),
        Phase(siblings, 1),
        Phase(instantiation, 1),
        Phase(pooling, 1),
        *foreign,
        Phase(epilogue, 2),
        Phase(pointwise, 16),
        Phase(epilogue, 2),
        Phase(layout, 1),
        Phase(transposed_operands, 1),
    )


PHASES: tuple[Phase, ...] = schedule()

SIMPLIFICATION = simplification

GROUPS: tuple[RuleGroup, ...] = (SIMPLIFICATION, *dict.fromkeys(phase.group for phase in PHASES))
