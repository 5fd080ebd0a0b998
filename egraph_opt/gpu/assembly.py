"""Programs put together from sketches of their parts and the fastest way to do every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.profile import Profile
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.gpu.files import Bundle, Folding, Module, Program, ProgramStep, Sketch, Work
from egraph_opt.ir import library, plain
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.interpreter import FloatArithmetic, evaluate

Array = np.ndarray[Any, Any]


def best_program(bundle: Bundle, profile: Profile, weights: Mapping[str, Array], *, kernels: bool = True) -> Program:
    """The program of the bundle's plans whose steps take least together, as measured. ``weights`` are the model's.

    Without ``kernels`` it has library calls only. Raises EgraphOptError where no plan is measured as a whole.
    """
    ways: dict[str, tuple[float, Work]] = {}
    for work in bundle.works:
        found = profile.measured_as(work.signature, work.implementation)
        if found is None or (work.is_kernel and not kernels):
            continue
        if found.seconds < (ways[work.signature][0] if work.signature in ways else inf):
            ways[work.signature] = found.seconds, work
    chosen: list[Sketch] = []
    total = 0.0
    for part in bundle.parts:
        seconds, best = min(((_seconds(sketch, ways), number) for number, sketch in enumerate(part)), default=(inf, 0))
        if seconds == inf:
            raise EgraphOptError(f"no plan of {bundle.model} is measured as a whole")
        chosen.append(part[best])
        total += seconds
    constants = {**bundle.constants, **weights}
    for sketch in chosen:
        constants |= folded(sketch.foldings, constants)
    works = {signature: work for signature, (_, work) in ways.items()}
    whole = assembled(chosen, works, bundle.inputs, bundle.outputs)
    return program(bundle.model, bundle.architecture, bundle.inputs, whole, constants, bundle.modules, profile, total)


def _seconds(sketch: Sketch, ways: Mapping[str, tuple[float, Work]]) -> float:
    steps = [step.signature for step in sketch.steps if step.signature]
    return sum(STEP_SECONDS + ways[text][0] if text in ways else inf for text in steps)


def assembled(
    sketches: Sequence[Sketch], works: Mapping[str, Work], inputs: Mapping[str, Extents], outputs: Sequence[str]
) -> tuple[tuple[ProgramStep, ...], dict[str, str]]:
    """The steps of parts, each after those it reads, and the buffers of the model's outputs."""
    buffers: dict[str, str] = {}
    steps = []
    for sketch in sketches:
        for step in sketch.steps:
            arguments = tuple(buffers.get(name, name) for name in step.arguments)
            work = works[step.signature] if step.signature else None
            steps.append(ProgramStep(step.buffer, arguments, step.extents, work))
        buffers |= {name: buffers.get(buffer, buffer) for name, buffer in sketch.outputs.items()}
    return tuple(steps), {name: buffers.get(name, name) for name in outputs}


def program(
    model: str,
    architecture: str,
    inputs: Mapping[str, Extents],
    whole: tuple[tuple[ProgramStep, ...], dict[str, str]],
    constants: Mapping[str, Array],
    modules: Sequence[Module],
    profile: Profile,
    seconds: float,
) -> Program:
    """A program with those constants that it reads."""
    steps, outputs = whole
    read = {name for step in steps for name in step.arguments} | set(outputs.values())
    kept = {name: np.asarray(value, np.float32) for name, value in sorted(constants.items()) if name in read}
    return Program(model, architecture, inputs, steps, outputs, kept, tuple(modules), profile.device, seconds)


def folded(foldings: Sequence[Folding], constants: Mapping[str, Array]) -> dict[str, Array]:
    """The values of foldings, each after those it reads, computed in float64."""
    values: dict[str, Array] = {}
    for folding in foldings:
        arguments = [
            np.asarray(values[name] if name in values else constants[name], dtype=np.float64)
            for name in folding.arguments
        ]
        if folding.body:
            found = evaluate(plain.from_json(folding.body), {f"in{i}": value for i, value in enumerate(arguments)})
        elif folding.operator:
            given = library.parse_attributes(folding.attributes)
            found = library.evaluate(folding.operator, given, arguments, folding.extents, FloatArithmetic())
        else:
            (found,) = arguments
        values[folding.buffer] = found.reshape(folding.extents)
    return {name: value.astype(np.float32) for name, value in values.items()}
