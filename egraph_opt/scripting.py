"""E-graphs for scripts: encode a model or an expression, saturate, ask, extract.

::

    x, v, w = tensor("x", (64, 8)), tensor("v", (8, 64)), tensor("w", (64, 8))
    egraph = EGraph.of((x @ v) @ w)
    print(egraph.saturate())  # stop reason, rounds, matches and e-nodes per rule
    print(egraph.extract(cost=lambda step: step.operations))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from egraph_opt import packs
from egraph_opt.egraph import engine
from egraph_opt.egraph.language import Rule, RuleGroup
from egraph_opt.egraph.lookup import Lookup, Texts
from egraph_opt.egraph.provenance import DerivedProgram, programs
from egraph_opt.egraph.saturate import Budget, Round, Saturation, saturate
from egraph_opt.egraph.snapshot import Snapshot
from egraph_opt.egraph.soundness import Verdict, judge
from egraph_opt.errors import UsageError, one_line
from egraph_opt.exploration import free_prefix
from egraph_opt.extract.step_info import CostModel, StepInfo
from egraph_opt.extracted import Extracted, ExtractedModel, Home, extract
from egraph_opt.ir import printing
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.expression import Expression, sources, to_program
from egraph_opt.ir.interpreter import Arithmetic, FloatArithmetic
from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Read
from egraph_opt.packs import Pack, Selection
from egraph_opt.rules.schedule import GROUPS, SIMPLIFICATION, Phase, schedule

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EGraph",
    "Extracted",
    "ExtractedModel",
    "Members",
    "Model",
    "Saturation",
    "StepInfo",
]

# Rounds of a group that is named without a number of them.
ROUNDS = 8

Groups = str | Selection | Sequence[RuleGroup | Rule | tuple[Rule, ...] | Phase | Pack | str]


@dataclass(frozen=True)
class Members:
    """One class: the ``shape`` of its tensors, its e-nodes as texts over the smallest terms below, shortest first.

    ``programs`` are the smallest program around each library call that can compute it, with the rules that made it.
    """

    shape: Extents
    enodes: tuple[str, ...]
    programs: tuple[DerivedProgram, ...]

    def __contains__(self, text: object) -> bool:
        return text in self.enodes

    def __iter__(self) -> Iterator[str]:
        return iter(self.enodes)

    def __len__(self) -> int:
        return len(self.enodes)

    @property
    def operators(self) -> tuple[str, ...]:
        """The library operators that can compute it, each once."""
        return tuple(sorted({program.call.operator for program in self.programs}))

    def __str__(self) -> str:
        lines = [f"{len(self.enodes)} e-nodes of shape {printing.extents_text(self.shape)}"]
        lines += [f"  {text}" for text in self.enodes]
        lines.append(f"{len(self.programs)} programs with library calls")
        for program in self.programs:
            lines += [f"  {printing.term_text(program.term)}", f"    by {' > '.join(program.rules) or 'no rule'}"]
        return "\n".join(lines)


class EGraph:
    """An e-graph of one tensor program; make it with :meth:`of`, or :meth:`of_model` for the regions of a model.

    It may be saturated several times, with other rules and budgets, and asked at any time.
    """

    def __init__(self, program: Program, *, home: Home | None = None) -> None:
        self.program = program
        self.home = home
        self.engine = engine.EGraph()
        self.engine.add_program(program)
        self.saturations: list[Saturation] = []
        self._simplification = SIMPLIFICATION
        self._all = program
        self._snapshot: Snapshot | None = None

    @classmethod
    def of(cls, program: Expression | Mapping[str, Expression] | Program) -> EGraph:
        """The e-graph of an expression, of several by name, or of a program.

        The output of a single expression is called ``y``, or ``result`` where an input has that name.
        """
        return cls(program if isinstance(program, Program) else to_program(program))

    @staticmethod
    def of_model(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Model:
        """The e-graphs of an ONNX model, one for each region inside the algebra; see :class:`Model`.

        Raises InputRejected for a model that cannot be read.
        """
        return Model(model)

    def saturate(
        self,
        groups: Groups | None = None,
        *,
        plus: Sequence[RuleGroup] = (),
        rounds: int | None = None,
        enodes: int = 200_000,
        seconds: float = 60.0,
        progress: Callable[[Round], None] | None = None,
    ) -> Saturation:
        """Apply rules until nothing new appears or a limit is hit; then what was found so far counts.

        ``groups`` chooses them: all built-in ones in their phases by default; a selection such as
        ``"+mine.py,-epilogue"``; or a sequence of groups, rules, packs, phases and names of built-in groups, which then
        run alone and in this order, each until it adds nothing, at most ``rounds`` times (8 without). ``plus`` adds
        groups to the built-in ones. Simplifications run between all rounds. ``rounds`` also bounds every phase of the
        built-in rules, ``enodes`` and ``seconds`` the whole.

        The result prints as a table: e-nodes of every round, matches and new e-nodes of every rule. Raises UsageError
        for an unknown name, EgraphOptError naming the rule where a rule's Python function raises.
        """
        phases, self._simplification = _phases(groups, plus, rounds)
        self._snapshot = None
        budget = Budget(enodes, seconds)
        done = saturate(self.engine, phases, self._simplification, budget=budget, progress=progress)
        done.made = dict(self.snapshot.made)
        self.saturations.append(done)
        return done

    @property
    def snapshot(self) -> Snapshot:
        """All classes as they are now."""
        if self._snapshot is None:
            self._snapshot = Snapshot(self.engine)
        return self._snapshot

    def __len__(self) -> int:
        """Number of e-nodes."""
        return self.engine.size()

    def add(self, expression: Expression | Mapping[str, Expression]) -> None:
        """Add expressions over the same sources, as if they were part of the program; they are simplified at once.

        Raises UsageError where a source is known under another shape or kind, or a name is taken.
        """
        self._add(expression if isinstance(expression, Mapping) else {self._fresh("added"): expression})

    def equal(self, one: Expression | str, other: Expression | str) -> bool:
        """Whether two expressions, or tensors of the program by name, are in one class: known to be equal.

        An expression that the e-graph does not hold is added and simplified first; no other rules are run.
        """
        if isinstance(one, Expression) and isinstance(other, Expression) and one.shape != other.shape:
            return False
        for expression in (one, other):
            self._class(expression)
        return self._class(one) == self._class(other)

    def members(self, expression: Expression | str | None = None) -> Members:
        """The class of an expression, of a tensor of the program by name, or of the first output."""
        owner = self._class(self.program.outputs[0] if expression is None else expression)
        snapshot = self.snapshot
        found = tuple(programs(snapshot, self._all, owner))
        return Members(snapshot.extents[owner], Texts(snapshot).members(owner), found)

    def text(self, expression: Expression | str | None = None) -> str:
        """The program as a let-list; or the class of an expression, or of a tensor by name, see :meth:`members`."""
        return printing.program_text(self.program) if expression is None else str(self.members(expression))

    def extract(self, cost: CostModel | str = "static", *, portable: bool = True) -> Extracted:
        """The cheapest program that computes all outputs; buffers that several steps read are paid once.

        ``cost`` is "static" (seconds that a step should take on a processor like those it was tuned on), "traffic",
        "energy", "launches", "memory" (the sum of all buffers) or a function of one step (:mod:`egraph_opt.costs`) that
        returns a number of at least 0, infinity for what must not be used. It gets a
        :class:`StepInfo` with ``operator`` (an ONNX operator, "kernel" or "reshape"), ``attributes``, ``arguments``
        (shapes), ``constant`` (which of them depend on weights only), ``result`` (shape), ``operations``, ``bytes``,
        and ``body``, the term of a kernel. What depends on weights only is computed ahead of time and costs nothing.
        The program consists of standard ONNX operators; with ``portable=False`` generated kernels are steps of their
        own, priced as such.

        Choosing is NP-hard with shared buffers: the result is the best tree, improved by exchanges.
        """
        names = [*(source.name for source in sources(self.program)), *(name for name, _ in self.program.definitions)]
        prefix = f"{self.home.prefix}{self.home.region.index}s" if self.home is not None else free_prefix(names)
        return extract(self.snapshot, self.program, cost, portable=portable, prefix=prefix, home=self.home)

    def run_egglog(self, text: str) -> list[str]:
        """Run egglog commands (short ones) on this e-graph and return what they print.

        The sorts are ``Tensor``, ``Buffer`` (an array in memory) and ``Args``; the constructors::

            (Named String) Tensor            a tensor of the program by name: (Named "y")
            (Read Buffer) Tensor             (Compute Tensor) Buffer          there and back
            (View Tensor String) Tensor      re-indexed by the text of an index map
            (Sum Tensor i64) Tensor          over that many last axes; (Reduce String Tensor i64) by "max" or "min"
            (Mul Tensor Tensor) Tensor       (Add Tensor Tensor) Tensor
            (Apply1 String Tensor) Tensor    (Apply2 String Tensor Tensor) Tensor    scalar functions by name
            (Softmax Tensor i64) Tensor      (Fill String String) Tensor      a value such as "1/2", extents "4,8"
            (Source String String String) Buffer     name, extents, "input" or "constant"
            (Call String String Args String) Buffer  operator, attributes, arguments, extents
            (Reshape Buffer String) Buffer   (Nil) Args    (Cons Buffer Args) Args

        A rule that unions must hold for all extents; :meth:`judge` finds those that do not. It is named in explanations
        where it records ``(derived "name" (NView …) (NSum …))``: the e-nodes it started from and made, as the
        constructors with N before their names. Raises UsageError with egglog's message for a command that fails.
        """
        self._snapshot = None
        try:
            return [_shown(output) for output in self.engine.run_text(text)]
        except Exception as error:  # egglog raises a class of its own
            raise UsageError(f"egglog: {one_line(str(error))}") from error

    def judge(self, *, seed: int = 0, arithmetic: Arithmetic | None = None) -> Verdict:
        """Evaluate every e-node for random sources and compare within each class: are all rules right here?

        In exact arithmetic modulo a prime, unless another is given. ``verdict.mismatches`` are the e-nodes that differ,
        with the rules known to have made them.
        """
        generator = np.random.default_rng(seed)
        snapshot = self.snapshot
        arrays: dict[str, Any] = {}
        for owner, nodes in snapshot.classes.items():
            for node in nodes:
                if node.constructor == "Source":
                    shape = snapshot.extents[owner]
                    floats = isinstance(arithmetic, FloatArithmetic)
                    drawn = generator.standard_normal(shape) if floats else generator.integers(0, 1 << 20, shape)
                    arrays[str(node.arguments[0])] = drawn
        return judge(snapshot, arrays, arithmetic)

    def _class(self, expression: Expression | str) -> int:
        if isinstance(expression, str):
            if expression in self.snapshot.names:
                return self.snapshot.names[expression]
            match = next((s for s in sources(self._all) if s.name == expression), None)
            if match is None:
                raise UsageError(f"no tensor is named {expression!r}; known: {', '.join(self.snapshot.names)}")
            expression = Expression(match.name, (), lambda: Read(match), match)
        defined = {name for name, _ in self._all.definitions}
        found = Lookup(self.snapshot, defined).find(expression.term)
        if found is None:
            name = self._fresh("added")
            self._add({name: expression})
            found = self.snapshot.names[name]
        return found

    def _fresh(self, stem: str) -> str:
        taken = {source.name for source in sources(self._all)} | {name for name, _ in self._all.definitions}
        return next(name for number in range(len(taken) + 1) if (name := f"{stem}{number}") not in taken)

    def _add(self, expressions: Mapping[str, Expression]) -> None:
        added = to_program(expressions, stem=self._fresh("added") + "t")
        known = {source.name: source for source in sources(self._all)}
        shapes = {name: term.extents for name, term in self._all.definitions}
        for name, _ in added.definitions:
            if name in known or name in shapes:
                raise UsageError(f"the name {name!r} is taken; choose another")
        for source in sources(added):
            if source != known.get(source.name, source) or source.extents != shapes.get(source.name, source.extents):
                raise UsageError(f"{source.name!r} is known with another shape, or as a weight and not as an input")
        new = tuple(s for s in added.inputs if s.name not in known and s.name not in shapes)
        self.engine.add_program(replace(added, outputs=()), known=shapes)
        constants = {**added.constants, **self._all.constants}
        self._all = replace(
            self._all,
            inputs=(*self._all.inputs, *new),
            definitions=(*self._all.definitions, *added.definitions),
            constants=constants,
        )
        self.engine.add_rules([self._simplification])
        self.engine.run(self._simplification.name, until_saturated=True)
        self._snapshot = None


class Model:
    """A model as e-graphs: ``regions`` inside the algebra, and the nodes outside it with the reason why.

    ``for egraph in model`` goes through the regions; :meth:`saturate` and :meth:`extract` do all of them.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> None:
        from egraph_opt.frontends.onnx_reader import load
        from egraph_opt.frontends.regions import partition

        self._loaded = load(model)
        parts = partition(self._loaded)
        prefix = free_prefix(self._loaded.names)
        worthwhile = [region for region in parts.regions if region.worthwhile]
        homes = [Home(self._loaded, parts.regions, region, prefix) for region in worthwhile]
        self.regions = tuple(EGraph(home.region.program, home=home) for home in homes)
        self.outside: Mapping[str, str] = {
            self._loaded.nodes[i].name or f"node {i}": reason for i, reason in parts.opaque.items()
        }

    def __iter__(self) -> Iterator[EGraph]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    def saturate(self, groups: Groups | None = None, **options: Any) -> list[Saturation]:
        """Saturate every region, each with the whole budget; see :meth:`EGraph.saturate`."""
        return [egraph.saturate(groups, **options) for egraph in self.regions]

    def extract(self, cost: CostModel | str = "static", *, portable: bool = True) -> ExtractedModel:
        """The cheapest program of every region; see :meth:`EGraph.extract`."""
        return ExtractedModel(tuple(egraph.extract(cost, portable=portable) for egraph in self.regions), self._loaded)


def _phases(
    groups: Groups | None, plus: Sequence[RuleGroup], rounds: int | None
) -> tuple[tuple[Phase, ...], RuleGroup]:
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds is at least 1, not {rounds}")
    simplification = SIMPLIFICATION
    if groups is None:
        found = list(schedule(plus))
    elif plus:
        raise UsageError("plus adds to the built-in groups; with a choice of groups add them to that choice")
    elif isinstance(groups, str | Selection):
        selection = packs.select(groups) if isinstance(groups, str) else packs.registered(groups)
        found, simplification = list(selection.phases), selection.simplification
    else:
        found = [phase for item in groups for phase in _alone(item)]
        found = [replace(phase, rounds=rounds or phase.rounds) for phase in found]
    return tuple(replace(p, rounds=min(p.rounds, rounds)) if rounds else p for p in found), simplification


def _alone(item: object) -> list[Phase]:
    match item:
        case Phase():
            return [item]
        case RuleGroup():
            return [Phase(item, ROUNDS)]
        case Rule():
            return [Phase(RuleGroup(f"only-{item.name}", (item,)), ROUNDS)]
        case tuple():
            return [phase for rule in item for phase in _alone(rule)]
        case str():
            return _alone(packs.load(item))
        case Pack():
            packs.registered(Selection((item,)))
            return [Phase(group, ROUNDS) for group in item.groups if group is not SIMPLIFICATION]
        case _:
            pass
    known = ", ".join(group.name for group in GROUPS)
    raise UsageError(f"{item!r} is no rule group; give groups, rules, packs or names: {known}")


def _shown(output: Any) -> str:
    report = getattr(output, "report", None)
    if report is None or not hasattr(report, "num_matches_per_rule"):
        return str(output).strip()
    matches = ", ".join(f"{name} {number}" for name, number in sorted(report.num_matches_per_rule.items()))
    return f"{'changed' if report.updated else 'unchanged'}; matches: {matches or 'none'}"
