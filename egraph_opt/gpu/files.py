"""Bundles (what is to be measured on a GPU) and programs (what runs there), each one zip file of JSON, arrays and code.

Reading one runs nothing, but measuring a bundle and running a program run its kernels on the GPU.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from egraph_opt.errors import InputRejected
from egraph_opt.ir.expr import Extents
from egraph_opt.ir.memory import Fill, MemoryPlan, lifetimes, plan_buffers
from egraph_opt.runtime.artifacts import Publication
from egraph_opt.runtime.records import from_plain, to_plain

SCHEMA = 2
LIBRARY, KERNEL = "library", "kernel "
# The mode of profiles of CUDA kernels.
MODE = "cuda"
FLOAT_BYTES = 4
# Bytes of one member; members are read one by one.
LARGEST_MEMBER = 1 << 33
LARGEST_TEXT = 1 << 28

Array = np.ndarray[Any, Any]
Record = TypeVar("Record")


@dataclass(frozen=True)
class LibraryCall:
    """Fill ``buffer`` from the buffers ``arguments`` by a library operator, or one of gpu.moves."""

    buffer: str
    operator: str
    attributes: str
    arguments: tuple[str, ...]
    extents: Extents


@dataclass(frozen=True)
class Work:
    """One way to do one step: library calls, one after the other, or a kernel.

    ``signature`` names the step and ``implementation`` the way, as in a profile database. The arguments are buffers
    ``in0``, ``in1`` … of ``calls``, and the last call fills the result. A kernel is the function ``kernel`` of machine
    code number ``module``, launched with ``blocks`` of ``threads``. ``body`` says what a kernel step computes (see
    ir.plain). ``estimate`` is the static cost in seconds.
    """

    signature: str
    implementation: str
    arguments: tuple[Extents, ...]
    result: Extents
    calls: tuple[LibraryCall, ...] = ()
    kernel: str = ""
    module: int = -1
    blocks: int = 0
    threads: int = 0
    body: str = ""
    estimate: float = 0.0

    @property
    def is_kernel(self) -> bool:
        return bool(self.kernel)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of the device: registers a thread, bytes of spills and stack a thread, of memory a block."""

    registers: int
    spilled: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Module:
    """Machine code of some kernels for one architecture, with its CUDA source and what each kernel takes."""

    cubin: bytes
    source: str
    resources: Mapping[str, Resources] = field(default_factory=dict)


@dataclass(frozen=True)
class SketchStep:
    """Fill ``buffer`` from the buffers ``arguments`` in some way; without signature by the first one's memory,
    reshaped.
    """

    buffer: str
    arguments: tuple[str, ...]
    extents: Extents
    signature: str = ""


@dataclass(frozen=True)
class Folding:
    """``buffer`` is computed ahead of time: by ``body`` (see ir.plain), by an operator, or it is the first argument
    reshaped.
    """

    buffer: str
    arguments: tuple[str, ...]
    extents: Extents
    body: str = ""
    operator: str = ""
    attributes: str = ""


@dataclass(frozen=True)
class Sketch:
    """One way to compute a part of a model; ``outputs`` gives the buffer that holds each tensor the part is for.

    What no step and no folding fills are tensors of other parts, inputs and weights of the model.
    """

    steps: tuple[SketchStep, ...]
    outputs: dict[str, str]
    foldings: tuple[Folding, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """All ways to do the steps that plans of a model may have.

    ``parts`` are those of the model, each after those it reads, with the plans that promise most; ``constants`` are the
    tensors they need that the model has no weights for.
    """

    model: str
    architecture: str
    works: tuple[Work, ...]
    modules: tuple[Module, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Extents] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    parts: tuple[tuple[Sketch, ...], ...] = ()
    constants: Mapping[str, Array] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, in one step."""
        _write(path, "bundle.json", _head(_Bundle, self), self.modules, self.constants)

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read a file. Raises InputRejected, naming what is wrong."""
        head, modules, constants = _read(path, "bundle.json", _Bundle)
        for work in head.works:
            _check(work, modules, path)
        return cls(**vars(head), modules=modules, constants=constants)


@dataclass(frozen=True)
class ProgramStep:
    """Fill ``buffer`` from the buffers ``arguments``; without ``work`` it is the first argument's memory, reshaped."""

    buffer: str
    arguments: tuple[str, ...]
    extents: Extents
    work: Work | None = None


@dataclass(frozen=True)
class Program:
    """A plan of a whole model: ``inputs`` and ``outputs`` are named as in the model, ``constants`` are its weights.

    ``outputs`` gives the buffer that holds each output.
    """

    model: str
    architecture: str
    inputs: Mapping[str, Extents]
    steps: tuple[ProgramStep, ...]
    outputs: Mapping[str, str]
    constants: Mapping[str, Array]
    modules: tuple[Module, ...]
    device: str = ""
    seconds: float = 0.0

    def memory(self, chosen: Callable[[Work], bool] = lambda _: True) -> MemoryPlan:
        """Places in one arena for what the steps fill by ``chosen`` works; inputs and weights lie elsewhere."""
        fills = [
            Fill(
                step.buffer,
                FLOAT_BYTES * prod(step.extents),
                step.arguments,
                alias=step.arguments[0] if step.work is None else "",
            )
            for step in self.steps
        ]
        left_out = {step.buffer for step in self.steps if step.work is not None and not chosen(step.work)}
        found = lifetimes(fills, self.outputs.values())
        return plan_buffers([item for item in found if item.buffer not in left_out])

    def write(self, path: Path) -> None:
        """Write the file, in one step."""
        _write(path, "program.json", _head(_Program, self), self.modules, self.constants)

    @classmethod
    def read(cls, path: Path) -> Program:
        """Read a file. Raises InputRejected, naming what is wrong."""
        head, modules, constants = _read(path, "program.json", _Program)
        known = {**head.inputs, **{name: tuple(value.shape) for name, value in constants.items()}}
        for step in head.steps:
            missing = [name for name in step.arguments if name not in known]
            if missing or not step.arguments:
                raise InputRejected(f"{path}: step {step.buffer!r} reads {missing or 'nothing'}, which nothing fills")
            if step.work is not None:
                _check(step.work, modules, path)
            known[step.buffer] = step.extents
        lost = [name for name in head.outputs.values() if name not in known]
        if lost:
            raise InputRejected(f"{path}: nothing fills the output buffer {lost[0]!r}")
        return cls(**vars(head), constants=constants, modules=modules)


@dataclass(frozen=True)
class _Bundle:
    model: str
    architecture: str
    works: tuple[Work, ...]
    versions: dict[str, str]
    dropped: dict[str, str]
    inputs: dict[str, Extents]
    outputs: tuple[str, ...]
    parts: tuple[tuple[Sketch, ...], ...]


@dataclass(frozen=True)
class _Program:
    model: str
    architecture: str
    steps: tuple[ProgramStep, ...]
    inputs: dict[str, Extents]
    outputs: dict[str, str]
    device: str
    seconds: float


def _head(record: type[Record], whole: Bundle | Program) -> Record:
    """What of a bundle or program goes into JSON."""
    return record(**{item.name: getattr(whole, item.name) for item in fields(record)})  # type: ignore[arg-type]


def _check(work: Work, modules: Sequence[Module], path: Path) -> None:
    sane = all(n >= 0 for extents in (*work.arguments, work.result) for n in extents)
    code = not work.is_kernel or (0 <= work.module < len(modules) and work.blocks > 0 and 0 < work.threads <= 1024)
    known = {f"in{i}" for i in range(len(work.arguments))}
    for call in work.calls:
        sane &= known.issuperset(call.arguments) and all(n >= 0 for n in call.extents)
        known.add(call.buffer)
    whole = work.is_kernel or bool(work.calls and work.calls[-1].extents == work.result)
    if not (sane and code and whole):
        raise InputRejected(f"{path}: step {work.signature!r} is broken")


def _write(path: Path, head_name: str, head: Any, modules: Sequence[Module], arrays: Mapping[str, Array]) -> None:
    with Publication() as publication, zipfile.ZipFile(publication.stage(path), "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, content: bytes) -> None:
            # A fixed time, so that the same content makes the same file.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)

        resources = [to_plain(dict(module.resources)) for module in modules]
        text = json.dumps(
            {"schema": SCHEMA, "resources": resources, "arrays": list(arrays), **to_plain(head)}, indent=1
        )
        put(head_name, text.encode())
        for i, module in enumerate(modules):
            put(f"modules/{i}.cubin", module.cubin)
            put(f"modules/{i}.cu", module.source.encode())
        for i, value in enumerate(arrays.values()):
            content = io.BytesIO()
            np.save(content, np.ascontiguousarray(value, dtype=np.float32).reshape(value.shape), allow_pickle=False)
            put(f"arrays/{i}.npy", content.getvalue())


def _read(path: Path, head_name: str, record: type[Record]) -> tuple[Record, tuple[Module, ...], dict[str, Array]]:
    try:
        with zipfile.ZipFile(path) as archive:

            def get(name: str, limit: int) -> bytes:
                if archive.getinfo(name).file_size > limit:
                    raise InputRejected(f"{path}: {name} is larger than {limit} bytes")
                return archive.read(name)

            data = json.loads(get(head_name, LARGEST_TEXT))
            if data.pop("schema", None) != SCHEMA:
                raise InputRejected(f"{path} was written by another version of this program")
            resources, names = data.pop("resources"), data.pop("arrays")
            modules = tuple(
                Module(
                    get(f"modules/{i}.cubin", LARGEST_TEXT),
                    get(f"modules/{i}.cu", LARGEST_TEXT).decode(),
                    {name: from_plain(Resources, entry) for name, entry in found.items()},
                )
                for i, found in enumerate(resources)
            )
            arrays = {
                str(name): np.load(io.BytesIO(get(f"arrays/{i}.npy", LARGEST_MEMBER)), allow_pickle=False)
                for i, name in enumerate(names)
            }
            return from_plain(record, data, where=str(path)), modules, arrays
    except InputRejected:
        raise
    except OSError as error:
        raise InputRejected(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputRejected(f"{path} is not such a file: {error}") from error


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays as an npz file, in one step."""
    with Publication() as publication, publication.stage(path).open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def read_arrays(path: Path) -> dict[str, Array]:
    """Read named float32 arrays. Raises InputRejected for anything else."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: np.asarray(found[name], dtype=np.float32) for name in found.files}
    except OSError as error:
        raise InputRejected(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise InputRejected(f"{path} holds no arrays: {error}") from error
