"""``egraph-opt kernel``: look at generated kernels, and arrange their loops in another way."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egraph_opt.cli.arguments import table, whole_number
from egraph_opt.errors import EgraphOptError, InputRejected, UsageError, VerificationFailed

if TYPE_CHECKING:
    from egraph_opt.backends.tvm_build import Kernel
    from egraph_opt.kernels import KernelRecord

SUMMARY = "show generated kernels and try out schedules of them"
DESCRIPTION = """\
An optimized model carries its generated kernels: what they compute, how their loops are arranged, what they cost and
which share of the whole plan that is. Of another model those are shown that would be generated for it.

A kernel is named by its name, the beginning of it, or its number in the list. Its loops are arranged by one of our own
schedules (vector=1: the axis that fills vectors, transpose=0: the axis that tiles are stored along, serial), or by a
schedule trace, which is a list of TVM's schedule primitives."""
EXAMPLES = (
    "egraph-opt kernel show model.opt.onnx                     all kernels, the most costly first",
    "egraph-opt kernel show model.opt.onnx 1                   algebra, schedule and TVM script of the first one",
    "egraph-opt kernel show model.opt.onnx k_3f --asm          its machine code",
    "egraph-opt kernel show model.opt.onnx 1 --target cuda:sm_90   PTX",
    "egraph-opt kernel schedule model.opt.onnx 1               its schedule as Python, and the blocks it arranges",
    "egraph-opt kernel schedule model.opt.onnx 1 -o trace.json the trace as a file",
    "egraph-opt kernel schedule model.opt.onnx 1 --function mine.py:wide   check it and time it beside the present one",
    'egraph-opt kernel schedule model.opt.onnx 1 --schedule "vector=1 serial"',
    "egraph-opt kernel schedule model.opt.onnx 1 --trace trace.json",
)
# Letters of a kernel's algebra in the list.
LONGEST_LINE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    showing = actions.add_parser(
        "show",
        help="what kernels compute, and their code",
        description="List the kernels of a model, or show one: its algebra, its schedule, its loops as TVM script.",
    )
    showing.add_argument("model", type=Path, metavar="MODEL.onnx", help="a model, best one that egraph-opt wrote")
    showing.add_argument("kernel", nargs="?", metavar="KERNEL", help="one kernel: its name or number")
    showing.add_argument("--asm", action="store_true", help="also print its assembly")
    showing.add_argument(
        "--target", default="cpu", metavar="TARGET", help="cpu (default), or a GPU such as cuda:sm_90: print PTX"
    )
    scheduling = actions.add_parser(
        "schedule",
        help="a kernel's schedule, or another one beside it",
        description="Print a kernel's schedule as Python; with another schedule, check that the kernel computes the"
        " same with it and time both in turns. Exit code 4 where it does not, or cannot be built.",
    )
    scheduling.add_argument("model", type=Path, metavar="MODEL.onnx", help="a model, best one that egraph-opt wrote")
    scheduling.add_argument("kernel", metavar="KERNEL", help="its name or number")
    other = scheduling.add_mutually_exclusive_group()
    other.add_argument("--schedule", metavar="TEXT", help="one of our own schedules, such as vector=1")
    other.add_argument("--trace", type=Path, metavar="FILE.json", help="a schedule trace")
    other.add_argument(
        "--function",
        metavar="FILE.py:NAME",
        help="a function that arranges a tvm.s_tir.Schedule, whose last block is called out",
    )
    scheduling.add_argument("-o", "--output", type=Path, metavar="FILE.json", help="write the trace to a file")
    scheduling.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads of onnxruntime (default: its own choice)"
    )


def run(options: argparse.Namespace) -> int:
    """Show or schedule."""
    records, whole = _records(options.model)
    if options.action == "schedule":
        return _schedule(options, records)
    if options.kernel is None:
        if options.asm or options.target != "cpu":
            raise UsageError("--asm and --target show one kernel: name it")
        print(_listed(records, whole) if records else "no kernels were generated for this model")
        return 0
    from egraph_opt.kernels import chosen

    print(_shown(chosen(records, options.kernel), options))
    return 0


def _records(model: Path) -> tuple[list[KernelRecord], float]:
    """The kernels that a model carries, or would be given, and the seconds that its plans should take (0: unknown)."""
    from egraph_opt.frontends.onnx_metadata import entry, metadata
    from egraph_opt.kernels import KEY, unpacked
    from egraph_opt.runtime import explanation

    found, told = metadata(model, KEY), metadata(model, explanation.KEY)
    if found is None:
        from egraph_opt.pipeline import optimize

        made = optimize(model, cost="static").model
        found, told = entry(made, KEY), None
    parts = explanation.unpacked(told).parts if told is not None else ()
    whole = sum(part.cost for part in parts) if all(part.unit == "s" for part in parts) else 0.0
    return unpacked(found) if found is not None else [], whole


def _listed(records: list[KernelRecord], whole: float) -> str:
    """All kernels, with their shares of what the plans cost."""
    from egraph_opt.extract.roofline import STEP_SECONDS

    costs = [record.nodes * (record.seconds + STEP_SECONDS) if record.seconds else 0.0 for record in records]
    whole = max(whole, sum(costs))
    rows = [("kernel", "output", "nodes", "cost of one", "share", "schedule")]
    lines = []
    for number, (record, cost) in enumerate(zip(records, costs, strict=True), 1):
        share = f"{cost / whole:.0%}" if cost else ""
        shape = "×".join(map(str, record.extents)) or "scalar"
        rows.append((f"{number} {record.name}", shape, str(record.nodes), _cost(record), share, record.arrangement))
        algebra = record.algebra
        lines.append(algebra if len(algebra) <= LONGEST_LINE else f"{algebra[: LONGEST_LINE - 1]}…")
    head, *rest = table(rows).splitlines()
    return "\n".join([head, *(f"{row}\n    {line}" for row, line in zip(rest, lines, strict=True))])


def _cost(record: KernelRecord) -> str:
    """What a node with this kernel costs in a plan, in the words of ``egraph-opt explain``; empty where unknown."""
    from egraph_opt.extract.roofline import STEP_SECONDS
    from egraph_opt.runtime.quantities import origin, quantity

    return f"{quantity(record.seconds, 's')} {origin('measured', STEP_SECONDS, 's')}" if record.seconds else ""


def _shown(record: KernelRecord, options: argparse.Namespace) -> str:
    from egraph_opt.backends import kernel_code, tvm_trace

    arguments = ", ".join(f"in{i} {list(extents)}" for i, extents in enumerate(record.arguments))
    lines = [record.name, f"  {arguments} -> {list(record.extents)}", f"  {record.algebra}"]
    lines += ["; ".join(filter(None, (f"  schedule: {record.arrangement}", _cost(record))))]
    if not record.body:
        return "\n".join(lines)
    kernel = record.kernel
    if options.target != "cpu":
        return "\n".join([*lines, "", kernel_code.cuda_code(kernel, kernel_code.architecture_of(options.target))])
    if tvm_trace.is_trace(record.schedule):
        lines += ["", "# schedule", *kernel_code.schedule_python(record.schedule, kernel)]
    lines += ["", kernel_code.script(kernel)]
    return "\n".join([*lines, "", kernel_code.assembly(kernel)] if options.asm else lines)


def _schedule(options: argparse.Namespace, records: list[KernelRecord]) -> int:
    from egraph_opt.backends import kernel_code, tvm_trace
    from egraph_opt.kernels import chosen

    record = chosen(records, options.kernel)
    kernel = record.kernel
    other = _other(options, kernel)
    schedule = record.schedule if other is None else other
    if options.output is not None:
        if not tvm_trace.is_trace(schedule):
            raise UsageError(f"{record.name} is arranged by {record.arrangement}, which is no trace")
        options.output.write_text(schedule + "\n", encoding="utf-8")
    if other is not None:
        return _compared(options, record, other)
    if tvm_trace.is_trace(schedule):
        print("\n".join(kernel_code.schedule_python(schedule, kernel)))
    else:
        print(f"# arranged by a schedule of our own: {record.arrangement}")
    print(f"\n{kernel_code.plain_script(kernel)}")
    return 0


def _other(options: argparse.Namespace, kernel: Kernel) -> str | None:
    """The schedule to be tried, if there is one."""
    from egraph_opt.backends import tvm_schedule, tvm_trace

    if options.schedule is not None:
        return tvm_schedule.parse(kernel.body, options.schedule).text
    if options.trace is not None:
        if not options.trace.is_file():
            raise InputRejected(f"{options.trace} is not a file")
        text: str = options.trace.read_text(encoding="utf-8").strip()
        tvm_trace.checked(text)
        return text
    if options.function is None:
        return None
    from egraph_opt.backends.tvm_tune import trace_by
    from egraph_opt.ir.schedules import KernelSchedule
    from egraph_opt.packs import named

    def fits(found: Any) -> bool:
        return callable(found) or isinstance(found, KernelSchedule)

    found = named(options.function, "schedule", fits)
    declared = found if isinstance(found, KernelSchedule) else KernelSchedule(options.function, found)
    try:
        return trace_by(declared, kernel)
    except EgraphOptError as error:
        raise UsageError(str(error)) from error


def _compared(options: argparse.Namespace, record: KernelRecord, other: str) -> int:
    """Both schedules checked and timed; exit code 4 where the other one does not do."""
    from egraph_opt.backends.environment import working_compiler
    from egraph_opt.errors import BackendMissing
    from egraph_opt.kernels import timed
    from egraph_opt.runtime.timing import significant

    compiler, problem = working_compiler()
    if compiler is None:
        raise BackendMissing(problem)
    present, tried = timed(record.kernel, [record.schedule, other], compiler, options.threads)
    if not tried.samples:
        raise VerificationFailed(f"the schedule does not do: {tried.error}")
    if not present.samples:
        raise EgraphOptError(f"the present schedule of {record.name} fails: {present.error}")
    one, two = (significant(entry.seconds * 1e6) for entry in (present, tried))
    print(table([("schedule", "us measured"), (f"present: {record.arrangement}", one), ("yours", two)]))
    print(f"yours computes the same and takes {significant(tried.seconds / present.seconds)} times as long")
    return 0
