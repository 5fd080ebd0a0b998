"""Which plans of a region are worth measuring on a GPU that was not measured yet."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from egraph_opt.backends.cuda_works import Works
from egraph_opt.extract.choose import Choice, choose
from egraph_opt.extract.plans import build_plan
from egraph_opt.extract.problem import Alternative
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.extract.search import Search
from egraph_opt.extract.sketches import foldings, not_computed, sketch_of
from egraph_opt.gpu.files import Sketch
from egraph_opt.ir.terms import Call, Compute, Reshape
from egraph_opt.runtime.progress import Progress, ProgressCallback, silent

# Rounds of choosing what to measure, of any steps and of library calls alone; in each, what was chosen before counts so
# many times its static cost.
ROUNDS, LIBRARY_ROUNDS, PENALTY = 8, 4, 2.0
# How often the steps to measure are looked for again because a kernel of theirs has no form on a GPU.
TRIES = 40


def candidates(search: Search, works: Works, *, progress: ProgressCallback = silent) -> tuple[Sketch, ...]:
    """Many cheap plans, all works of whose steps are known afterwards: those of any steps, and of library calls alone.

    Each time the cheapest is chosen, while the steps of those before count more. The other library calls that fill the
    same buffers are looked for as well.
    """

    def library(alternative: Alternative) -> float:
        work = works.library(alternative)
        return inf if work is None else work.estimate

    def any_way(alternative: Alternative) -> float:
        if not isinstance(alternative.step, Compute):
            return library(alternative)
        return inf if works.known.get(alternative.text) == () else alternative.estimate

    choices = _looked_for(search, works, any_way, ROUNDS, progress)
    choices += _looked_for(search, works, library, LIBRARY_ROUNDS, progress)
    different = {tuple(alternative.text for _, alternative in choice.steps): choice for choice in choices}
    found = []
    with not_computed(search.problem):
        for choice in different.values():
            plan = build_plan(search.problem, choice, search.program, prefix=search.prefix)
            found.append(sketch_of(plan.steps, plan.outputs, foldings(search.problem, plan)))
    return tuple(found)


def _looked_for(
    search: Search, works: Works, seconds: Callable[[Alternative], float], rounds: int, progress: ProgressCallback
) -> list[Choice]:
    counted: set[str] = set()

    def cost(alternative: Alternative) -> float:
        if isinstance(alternative.step, Reshape):
            return alternative.estimate
        return STEP_SECONDS + (PENALTY if alternative.text in counted else 1.0) * seconds(alternative)

    found: list[Choice] = []
    for number in range(TRIES):
        progress(Progress("choose", f"{len(works.known)} steps to measure", number, TRIES))
        choice = choose(search.problem, cost)
        if choice is None or len(found) >= rounds:
            break
        chosen = [a for _, a in choice.steps if not isinstance(a.step, Reshape)]
        without = [a for a in chosen if not works.of(a)]
        if without:
            continue  # now that it is known that these have no form on a GPU
        for owner, _ in choice.steps:
            for alternative in search.problem.alternatives[owner]:
                if isinstance(alternative.step, Call):
                    works.of(alternative)
        before = len(counted)
        counted |= {a.text for a in chosen}
        found.append(choice)
        if len(counted) == before:
            break
    return found
