"""The explanation of a chosen candidate, put into its model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from string import digits
from typing import TYPE_CHECKING

from egraph_opt.errors import EgraphOptError, LimitReached, one_line
from egraph_opt.extract.cost_models import unit_of
from egraph_opt.extract.costs import CHAINED_CONV
from egraph_opt.extract.explain import ExplainedPlan, explain_costs, explain_plan
from egraph_opt.extract.search import Outcome
from egraph_opt.frontends.onnx_metadata import put
from egraph_opt.limits import Check, Limits
from egraph_opt.runtime.explanation import KEY, Explanation, GraphNode, Part, packed

if TYPE_CHECKING:
    import onnx

    from egraph_opt.candidates import Candidate
    from egraph_opt.egraph.language import Rule
    from egraph_opt.egraph.snapshot import Snapshot
    from egraph_opt.extract.costs import Costs
    from egraph_opt.extract.search import Search
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.ir.program import Plan


# Derivations on record, of all parts together, up to which chains of rules are looked up: so many take some seconds.
LARGEST = 20_000


@dataclass(frozen=True)
class Origins:
    """What a candidate's plans were found in: the saturated regions and the rules that ran, and what steps cost."""

    loaded: LoadedModel
    regions: Sequence[Region]
    searches: Mapping[int, Search]
    snapshots: Mapping[int, Snapshot]
    rules: Sequence[Rule]
    costs: Costs


def explain(
    candidate: Candidate, origins: Origins, *, model: str, version: str, limits: Limits | None = None
) -> tuple[Explanation, list[str]]:
    """The explanation of a candidate's plans, and notes about chains that could not be found.

    At ``limits`` no more chains are looked for, nor beyond LARGEST derivations.
    """
    notes: list[str] = []
    parts = []
    written = _Written.of(origins.loaded, candidate.model)
    check = (limits or Limits()).check
    looked_through = 0
    for region in origins.regions:
        if region.index in candidate.plans:
            derivations = len(origins.snapshots[region.index].derivations)
            fits = looked_through + derivations <= LARGEST
            looked_through += derivations if fits else 0
            parts.append(_part(candidate, region, origins, written, notes, check if fits else _too_large))
    return Explanation(model, tuple(parts), len(origins.regions) - len(parts), version), notes


def attach(model: onnx.ModelProto, explanation: Explanation) -> None:
    """Put an explanation into a model, in the place of one that is there."""
    put(model, KEY, packed(explanation))


def _too_large() -> None:
    raise LimitReached(f"there are more than {LARGEST:,} derivations to look through")


def _part(
    candidate: Candidate, region: Region, origins: Origins, written: _Written, notes: list[str], check: Check
) -> Part:
    search = origins.searches[region.index]
    outcome = _outcome(search, candidate.plans[region.index])
    prefix = outcome.plan.steps[0].name.rstrip(digits) if outcome.plan.steps else search.prefix
    chained, measured = outcome is search.chained, outcome.unmeasured == 0
    costs = replace(origins.costs, certain=measured, conv=CHAINED_CONV if chained else 1.0)
    arguments = (search.problem, outcome.choice, costs)
    note = ""
    found: ExplainedPlan
    try:
        check()
        found = explain_plan(
            *arguments,
            prefix=prefix,
            program=region.program,
            snapshot=origins.snapshots[region.index],
            rules=origins.rules,
            check=check,
        )
    except (EgraphOptError, RecursionError, MemoryError, LookupError, ValueError, AssertionError) as error:
        why = str(error) if isinstance(error, EgraphOptError) else f"{type(error).__name__}: {error}"
        note = f"the chain of rules was not looked up: {one_line(why)}"
        notes.append(f"part {region.index}: {note}")
        found = explain_costs(*arguments, prefix=prefix)
    outputs = {buffer: tensor for tensor, buffer in outcome.plan.outputs.items()}
    nodes = {step.name: written.by(step.name, region, outputs) for step in found.steps}
    made = {name for names in nodes.values() for name in names}
    after = tuple(node for node in written.nodes if node.name in made)
    before = tuple(_graph_node(origins.loaded.nodes[i], i) for i in region.nodes)
    producer = {tensor: node.name for node in before for tensor in node.outputs}
    return Part(
        str(region.index),
        before,
        after,
        tuple(replace(step, nodes=nodes[step.name]) for step in found.steps),
        found.cost,
        found.terms,
        dict(found.labels),
        tuple(
            replace(chain, nodes=tuple(dict.fromkeys(producer[t] for t in chain.covered if t in producer)))
            for chain in found.chains
        ),
        note,
        unit_of(costs.objective),
    )


def _outcome(search: Search, plan: Plan) -> Outcome:
    """The outcome of a search that a plan belongs to."""
    found = (value for value in vars(search).values() if isinstance(value, Outcome) and value.plan is plan)
    outcome = next(found, None)
    if outcome is None:
        raise EgraphOptError("the plan is none of those its search found")
    return outcome


def _graph_node(node: onnx.NodeProto, position: int) -> GraphNode:
    name = node.name or (node.output[0] if node.output else f"node {position}")
    return GraphNode(name, node.op_type, tuple(node.input), tuple(node.output))


@dataclass(frozen=True)
class _Written:
    """The ``nodes`` of a written model that the original does not have, and their positions by the tensors they write,
    as named and without what was added to make a name unique or to name a part of a step.
    """

    nodes: Sequence[GraphNode]
    positions: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, loaded: LoadedModel, model: onnx.ModelProto) -> _Written:
        known = {(node.name, *node.output) for node in loaded.nodes}
        nodes = [
            _graph_node(node, position)
            for position, node in enumerate(model.graph.node)
            if (node.name, *node.output) not in known
        ]
        positions: dict[str, list[int]] = {}
        for position, node in enumerate(nodes):
            for tensor in node.outputs:
                for name in _stems(tensor):
                    positions.setdefault(name, []).append(position)
        return cls(nodes, positions)

    def by(self, step: str, region: Region, outputs: Mapping[str, str]) -> tuple[str, ...]:
        """Names of the nodes that do a plan's step: what they write is named after the step, or is an output of it."""
        names = [f"egraph_opt/{region.index}/{step}", *([outputs[step]] if step in outputs else [])]
        found = sorted({position for name in names for position in self.positions.get(name, ())})
        return tuple(self.nodes[position].name for position in found)


def _stems(tensor: str) -> set[str]:
    """All names such that a tensor is called like one of them, or like it with a number or a part behind."""
    parts = tensor.split("/")
    whole = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return {stem for name in whole for stem in (name, re.sub(r"_[0-9]+$", "", name))}
