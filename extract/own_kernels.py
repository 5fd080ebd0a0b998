"""Library calls that a user's own kernel can compute: which they are, and whether the kernel does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egraph_opt.backends.model_timer import Expected, TimedModel, time_each
from egraph_opt.backends.timing_worker import drawn
from egraph_opt.backends.tvm_math import can_apply
from egraph_opt.backends.tvm_own import OwnKernel, own_kernel
from egraph_opt.errors import EgraphOptError
from egraph_opt.extract.trials import expected
from egraph_opt.frontends.onnx_standalone import standalone
from egraph_opt.ir import extensions, library
from egraph_opt.ir.interpreter import FloatArithmetic
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Call, Compute, Source


def has_kernel(call: Call) -> bool:
    """Whether a user gave a kernel for this operator."""
    added = library.ADDED.get(call.operator)
    return added is not None and added.kernel is not None


def kernel_of_call(call: Call) -> OwnKernel:
    """The user's kernel for a call; EgraphOptError, naming the operator, where it cannot compute this one."""
    return own_kernel(call.operator, call.attributes, [a.extents for a in call.arguments], call.extents)


def version(call: Call, called: str) -> str:
    """The key of a call's measurements, which changes with the records behind it."""
    added = library.ADDED.get(call.operator)
    functions = extensions.identity(call)
    if added is None:
        return f"{called} with {functions}" if functions else called
    found = f"{called} by {added.onnx}" if added.onnx is not None else called
    if has_kernel(call):
        try:
            found = f"kernel() {found} by {kernel_of_call(call).name}"
        except EgraphOptError as error:
            found = f"kernel() {found}: {error}"
    return f"{found} with {functions}" if functions else found


def has_code(step: Compute) -> bool:
    """Whether a generated kernel can compute all functions in a body."""
    return all(can_apply(function) for function in extensions.added_functions(step.tensor))


def trial(call: Call, kernel: OwnKernel, opset: int) -> tuple[bytes, Expected]:
    """A model of the kernel alone, and what its operator means for some inputs.

    Raises EgraphOptError where the meaning fails or has other extents.
    """
    sources = tuple(Source(f"a{i}", a.extents) for i, a in enumerate(call.arguments))
    step = Step("y", Call(call.operator, call.attributes, sources, call.extents))
    attributes = library.parse_attributes(call.attributes)
    exact = [value.astype(np.float64) for value in drawn([a.extents for a in call.arguments])]
    meant = library.evaluate(call.operator, attributes, exact, call.extents, FloatArithmetic())
    if meant.shape != call.extents:
        raise EgraphOptError(f"numpy of {call.operator} gives {list(meant.shape)}, its shape {list(call.extents)}")
    model = standalone([step], {"y": kernel.name}, opset=opset)
    return model, expected(np.arange(meant.size), meant.reshape(-1))


def refuse_wrong(call: Call, library_file: Path, opset: int, threads: int | None = None) -> None:
    """Run the user's kernel for a call in a process of its own; EgraphOptError where it is not what its operator is."""
    model, meant = trial(call, kernel_of_call(call), opset)
    ((_, problem),) = time_each(
        [TimedModel(model, library_file, meant)], rounds=1, turn_seconds=0, warm_seconds=0, threads=threads
    )
    if problem:
        raise EgraphOptError(f"the kernel of {call.operator} is not used: {problem}")
