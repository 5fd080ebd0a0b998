"""From a choice of alternatives to a plan: names, constants folded ahead of time, needless reshapes left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.alternatives import Problem, buffer_name
from egraph_opt.extract.choose import Choice
from egraph_opt.ir.interpreter import FloatArithmetic, Interpreter
from egraph_opt.ir.program import Plan, Program, Step, rename
from egraph_opt.ir.terms import Buffer, Call, Compute, Read, Reshape, Source, Tensor, children

# Folded weights may not outgrow this many bytes in total.
FOLDED_BYTES = 1 << 31
# Values in between that are kept for other weights that need them, too.
REMEMBERED_BYTES = 1 << 27


def build_plan(problem: Problem, choice: Choice, program: Program, *, prefix: str) -> Plan:
    """The plan of a choice. Step names begin with ``prefix``.

    Raises EgraphOptError when folded weights get too large.
    """
    return _Builder(problem, choice, program, prefix).plan()


def step_names(problem: Problem, choice: Choice, prefix: str) -> dict[int, str]:
    """Names of the plan's steps by the buffers they fill; reshapes that cost nothing have no step."""
    builder = _Builder(problem, choice, Program((), (), ()), prefix)
    builder._elide_reshapes()
    owners = [owner for owner, _ in choice.steps if owner not in builder.alias]
    return {owner: f"{prefix}{number}" for number, owner in enumerate(owners)}


class _Builder:
    def __init__(self, problem: Problem, choice: Choice, program: Program, prefix: str) -> None:
        self.problem = problem
        self.choice = choice
        self.program = program
        self.prefix = prefix
        self.alias: dict[int, int] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.names: dict[int, str] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.folder = Interpreter({}, FloatArithmetic(np.float64))

    def plan(self) -> Plan:
        self._elide_reshapes()
        steps: list[Step] = []
        for owner, source in self.problem.given.items():
            self.names[owner] = source.name
        for owner, alternative in self.choice.steps:
            if owner in self.alias:
                continue
            self.names[owner] = f"{self.prefix}{len(steps)}"
            buffer = self._renamed(alternative.step)
            shape = self.shapes.get(owner)
            steps.append(Step(self.names[owner], buffer, shape if shape != buffer.extents else None))
        outputs = {name: self._name(owner) for name, owner in self.problem.roots.items()}
        for owner in self.problem.roots.values():
            weight = self.problem.given.get(self.alias.get(owner, owner))
            if weight is not None and weight.constant:  # an output that is a weight of the model
                self.constants[weight.name] = np.asarray(self.program.constants[weight.name])
        used = {source.name for step in steps for source in step.arguments} | set(outputs.values())
        constants = {name: value for name, value in self.constants.items() if name in used}
        return Plan(self.program.inputs, tuple(steps), outputs, constants)

    def _elide_reshapes(self) -> None:
        """Reshapes that only kernels read, that change nothing, or that a kernel can declare itself are aliases."""
        chosen = {owner: alternative.step for owner, alternative in self.choice.steps}
        readers: dict[int, list[int]] = {}
        for owner, alternative in self.choice.steps:
            for need in alternative.needs:
                readers.setdefault(need, []).append(owner)
        roots = set(self.problem.roots.values())

        def strict(owner: int) -> bool:
            """Something reads this buffer under exactly its extents."""
            if owner in roots:
                return True
            for reader in readers.get(owner, ()):
                step = chosen[reader]
                if isinstance(step, Call) or (
                    isinstance(step, Reshape) and step.extents == chosen[owner].extents and strict(reader)
                ):
                    return True
            return False

        for owner, alternative in self.choice.steps:
            step = alternative.step
            if not isinstance(step, Reshape):
                continue
            inner = self.alias.get(alternative.needs[0], alternative.needs[0])
            produced = chosen.get(inner)
            held = self.shapes.get(inner, self.problem.extents[inner])
            if step.extents == held or not strict(owner):
                self.alias[owner] = inner
            elif isinstance(produced, Compute) and inner not in self.shapes and not strict(inner):
                self.alias[owner] = inner
                self.shapes[inner] = step.extents

    def _name(self, owner: int) -> str:
        owner = self.alias.get(owner, owner)
        if owner in self.names:
            return self.names[owner]
        if owner in self.problem.folded:
            name = f"{self.prefix}folded{len(self.constants)}"
            if owner not in self.problem.values:
                self.problem.values[owner] = self._folded(owner).astype(np.float32)
                if sum(value.nbytes for value in self.folder.values.values()) > REMEMBERED_BYTES:
                    self.folder.values.clear()
            self.constants[name] = self.problem.values[owner]
            self.names[owner] = name
            if sum(value.nbytes for value in self.constants.values()) > FOLDED_BYTES:
                raise EgraphOptError("the weights folded ahead of time would take more than 2 GiB")
            return name
        raise EgraphOptError(f"buffer {owner} is read before it is filled")

    def _folded(self, owner: int) -> np.ndarray:
        """Value of a buffer that depends on weights only, in float64."""
        name = buffer_name(owner)
        if name not in self.folder.values:
            source = self.problem.given.get(owner)
            if source is not None:
                self.folder.values[name] = np.asarray(self.program.constants[source.name], dtype=np.float64)
            else:
                term = self.problem.folded[owner]
                for need in needed_buffers(term):
                    self._folded(need)
                value = self.folder.buffer(Compute(term) if isinstance(term, Tensor) else term)
                self.folder.values[name] = value.reshape(self.problem.extents[owner])
        return self.folder.values[name]

    def _argument(self, source: Source) -> Source:
        owner = int(source.name.removeprefix("#"))
        name = self._name(owner)
        if owner in self.problem.given and source.constant:
            self.constants[name] = np.asarray(self.program.constants[name])
        return replace(source, name=name)

    def _renamed(self, step: Call | Compute | Reshape) -> Call | Compute | Reshape:
        match step:
            case Call(operator, attributes, arguments, extents):
                return Call(
                    operator, attributes, tuple(self._argument(a) for a in arguments if isinstance(a, Source)), extents
                )
            case Reshape(Source() as source, extents):
                argument = self._argument(source)
                inner = self.alias.get(int(source.name[1:]), int(source.name[1:]))
                held = self.shapes.get(inner, self.problem.extents[inner])
                return Reshape(replace(argument, extents=held), extents)
            case Compute(tensor):
                names = {buffer_name(need): self._argument(source).name for need, source in _sources(tensor).items()}
                return Compute(rename(tensor, names))
        raise EgraphOptError(f"not a step: {step}")


def _sources(term: Tensor | Buffer) -> Mapping[int, Source]:
    found: dict[int, Source] = {}
    stack: list[Tensor | Buffer] = [term]
    while stack:
        current = stack.pop()
        if isinstance(current, Source):
            found[int(current.name.removeprefix("#"))] = current
        elif isinstance(current, Read):
            stack.append(current.buffer)
        else:
            stack.extend(children(current))
    return dict(sorted(found.items()))


def needed_buffers(term: Tensor | Buffer) -> tuple[int, ...]:
    """The buffers that a step, or what is folded ahead of time, reads."""
    return tuple(_sources(term))
