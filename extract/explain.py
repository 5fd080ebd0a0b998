"""Why a plan computes what its region does, and why it was chosen: chains of rules, costs and runners-up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf

from egraph_opt.egraph.ground import Terms
from egraph_opt.egraph.language import Rule
from egraph_opt.egraph.pattern import CONSTRUCTORS
from egraph_opt.egraph.proof import Proof, Prover
from egraph_opt.egraph.proof_step import ProofStep
from egraph_opt.egraph.snapshot import ENode, Snapshot, no_collection
from egraph_opt.extract.alternatives import Alternative, Problem
from egraph_opt.extract.choose import Choice, totals
from egraph_opt.extract.cost_models import unit_of
from egraph_opt.extract.costs import Costs
from egraph_opt.extract.plans import needed_buffers, step_names
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Call, Compute, Reshape, Source, children, leaves
from egraph_opt.limits import Check, unlimited
from egraph_opt.runtime.explanation import Chain, Option, PlanStep, Term
from egraph_opt.runtime.explanation_programs import expression
from egraph_opt.runtime.quantities import quantity

# Alternatives shown beside the chosen one.
RUNNERS_UP = 3
LETTERS = "abcdefgh"


@dataclass(frozen=True)
class ExplainedPlan:
    """The steps of a plan and the chains that lead to them, over a table of terms; ``labels`` name some terms.

    ``cost`` is the sum of the steps' costs.
    """

    steps: tuple[PlanStep, ...]
    terms: tuple[Term, ...] = ()
    labels: Mapping[str, int] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()
    cost: float = 0.0


def explain_costs(problem: Problem, choice: Choice, costs: Costs, *, prefix: str) -> ExplainedPlan:
    """What every step of a choice costs, what else there was, and why it was not taken.

    ``costs`` are those by which the choice was made; what is told is the cost itself, estimated where not measured.
    """
    names = step_names(problem, choice, prefix)
    plain = replace(costs, certain=False, conv=1.0)
    sums, deciding = totals(problem, plain), totals(problem, costs)
    whole = sum(plain(alternative) for _, alternative in choice.steps)
    steps = []
    for owner, alternative in choice.steps:
        if owner in names:
            chosen = _option(alternative, plain, sums)
            rest = [a for a in problem.alternatives[owner] if a is not alternative]
            others = [option for option in (_option(a, plain, sums) for a in rest) if option.total < inf]
            others = sorted(others, key=lambda option: (option.total, option.text))[:RUNNERS_UP]
            decided = _total(alternative, costs, deciding)
            nearest = min((_total(a, costs, deciding) for a in rest), default=inf)
            why = _why(chosen, others, decided <= nearest * (1 + 1e-9), costs, whole)
            steps.append(PlanStep(names[owner], _operator(alternative.step), (), chosen, tuple(others), why))
    return ExplainedPlan(tuple(steps), cost=whole)


def _total(alternative: Alternative, costs: Costs, sums: Mapping[int, float]) -> float:
    """The cost of an alternative with all it needs, nothing shared; weights folded ahead of time cost nothing."""
    return costs(alternative) + sum(sums.get(need, 0.0) for need in alternative.needs)


def _option(alternative: Alternative, costs: Costs, sums: Mapping[int, float]) -> Option:
    found = costs.profile.best(alternative.text)
    source = "measured" if found is not None and found.samples else "estimated"
    charge = 0.0 if costs.objective is not None or isinstance(alternative.step, Reshape) else STEP_SECONDS
    return Option(described(alternative.step), costs(alternative), _total(alternative, costs, sums), source, charge)


def described(step: Call | Compute | Reshape) -> str:
    """What a step does, to be read by people: its arguments are a, b, c, … with their extents."""
    terms = Terms()
    sources: dict[Source, str] = {}
    buffers = leaves(step.tensor) if isinstance(step, Compute) else children(step)
    for source in buffers:
        if isinstance(source, Source):
            number = len(sources)
            sources.setdefault(source, LETTERS[number] if number < len(LETTERS) else f"a{number}")
    known = {source.name: terms.encode(Source(letter, source.extents), {}) for source, letter in sources.items()}
    number = terms.encode(step, known)

    def text(current: int) -> str:
        node = terms.nodes[current]
        return expression(node.constructor, node.arguments, [text(part) for part in terms.operands(current)])

    told = ", ".join(
        f"{letter}: {_extents(source)}{' constant' if source.constant else ''}" for source, letter in sources.items()
    )
    kind = "kernel " if isinstance(step, Compute) else ""
    return f"{kind}{text(number)}  with {told}" if told else f"{kind}{text(number)}"


def _extents(source: Source) -> str:
    return "×".join(map(str, source.extents)) or "scalar"


def _operator(step: Call | Compute | Reshape) -> str:
    return step.operator if isinstance(step, Call) else "kernel" if isinstance(step, Compute) else "Reshape"


def _why(chosen: Option, others: list[Option], decided: bool, costs: Costs, whole: float) -> str:
    """Why an alternative was chosen; ``decided``: by the costs that decided it is the cheapest with all it needs."""
    if not others:
        return "there is no other way that can be run and that is worth considering"
    if chosen.total <= others[0].total:
        ratio = others[0].total / chosen.total if chosen.total > 0 else 1.0
        next_best = f"takes {ratio:.2f} times as long" if ratio >= 1.005 else "takes about as long"
        return f"the cheapest way, with all it needs; the next best {next_best}"
    if not decided:
        return (
            "the cheapest plan as a whole: some of what it needs is there already for other steps"
            f" ({quantity(whole, unit_of(costs.objective))} for the whole plan)"
        )
    if costs.conv != 1.0:
        return (
            "cheapest where a Conv is charged less than it takes alone, since onnxruntime keeps its layout from one"
            " Conv to the next; of the plans made with and without this, this one was faster as a whole model"
        )
    return "the cheapest of what was measured throughout; the others count on steps that are only estimated"


@no_collection()
def explain_plan(
    problem: Problem,
    choice: Choice,
    costs: Costs,
    *,
    prefix: str,
    program: Program,
    snapshot: Snapshot,
    rules: Iterable[Rule],
    check: Check = unlimited,
) -> ExplainedPlan:
    """The same with the chain of rules from the program to every step. ``rules`` are all that may have been used.

    ``check`` is called again and again and may raise to end it.
    """
    return _Explainer(problem, choice, program, Prover(snapshot, program, rules, check)).explained(
        explain_costs(problem, choice, costs, prefix=prefix), step_names(problem, choice, prefix)
    )


class _Explainer:
    """One chain for every buffer of the plan that holds a tensor of the program, over other such buffers."""

    def __init__(self, problem: Problem, choice: Choice, program: Program, prover: Prover) -> None:
        self.problem = problem
        self.program = program
        self.prover = prover
        self.known = prover.known
        self.terms = prover.terms
        self.chosen = dict(choice.steps)
        self.anchors: dict[int, list[str]] = {}
        for name, _ in program.definitions:
            buffer = self.known.owner.get(ENode("Compute", (self.known.snapshot.names[name],)))
            if buffer is not None:
                self.anchors.setdefault(buffer, []).append(name)
        self._expanded: dict[int, int] = {}

    def explained(self, plan: ExplainedPlan, names: Mapping[int, str]) -> ExplainedPlan:
        proofs: list[tuple[str, tuple[int, ...], Proof]] = []
        for owner, alternative in self.chosen.items():
            if owner in self.anchors:
                last = self.anchors[owner][-1]
                goal = self._expand(alternative)
                proofs.append((last, self._made_for(owner), self._proof(last, goal)))
        for name, root in self.problem.roots.items():
            if root not in self.chosen:
                proofs.append((name, (), self._proof(name, self._buffer(root))))
            elif name != self.anchors[root][-1]:
                same = self.terms.held(self.known.named[self.anchors[root][-1]])
                proofs.append((name, (), self._proof(name, same)))
        table, numbers = self._table(proof for _, _, proof in proofs)
        chains: list[Chain] = []
        chain_of: dict[str, int] = {}
        for tensor, owners, proof in proofs:
            made = tuple(names[owner] for owner in owners if owner in names)
            for name in made:
                chain_of.setdefault(name, len(chains))
            steps = tuple(_renumbered(step, numbers) for step in proof.steps)
            covered = self._covered(tensor)
            chains.append(Chain(tensor, covered, (), numbers[proof.start], numbers[proof.goal], steps, made))
        labels = {name: numbers[n] for name, n in self._labels().items() if n in numbers}
        steps_with = tuple(
            PlanStep(s.name, s.operator, s.nodes, s.chosen, s.runners_up, s.why, chain_of.get(s.name, -1))
            for s in plan.steps
        )
        return ExplainedPlan(steps_with, table, labels, tuple(chains), plan.cost)

    def _proof(self, tensor: str, goal: int) -> Proof:
        kept = {self.known.named[self.anchors[owner][-1]] for owner in self.chosen if owner in self.anchors}
        start = self.known.named[tensor]
        return self.prover.prove(self.terms.held(start), self.terms.as_buffer(goal), kept - {start})

    def _buffer(self, owner: int) -> int:
        """The term of a buffer: one of the program's own where there is one."""
        if owner in self.problem.given:
            return self.terms.encode(self.problem.given[owner], {})
        if owner in self.anchors and owner in self.chosen:
            return self.terms.held(self.known.named[self.anchors[owner][-1]])
        if owner not in self._expanded:
            if owner in self.problem.folded:
                # Weights folded ahead of time may be given by each other; any term of theirs will do then.
                self._expanded[owner] = self.known.flattest(owner)
                term = self.problem.folded[owner]
                known = {f"#{need}": self._buffer(need) for need in needed_buffers(term)}
                self._expanded[owner] = self.terms.as_buffer(self.terms.encode(term, known))
            else:
                self._expanded[owner] = self._expand(self.chosen[owner])
        return self._expanded[owner]

    def _expand(self, alternative: Alternative) -> int:
        known = {f"#{need}": self._buffer(need) for need in alternative.needs}
        return self.terms.as_buffer(self.terms.encode(alternative.step, known))

    def _made_for(self, owner: int) -> tuple[int, ...]:
        """The buffer itself and those it needs that the program does not know."""
        found: dict[int, None] = {}
        pending = [owner]
        while pending:
            current = pending.pop()
            if current not in found and current in self.chosen and (current == owner or current not in self.anchors):
                found[current] = None
                pending += self.chosen[current].needs
        return tuple(o for o in self.chosen if o in found)

    def _covered(self, tensor: str) -> tuple[str, ...]:
        """Tensors of the program that a chain takes apart: from its own down to what the plan computes, too."""
        definitions = dict(self.program.definitions)
        kept = {self.anchors[owner][-1] for owner in self.chosen if owner in self.anchors} - {tensor}
        found: set[str] = set()
        pending = [tensor]
        while pending:
            current = pending.pop()
            if current in definitions and current not in found and current not in kept:
                found.add(current)
                pending += [leaf.name for leaf in leaves(definitions[current]) if isinstance(leaf, Source)]
        return tuple(name for name in definitions if name in found)

    def _labels(self) -> dict[str, int]:
        """Names of the program's tensors and weights; the program is what they name."""
        found = dict(self.known.named)
        for node in list(self.terms.nodes):
            if node.constructor == "Source":
                found.setdefault(str(node.arguments[0]), self.terms.add(node))
        return found

    def _table(self, proofs: Iterable[Proof]) -> tuple[tuple[Term, ...], dict[int, int]]:
        """The terms that proofs use, parts before what they are in, and their positions by number."""
        used: set[int] = set()
        for proof in proofs:
            pending = [proof.start, proof.goal]
            pending += [number for step in proof.steps for number in step.terms]
            while pending:
                current = pending.pop()
                if current not in used:
                    used.add(current)
                    pending += self.terms.nodes[current].children
        numbers = {old: new for new, old in enumerate(sorted(used))}
        rows = []
        for old in numbers:
            node = self.terms.nodes[old]
            rest = [str(numbers[child]) for child in node.children]
            sorts = (sort in ("Tensor", "Buffer", "Args") for sort in CONSTRUCTORS[node.constructor][0])
            arguments = (rest.pop(0) if is_term else str(a) for a, is_term in zip(node.arguments, sorts, strict=True))
            rows.append(Term(node.constructor, tuple(arguments)))
        return tuple(rows), numbers


def _renumbered(step: ProofStep, numbers: Mapping[int, int]) -> ProofStep:
    """The same step, with other numbers of the terms."""
    return replace(
        step,
        before=numbers[step.before],
        after=numbers[step.after],
        whole=numbers[step.whole],
        given=-1 if step.given < 0 else numbers[step.given],
        because=tuple(_renumbered(inner, numbers) for inner in step.because),
    )
