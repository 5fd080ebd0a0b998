"""All ways to do the steps of plans on a GPU: library calls, and kernels compiled for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from egraph_opt.backends.cuda_build import CODE_VERSION, CudaKernel, CudaSource, cuda_source, modules
from egraph_opt.backends.cuda_schedule import schedules
from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.problem import Alternative, signature
from egraph_opt.extract.roofline import Device, call_seconds
from egraph_opt.frontends.portable import express
from egraph_opt.frontends.strided_views import strided_view
from egraph_opt.gpu.files import KERNEL, LIBRARY, LibraryCall, Module, Work
from egraph_opt.gpu.torch_library import supports
from egraph_opt.ir import library, moves, plain
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Step, kernel_signature
from egraph_opt.ir.terms import Call, Compute, Reshape, Source, Tensor

# Operators that only change how torch walks over memory.
_FREE = moves.FREE | {"Transpose", moves.FILL}


@dataclass
class Works:
    """The works of steps for one GPU architecture, each looked for once; ``device`` describes the GPU.

    ``failed`` says why kernels, by name, have no code.
    """

    architecture: str
    device: Device
    sources: dict[str, CudaSource] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    _known: dict[str, tuple[Work, ...]] = field(default_factory=dict)
    _written: dict[str, Work | None] = field(default_factory=dict)

    @property
    def known(self) -> Mapping[str, tuple[Work, ...]]:
        """The works of all steps that were asked for, by signature."""
        return self._known

    def of(self, alternative: Alternative) -> tuple[Work, ...]:
        """All ways to do a step, kernels first; none for a reshape and for what has no form on a GPU."""
        text, step = alternative.text, alternative.step
        if text not in self._known:
            written = self.library(alternative)
            kernels = self._kernels(text, step.tensor, alternative.estimate) if isinstance(step, Compute) else []
            self._known[text] = (*kernels, *([written] if written is not None else []))
        return self._known[text]

    def library(self, alternative: Alternative) -> Work | None:
        """A step by library calls alone; None where there are none for it."""
        text = alternative.text
        if text not in self._written:
            self._written[text] = library_work(alternative.step, self.device, text)
        return self._written[text]

    def _kernels(self, text: str, tensor: Tensor, estimate: float) -> list[Work]:
        body, sources = kernel_signature(tensor)
        inputs = tuple(Source(f"in{i}", source.extents) for i, source in enumerate(sources))
        found = []
        for schedule in schedules(body):
            kernel = CudaKernel(body, inputs, schedule)
            source = self._source(kernel)
            if source is not None:
                found.append(
                    Work(
                        text,
                        f"{KERNEL}{schedule} code={CODE_VERSION}",
                        kernel.arguments,
                        body.extents,
                        kernel=kernel.name,
                        blocks=source.launch.blocks,
                        threads=source.launch.threads,
                        body=plain.to_json(body),
                        estimate=estimate,
                    )
                )
        return found

    def _source(self, kernel: CudaKernel) -> CudaSource | None:
        if kernel.name not in self.sources and kernel.name not in self.failed:
            try:
                self.sources[kernel.name] = cuda_source(kernel, self.architecture)
            except Exception as error:  # a code generator may raise anything; this is one candidate of many
                self.failed[kernel.name] = one_line(f"{type(error).__name__}: {error}")
        return self.sources.get(kernel.name)

    def compiled(self, works: Sequence[Work]) -> tuple[list[Work], list[Module], dict[str, str]]:
        """The works with their machine code, without those that no GPU runs well, and why those were dropped."""
        names = sorted({work.kernel for work in works if work.is_kernel})
        made, refused = modules([self.sources[name] for name in names], self.architecture) if names else ([], {})
        place = {name: i for i, module in enumerate(made) for name in module.resources}
        kept: list[Work] = []
        dropped: dict[str, str] = {}
        for work in works:
            if not work.is_kernel:
                kept.append(work)
                continue
            problem = refused.get(work.kernel, "")
            if not problem:
                spilled = made[place[work.kernel]].resources[work.kernel].spilled
                problem = f"it spills {spilled} bytes a thread" if spilled else ""
            if problem:
                dropped[f"{work.signature} ({work.implementation})"] = problem
            else:
                kept.append(replace(work, module=place[work.kernel]))
        return kept, made, dropped


def library_work(step: Call | Compute | Reshape, device: Device, text: str = "") -> Work | None:
    """A step by library calls that torch has; None where there are none. ``text`` is its signature if that is known."""
    if isinstance(step, Reshape):
        return None
    body = ""
    if isinstance(step, Compute):
        tensor, found = kernel_signature(step.tensor)
        sources, result = tuple(source.extents for source in found), tensor.extents
        calls = _written(tensor)
        body = plain.to_json(tensor) if calls else ""
    else:
        sources, result = tuple(argument.extents for argument in step.arguments), step.extents
        names = tuple(f"in{i}" for i in range(len(sources)))
        calls = [LibraryCall("out", step.operator, step.attributes, names, step.extents)]
    if not calls or not all(supports(call.operator, call.attributes) for call in calls):
        return None
    text = text or signature(step)
    return Work(text, LIBRARY, sources, result, tuple(calls), body=body, estimate=_seconds(device, sources, calls))


def _written(body: Tensor) -> list[LibraryCall]:
    """A kernel body as calls; none where it has no such form."""
    written = express("out", body, strided_view)
    if written is None:
        return []
    found = []
    for name, value in written.constants.items():
        if value.min() != value.max():
            return []
        found.append(LibraryCall(name, moves.FILL, f"value={value.flat[0]}", (), tuple(value.shape)))
    return found + [_call(step) for step in written.steps]


def _call(step: Step) -> LibraryCall:
    arguments = tuple(source.name for source in step.arguments)
    if isinstance(step.buffer, Call):
        return LibraryCall(step.name, step.buffer.operator, step.buffer.attributes, arguments, step.extents)
    return LibraryCall(step.name, moves.RESHAPE, "", arguments, step.extents)


def _seconds(device: Device, sources: Sequence[Extents], calls: Sequence[LibraryCall]) -> float:
    """What calls should take; the last one writes to memory whatever it is."""
    shapes = {f"in{i}": extents for i, extents in enumerate(sources)}
    total = 0.0
    for call in calls:
        arguments = tuple(shapes[name] for name in call.arguments)
        shapes[call.buffer] = call.extents
        attributes = library.parse_attributes(call.attributes)
        if call.operator in _FREE and call is not calls[-1]:
            continue
        moved = device.call_seconds + device.memory_seconds(prod(call.extents) + sum(map(prod, arguments)))
        known = call.operator not in moves.MOVES and library.POINTWISE_ATTRIBUTE not in attributes
        total += _library_seconds(device, call, arguments, moved) if known else moved
        # What onnxruntime applies within an operator is a call of its own.
        functions = [text for text in attributes.get(library.EPILOGUE_ATTRIBUTE, "").split("|") if text]
        total += len(functions) * (device.call_seconds + device.memory_seconds(2 * prod(call.extents)))
    return total


def _library_seconds(device: Device, call: LibraryCall, arguments: tuple[Extents, ...], moved: float) -> float:
    try:
        return call_seconds(device, call.operator, call.attributes, arguments, call.extents)
    except EgraphOptError:  # an operator that only kernels are written with
        return moved
