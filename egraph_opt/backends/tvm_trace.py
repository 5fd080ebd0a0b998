"""Schedule traces as text: how the loops of a kernel's blocks are arranged, as data that can be stored and replayed.

A trace is JSON: ``[[instruction, …], [[position, decision], …]]`` as ``tvm.s_tir.schedule.Trace.as_json`` gives it.
Traces come from strangers' databases, too. Only instructions that arrange loops are let in, and of annotations only
those that do: others bring code of their own into a kernel. Nothing here imports tvm before a trace is replayed.
"""

from __future__ import annotations

import json
from typing import Any

from egraph_opt.errors import EgraphOptError, InputRejected, one_line

# Characters of one trace.
LONGEST = 1 << 16
INSTRUCTIONS = frozenset(
    (
        "AddUnitLoop",
        "Annotate",
        "Blockize",
        "CacheRead",
        "CacheWrite",
        "ComputeAt",
        "ComputeInline",
        "DecomposePadding",
        "DecomposeReduction",
        "EnterPostproc",
        "Fuse",
        "FuseReductionEpilogue",
        "GetChildBlocks",
        "GetConsumers",
        "GetLoops",
        "GetOutputBlocks",
        "GetProducers",
        "GetSBlock",
        "LoopPartition",
        "Merge",
        "PadEinsum",
        "Parallel",
        "RFactor",
        "ReIndex",
        "ReindexCacheRead",
        "ReindexCacheWrite",
        "Reorder",
        "ReorderBlockIterVar",
        "ReverseComputeAt",
        "ReverseComputeInline",
        "RollingBuffer",
        "SampleCategorical",
        "SampleComputeLocation",
        "SamplePartitionedTile",
        "SamplePerfectTile",
        "Split",
        "StorageAlign",
        "Tensorize",
        "Unannotate",
        "Unroll",
        "Vectorize",
    )
)
ANNOTATIONS = frozenset(
    (
        "meta_schedule.parallel",
        "meta_schedule.random_compute_producer",
        "meta_schedule.tiling_structure",
        "meta_schedule.unroll_explicit",
        "meta_schedule.unroll_implicit",
        "meta_schedule.vectorize",
        "pragma_auto_unroll_max_step",
        "pragma_loop_partition_hint",
        "pragma_unroll_explicit",
    )
)


def is_trace(schedule: str) -> bool:
    """Whether the text of a kernel's schedule is a trace; other schedules are those of ``tvm_schedule``."""
    return schedule.startswith("[")


def checked(text: str) -> list[Any]:
    """The trace a text holds.

    Raises InputRejected where it is none, too long, or has instructions that do more than arrange loops.
    """
    if len(text) > LONGEST:
        raise InputRejected(f"a schedule trace of {len(text)} characters; {LONGEST} are allowed")
    try:
        match json.loads(text):
            case [list() as instructions, list() as decisions]:
                for instruction in instructions:
                    _check_instruction(instruction)
                for entry in decisions:
                    _check_decision(entry, len(instructions))
                return [instructions, decisions]
    except (ValueError, RecursionError) as error:
        raise InputRejected(f"not a schedule trace: {error}") from error
    raise InputRejected("not a schedule trace: it is no pair of instructions and decisions")


def _check_instruction(instruction: object) -> None:
    match instruction:
        case [str(name), list(inputs), list(attributes), list(outputs)]:
            if name not in INSTRUCTIONS:
                raise InputRejected(f"a schedule trace has the instruction {name[:40]!r}, which is not allowed")
            if name in ("Annotate", "Unannotate") and (not attributes or str(attributes[0]) not in ANNOTATIONS):
                raise InputRejected(f"a schedule trace sets {attributes[:1]}, which is not allowed")
            if all(isinstance(entry, str) for entry in outputs) and _is_plain(inputs) and _is_plain(attributes):
                return
    raise InputRejected("not a schedule trace: an instruction is a name, its operands, attributes and results")


def _check_decision(entry: object, count: int) -> None:
    match entry:
        case [int(position), decision] if 0 <= position < count and _is_plain(decision):
            return
    raise InputRejected("not a schedule trace: a decision is the position of an instruction and what was chosen")


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def text_of(schedule: Any) -> str:
    """The trace of a ``tvm.s_tir.Schedule``; InputRejected where it holds what may not be stored."""
    text = json.dumps(_plain(schedule.trace.as_json()), separators=(",", ":"))
    checked(text)
    return text


def replayed(text: str, module: Any) -> Any:
    """The ``tvm.s_tir.Schedule`` of a module after a trace; EgraphOptError where the trace does not fit it."""
    from tvm import s_tir

    trace = checked(text)
    schedule = s_tir.Schedule(module, seed=1, debug_mask="none", error_render_level="fast")
    try:
        s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
    except Exception as error:
        raise EgraphOptError(one_line(f"the schedule trace does not fit: {type(error).__name__}: {error}")) from error
    return schedule


def _plain(value: Any) -> Any:
    """TVM's numbers and arrays as those of Python."""
    if value is None or isinstance(value, str | int | float):
        return str(value) if isinstance(value, str) else value
    if hasattr(value, "value"):
        return value.value
    return [_plain(entry) for entry in value]
