"""The generated kernels of an optimized model: what each computes, how its loops are arranged, and what it costs.

They are kept in the model's metadata, as data, so that a kernel can be looked at, and arranged anew, from the written
model alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egraph_opt.backends import tvm_trace
from egraph_opt.backends.tvm_build import AnyKernel, Kernel
from egraph_opt.errors import EgraphOptError, InputRejected, UsageError
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.profile import KERNEL, Measurement, Profile
from egraph_opt.extract.profiler import HIGHEST_OPSET, Profiler
from egraph_opt.frontends.onnx_metadata import put
from egraph_opt.ir import plain, printing
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Compute, Source
from egraph_opt.runtime import records

if TYPE_CHECKING:
    import onnx

# The metadata entry of the model that holds its kernels.
KEY = "egraph_opt.kernels"
# What may come out of the compressed entry, in bytes: files come from anywhere.
LARGEST = 1 << 26


@dataclass(frozen=True)
class KernelRecord:
    """A kernel of a model: nodes that run it, and seconds of one run (0: never measured).

    ``body`` is JSON of ``ir.plain``; of a user's own kernel it is empty, and ``operator`` says which it is.
    """

    name: str
    arguments: tuple[Extents, ...]
    extents: Extents
    schedule: str = ""
    body: str = ""
    operator: str = ""
    nodes: int = 1
    seconds: float = 0.0

    @property
    def kernel(self) -> Kernel:
        """The kernel itself. Raises EgraphOptError for a user's own, InputRejected for a damaged record."""
        if not self.body:
            raise EgraphOptError(
                f"{self.name} is the user's own kernel of {self.operator}; its code is not in the model"
            )
        body = plain.from_json(self.body)
        if tvm_trace.is_trace(self.schedule):
            tvm_trace.checked(self.schedule)
        inputs = tuple(Source(f"in{i}", extents) for i, extents in enumerate(self.arguments))
        return Kernel(body, inputs, self.schedule, self.extents if self.extents != body.extents else None)

    @property
    def algebra(self) -> str:
        """What it computes in index notation, or whose kernel it is."""
        return printing.term_text(plain.from_json(self.body)) if self.body else f"the kernel of {self.operator}"

    @property
    def arrangement(self) -> str:
        """The schedule in a few words."""
        if not tvm_trace.is_trace(self.schedule):
            return self.schedule or ("default" if self.body else "own")
        return f"trace of {len(tvm_trace.checked(self.schedule)[0])} instructions"


def attach(model: onnx.ModelProto, kernels: Iterable[AnyKernel], profile: Profile) -> None:
    """Put the records of a model's kernels into it."""
    uses = Counter(node.op_type for node in model.graph.node)
    rows = [asdict(_record(kernel, uses[kernel.name], profile)) for kernel in kernels]
    put(model, KEY, records.packed(rows) if rows else None)


def unpacked(text: str) -> list[KernelRecord]:
    """The kernels in a model's metadata, most costly first. Raises InputRejected for anything else."""
    rows = records.unpacked(text, what="the kernels", largest=LARGEST)
    if not isinstance(rows, list):
        raise InputRejected("the kernels in the model are no list")
    try:
        found = [_read(row) for row in rows]
    except (ValueError, TypeError, LookupError) as error:
        raise InputRejected(f"the kernels in the model cannot be read: {error}") from error
    return sorted(found, key=lambda record: (-record.seconds * record.nodes, record.name))


def timed(kernel: Kernel, schedules: Sequence[str], compiler: Path, threads: int | None) -> list[Measurement]:
    """What a kernel takes under some schedules, each held against the interpreter first; with the error where it fails.

    They are timed in turns, by onnxruntime.
    """
    profiler = Profiler(Profile(None, "this machine"), compiler, threads, HIGHEST_OPSET)
    step = Step("y", Compute(kernel.body), kernel.shape)
    key = signature(step.buffer)
    profiler.schedules = {key: schedules}
    profiler.measure([(key, step)], lambda _, __: None)
    found = (profiler.profile.measured_as(key, KERNEL + schedule) for schedule in schedules)
    return [Measurement(key, "", (), "it was not timed") if entry is None else entry for entry in found]


def chosen(records: Sequence[KernelRecord], name: str) -> KernelRecord:
    """The kernel of a name, of the beginning of one, or of a position from 1. Raises UsageError where there is none."""
    if name.isdecimal() and 1 <= int(name) <= len(records):
        return records[int(name) - 1]
    found = [record for record in records if record.name == name] or [r for r in records if r.name.startswith(name)]
    if len(found) != 1:
        known = ", ".join(record.name for record in found or records)
        raise UsageError(f"{'several kernels are' if found else 'no kernel is'} called {name!r}; known: {known}")
    return found[0]


def _record(kernel: AnyKernel, nodes: int, profile: Profile) -> KernelRecord:
    record = KernelRecord(kernel.name, kernel.arguments, kernel.extents, nodes=nodes)
    if not isinstance(kernel, Kernel):
        return replace(record, operator=kernel.operator)
    measured = profile.best(signature(Compute(kernel.body)))
    seconds = measured.seconds if measured is not None and measured.samples else 0.0
    return replace(record, schedule=kernel.schedule, body=plain.to_json(kernel.body), seconds=seconds)


def _read(row: dict[str, Any]) -> KernelRecord:
    shapes = tuple(tuple(int(n) for n in extents) for extents in row["arguments"])
    record = KernelRecord(**{**row, "arguments": shapes, "extents": tuple(int(n) for n in row["extents"])})
    texts = (record.name, record.schedule, record.body, record.operator)
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.nodes, int):
        raise ValueError("a kernel is described by texts")
    return replace(record, seconds=float(record.seconds))
