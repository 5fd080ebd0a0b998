"""An explanation as text: for every part its plan with costs, and the chains of rules with the programs in between."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from egraph_opt.errors import UsageError
from egraph_opt.runtime.explanation import Chain, Explanation, Option, Part, PlanStep
from egraph_opt.runtime.explanation_programs import Programs, Stage
from egraph_opt.runtime.quantities import origin, quantity

# Characters of a step's description that are shown.
WIDTH = 150


def text(explanation: Explanation, node: str | None = None) -> str:
    """Everything, or what concerns one node of the model before or after (or a tensor, or a step).

    Raises UsageError for a node that is in no part.
    """
    if node is not None and not any(concerns(part, node) for part in explanation.parts):
        known = sorted({name for part in explanation.parts for name in _names(part)})
        near = difflib.get_close_matches(node, known, 3, 0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UsageError(f"no replaced part has a node {node!r}{hint}")
    blocks = [_head(explanation)]
    for part in explanation.parts:
        if node is None or concerns(part, node):
            blocks += _part(part, node)
    return "\n".join(blocks)


def concerns(part: Part, node: str) -> bool:
    """Whether a part has a node, a tensor or a step of this name."""
    return node in _names(part)


def _names(part: Part) -> set[str]:
    found = {name for graph in (part.before, part.after) for n in graph for name in (n.name, *n.outputs)}
    return found | {step.name for step in part.steps}


def _head(explanation: Explanation) -> str:
    number = len(explanation.parts)
    kept = f", {explanation.kept} more left as they were" if explanation.kept else ""
    return f"{explanation.model}: {number} part{'s' if number != 1 else ''} replaced{kept}"


def _part(part: Part, node: str | None) -> Iterable[str]:
    cost = quantity(part.cost, part.unit)
    yield f"\npart {part.name}: {len(part.before)} nodes became {len(part.after)}, expected to cost {cost}"
    if part.note:
        yield f"  {part.note}"
    programs = Programs(part)
    loose = [step for step in part.steps if step.chain < 0]
    for number, chain in enumerate(part.chains):
        steps = [step for step in part.steps if step.name in chain.plan]
        if node is None or _in_chain(part, chain, steps, node):
            yield from _chain(part, programs, chain, [s for s in steps if s.chain == number] or steps)
    for step in loose:
        if node is None or node in (step.name, *step.nodes):
            yield from _plan_step(step, part.unit)


def _in_chain(part: Part, chain: Chain, steps: Sequence[PlanStep], node: str) -> bool:
    names = {chain.tensor, *chain.covered, *chain.nodes, *chain.plan, *(name for step in steps for name in step.nodes)}
    outputs = {name: n.outputs for n in (*part.before, *part.after) for name in [n.name]}
    return node in names or any(node in outputs.get(name, ()) for name in names)


def _chain(part: Part, programs: Programs, chain: Chain, steps: Sequence[PlanStep]) -> Iterable[str]:
    operators = {n.name: n.operator for n in part.before}
    made = ", ".join(f"{name} ({operators[name]})" for name in chain.nodes if name in operators)
    yield f"\n  {chain.tensor}" + (f"  from {made}" if made else "")
    yield from _stages(programs.stages(chain), "    ")
    if not chain.steps:
        yield "    as in the original"
    for step in steps:
        yield from _plan_step(step, part.unit)


def _stages(stages: Sequence[Stage], indent: str) -> Iterable[str]:
    yield from (f"{indent}     {line.plain}" for line in stages[0].lines)
    for number, stage in enumerate(stages[1:], 1):
        assert stage.step is not None
        yield f"{indent}{number:>2}. {rule(stage)}"
        if stage.because:
            yield f"{indent}     because these are equal:"
            yield from _stages(stage.because, indent + "       ")
        yield from (f"{indent}   - {line.plain}" for line in stage.gone)
        yield from (f"{indent}   + {line.plain}" for line in stage.lines if line.changed)


def rule(stage: Stage) -> str:
    """The rule of a step with its group and direction."""
    step = stage.step
    if step is None:
        return "original"
    if not step.group:
        return f"{step.rule}: equal in the e-graph, by rules whose chain was not recovered"
    return f"{step.rule} ({step.group}){', from right to left' if step.backwards else ''}"


def _plan_step(step: PlanStep, unit: str) -> Iterable[str]:
    nodes = f" = node {', '.join(step.nodes)}" if step.nodes else ""
    yield f"    step {step.name}{nodes}"
    yield f"      {option(step.chosen, unit)}"
    yield f"      chosen: {step.why}"
    for number, other in enumerate(step.runners_up, 1):
        yield f"      runner-up {number}: {option(other, unit)}"


def option(found: Option, unit: str) -> str:
    """One way to fill a buffer on one line."""
    shown = found.text if len(found.text) <= WIDTH else found.text[: WIDTH - 1] + "…"
    alone, source = quantity(found.cost - found.charge, unit), origin(found.source, found.charge, unit)
    return f"{alone} {source}, {quantity(found.total, unit)} with all it needs: {shown}"
