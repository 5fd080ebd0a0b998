"""What became of a case: the optimized model against the original, as its users would notice."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from bench.backend_suite.cases import Case
from bench.backend_suite.optimizers import FILE, DoubtfulError, Optimizer, RejectedError
from bench.backend_suite.running import run_case

# From good to bad; "unchanged" is a part of "right" and counted in both.
CLASSES = (
    "right",
    "unchanged",
    "rejected",
    "error",
    "invalid",
    "interface changed",
    "mismatch",
    "crash",
    "hang",
)
# Runs of the original: an output that differs between two of them is random.
RUNS = 3
Dimension = int | str | None


@dataclass(frozen=True)
class Outcome:
    """A class of `CLASSES` ("unchanged" for what is right and has the same nodes) and in words why."""

    kind: str
    reason: str = ""
    # Of optimizing alone.
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether the optimized model can take the original's place."""
        return self.kind in ("right", "unchanged")


@dataclass(frozen=True)
class Reference:
    """What onnxruntime computes for a case with nothing optimized; ``problem`` when it does not run it.

    ``random`` are the outputs, by position, that differ from run to run: only their types and shapes are compared.
    """

    outputs: tuple[Any, ...] = ()
    random: frozenset[int] = frozenset()
    problem: str = ""


def answer(case: Case) -> Reference:
    """The original's answers. Runs in a worker process: onnxruntime may crash on it, too."""
    from egraph_opt.backends.onnxruntime import make_session
    from egraph_opt.errors import InputRejected

    try:
        session = make_session(case.content, threads=1, optimize=False, spin=False)
        first, *others = [run_case(session, case.feeds) for _ in range(RUNS)]
    except InputRejected as error:
        return Reference(problem=str(error))
    random = {i for i, value in enumerate(first) if any(_difference([value], [again[i]]) for again in others)}
    return Reference(tuple(first), frozenset(random))


def judge(case: Case, reference: Reference, optimizer: Optimizer, folder: Path) -> Outcome:
    """Optimize the case into ``folder`` and class the result; crashes and hangs are seen from outside."""
    original = case.model()
    begun = time.monotonic()
    try:
        optimizer.function(case.model(), folder)
    except RejectedError as error:
        return Outcome("rejected", str(error), time.monotonic() - begun)
    except DoubtfulError as error:
        return Outcome("error", str(error), time.monotonic() - begun)
    except Exception as error:
        return Outcome("error", _in_words(error), time.monotonic() - begun)
    seconds = time.monotonic() - begun
    kind, reason = _classify(original, case, reference, folder / FILE)
    return Outcome(kind, reason, seconds)


def _classify(original: onnx.ModelProto, case: Case, reference: Reference, path: Path) -> tuple[str, str]:
    from egraph_opt.backends.onnxruntime import make_session
    from egraph_opt.errors import InputRejected
    from egraph_opt.runtime.artifacts import library_path

    if not path.is_file():
        return "error", "no model was written"
    try:
        model = onnx.load(path)
    except Exception as error:
        return "invalid", f"it cannot be read: {_in_words(error)}"
    complaint = _checked(path)
    if complaint and not _checked(original):
        return "invalid", f"the checker: {complaint}"
    library = library_path(path) if library_path(path).is_file() else None
    try:
        session = make_session(path, kernel_library=library, threads=1, optimize=False, spin=False)
    except InputRejected as error:
        return "invalid", str(error).replace(str(path), "it")
    changed = interface_change(original, model)
    if changed:
        return "interface changed", changed
    try:
        found = run_case(session, case.feeds)
    except InputRejected as error:
        return "invalid", str(error)
    different = _difference(reference.outputs, found, reference.random)
    if different:
        return "mismatch", different
    return ("unchanged" if _nodes(original) == _nodes(model) else "right"), ""


def interface_change(original: onnx.ModelProto, optimized: onnx.ModelProto) -> str:
    """In words what callers notice of inputs and outputs before they run the model; empty when nothing.

    Inputs keep names, order, types and dimensions, weights that may be overridden stay so. Outputs keep names, order,
    types and their known and named dimensions; where the original says nothing, more may be said.
    """
    for kind in ("inputs", "overridable weights", "outputs"):
        before, after = _values(original, kind), _values(optimized, kind)
        if kind == "overridable weights":
            after = {name: entry for name, entry in after.items() if name in before}
        if list(before) != list(after):
            return f"{kind} {', '.join(before)} became {', '.join(after) or 'none'}"
        for name, entry in before.items():
            other = after[name]
            same = _same_type(entry.type, other.type, exact=kind != "outputs")
            if not same:
                return f"{kind}: {name} was {_type_text(entry.type)} and is {_type_text(other.type)}"
    return ""


def _values(model: onnx.ModelProto, kind: str) -> dict[str, onnx.ValueInfoProto]:
    if kind == "outputs":
        return {entry.name: entry for entry in model.graph.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    if kind == "inputs":
        return {entry.name: entry for entry in model.graph.input if entry.name not in weights}
    # Before IR version 4 weights had to be listed as inputs, and could not be overridden.
    entries = [entry for entry in model.graph.input if entry.name in weights and model.ir_version >= 4]
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}


def _same_type(before: onnx.TypeProto, after: onnx.TypeProto, *, exact: bool) -> bool:
    kind = before.WhichOneof("value")
    if kind is None:
        return True
    if kind != after.WhichOneof("value"):
        return False
    if kind in ("sequence_type", "optional_type"):
        return _same_type(getattr(before, kind).elem_type, getattr(after, kind).elem_type, exact=exact)
    if kind == "map_type":
        same = before.map_type.key_type == after.map_type.key_type
        return same and _same_type(before.map_type.value_type, after.map_type.value_type, exact=exact)
    one, other = getattr(before, kind), getattr(after, kind)
    if one.elem_type != other.elem_type:
        return False
    was, now = _dimensions(one), _dimensions(other)
    if exact or was is None or now is None:
        return was == now or (not exact and was is None)
    return len(was) == len(now) and all(a in (None, b) for a, b in zip(was, now, strict=True))


def _dimensions(tensor: Any) -> list[Dimension] | None:
    if not tensor.HasField("shape"):
        return None
    return [
        size.dim_value
        if size.HasField("dim_value")
        else (size.dim_param or None)
        if size.HasField("dim_param")
        else None
        for size in tensor.shape.dim
    ]


def _type_text(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value") or "nothing"
    if which in ("sequence_type", "optional_type"):
        return f"{which.removesuffix('_type')}({_type_text(getattr(kind, which).elem_type)})"
    if which not in ("tensor_type", "sparse_tensor_type"):
        return which.removesuffix("_type")
    name = onnx.TensorProto.DataType.Name(getattr(kind, which).elem_type)
    dimensions = _dimensions(getattr(kind, which))
    return f"{name} of any shape" if dimensions is None else f"{name} {dimensions}"


def _nodes(model: onnx.ModelProto) -> list[bytes]:
    """The nodes without their names and descriptions."""
    found = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.ClearField("doc_string")
        found.append(copy.SerializeToString(deterministic=True))
    return found


def _checked(model: onnx.ModelProto | Path) -> str:
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except Exception as error:
        return _in_words(error)
    return ""


def _difference(expected: Any, found: Any, random: frozenset[int] = frozenset()) -> str:
    from egraph_opt.runtime.compare import compare_outputs

    if len(expected) != len(found):
        return f"{len(found)} outputs instead of {len(expected)}"
    for i, (one, other) in enumerate(zip(expected, found, strict=True)):
        if i in random:
            if _shape(one) != _shape(other):
                return f"output {i} is random, but {_shape(other)} instead of {_shape(one)}"
            continue
        for error in compare_outputs([one], [other], names=[f"output {i}"]):
            if not error.within:
                return f"{error.name}: {error.mismatch or f'differs by {error.max_relative:.1e} of its range'}"
    return ""


def _shape(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__


def _in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
