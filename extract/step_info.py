"""What a cost model is told of a step.

A cost model is a function from a :class:`StepInfo` to a number: seconds, bytes, joules, anything that is least for the
program one wants. The steps of a program cost the sum of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan, prod

from egraph_opt.errors import UsageError
from egraph_opt.extract.roofline import FLOAT_BYTES, STEP_SECONDS, Device, call_operations, call_seconds
from egraph_opt.ir import library, printing
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.terms import Call, Compute, Reshape, Source, Tensor

KERNEL, RESHAPE = "kernel", "reshape"
# Operations per element of a softmax: subtract, exponential, divide, and its two reductions.
SOFTMAX_OPERATIONS = 5
# Operators that only move elements.
MOVES = frozenset({"Concat", "Expand", "Gather", "Identity", "Pad", "Slice", "Split", "Transpose"})
_DEVICE, _EXACT = Device(), Device(lanes=1)


@dataclass(frozen=True)
class StepInfo:
    """What a cost model gets: one step, which fills one buffer.

    ``operator`` is an ONNX operator's name, or "kernel" for a generated kernel, or "reshape" for memory under another
    shape, which moves nothing. ``arguments`` are the shapes it reads; ``constant`` tells which of them depend on
    weights only. ``operations`` counts additions, multiplications and other scalar functions (two for a multiply-add);
    ``elements_read`` the elements it has to read at least once. ``measured`` are the seconds it was measured to take on
    the machine in question, if it was.
    """

    operator: str
    attributes: Mapping[str, str] = field(hash=False)
    arguments: tuple[Extents, ...]
    constant: tuple[bool, ...]
    result: Extents
    operations: int
    elements_read: int
    step: Callable[[], Call | Compute | Reshape] = field(repr=False, compare=False)
    expected: Callable[[], float] = field(repr=False, compare=False)
    measured: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds it takes inside a program: as measured, else as the roofline of a typical processor expects."""
        return self.expected() if self.measured is None else STEP_SECONDS + self.measured

    @property
    def is_kernel(self) -> bool:
        return self.operator == KERNEL

    @property
    def is_reshape(self) -> bool:
        return self.operator == RESHAPE

    @property
    def bytes(self) -> int:
        """Bytes of float32 that it reads and writes at least once; none for a reshape."""
        return 0 if self.is_reshape else FLOAT_BYTES * (self.elements_read + prod(self.result))

    @cached_property
    def body(self) -> Tensor | None:
        """What a kernel computes, a term over the buffers it reads; None for other steps."""
        step = self.step() if self.is_kernel else None
        return step.tensor if isinstance(step, Compute) else None

    def __str__(self) -> str:
        inside = ", ".join(map(printing.extents_text, self.arguments))
        return f"{self.operator}({inside}) -> {printing.extents_text(self.result)}"


CostModel = Callable[[StepInfo], float]


def priced(model: CostModel, info: StepInfo) -> float:
    """What a cost model says of a step; raises UsageError where it raises, or that is no cost."""
    try:
        price = float(model(info))
    except Exception as error:  # it may be anybody's
        raise UsageError(f"the cost model raised {type(error).__name__} for {info}: {error}") from error
    if isnan(price) or price < 0:
        raise UsageError(f"the cost model gave {price} for {info}; a cost is a number of at least 0 or infinity")
    return price


def info_of(step: Call | Reshape, weights: Collection[str] = ()) -> StepInfo:
    """What a cost model is told of a library call or a reshape; sources named in ``weights`` are constant, too."""
    sources = step.arguments if isinstance(step, Call) else (step.buffer,)
    shapes = tuple(source.extents for source in sources)
    constant = tuple(isinstance(s, Source) and (s.constant or s.name in weights) for s in sources)
    if isinstance(step, Reshape):
        return StepInfo(RESHAPE, {}, shapes, constant, step.extents, 0, 0, lambda: step, lambda: static_seconds(step))
    attributes = library.parse_attributes(step.attributes)
    operations = _operations(step.operator, attributes, shapes, step.extents)
    read = sum(map(prod, shapes))
    return StepInfo(
        step.operator,
        attributes,
        shapes,
        constant,
        step.extents,
        operations,
        read,
        lambda: step,
        lambda: static_seconds(step),
    )


def static_seconds(step: Call | Reshape) -> float:
    """Seconds that a library call or a reshape should take inside a model."""
    if isinstance(step, Reshape):
        return _DEVICE.reshape_seconds
    shapes = tuple(argument.extents for argument in step.arguments)
    attributes = library.parse_attributes(step.attributes)
    if step.operator in MOVES or library.POINTWISE_ATTRIBUTE in attributes:
        # Operators that only write kernels portably; the library's own costs do not speak of them.
        moved = prod(step.extents) + sum(map(prod, shapes))
        return STEP_SECONDS + _DEVICE.call_seconds + _DEVICE.memory_seconds(moved)
    return STEP_SECONDS + call_seconds(_DEVICE, step.operator, step.attributes, shapes, step.extents)


def _operations(operator: str, attributes: Mapping[str, str], arguments: tuple[Extents, ...], result: Extents) -> int:
    """Scalar operations of a library call, its bias and what it applies at the end included."""
    if operator in library.ADDED:
        record = library.lookup(operator)
        return round(record.flops(*arguments, **record.typed(attributes))) if record.flops is not None else prod(result)
    if operator in MOVES:
        return 0
    if library.POINTWISE_ATTRIBUTE in attributes:
        return prod(result)
    functions = len([text for text in attributes.get(library.EPILOGUE_ATTRIBUTE, "").split("|") if text])
    bias = len(arguments) > 2 and operator in ("Conv", "ConvTranspose", "Gemm")
    match operator:
        case "AveragePool":
            own = prod(result) * prod(library.integers(attributes["kernel_shape"]))
        case "Softmax":
            own = SOFTMAX_OPERATIONS * prod(result)
        case _:
            own = call_operations(_EXACT, operator, attributes, arguments, result)
    return own + (functions + bias) * prod(result)
