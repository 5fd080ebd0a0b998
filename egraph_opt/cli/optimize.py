"""``egraph-opt optimize``: from a model file to a faster, verified one."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends.runtimes import CHOICES, DEFAULT
from egraph_opt.cli.arguments import add_rule_options, byte_count, choice_of_lengths, factor, seconds, whole_number
from egraph_opt.errors import InputRejected, UsageError, one_line
from egraph_opt.run import SLOWEST

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from egraph_opt.result import Result

SUMMARY = "write a faster, verified version of a model"
DESCRIPTION = """\
Optimize MODEL.onnx for this machine. Writes OUT.onnx and, when kernels were generated, OUT.kernels.so beside it. The
before/after table goes to stdout, progress to stderr. Where nothing faster is found, an unchanged copy is written."""
# Options that mean nothing to a GPU program.
CPU_ONLY = (
    *("portable", "verify", "time_limit", "memory_limit", "report", "threads", "cost", "peak_memory", "slowest"),
    *("prove", "runtime", "rpc_tracker", "rpc_key", "trials", "tuning_seconds"),
)
EXAMPLES = (
    "egraph-opt optimize model.onnx                       writes model.opt.onnx",
    "egraph-opt optimize model.onnx -o fast.onnx --report fast.json",
    "egraph-opt optimize model.onnx --portable            standard ONNX operators only",
    "egraph-opt optimize model.onnx --prove               measure until no program can be much faster",
    "egraph-opt optimize model.onnx --cost static         no measurements: quick, less sure",
    "egraph-opt optimize model.onnx --cost traffic        fewest bytes moved; also memory, energy, launches",
    "egraph-opt optimize model.onnx --peak-memory 8M      the fastest whose intermediate buffers fit into 8 MiB",
    "egraph-opt optimize model.onnx --runtime auto        for the fastest of all runtimes that are installed",
    "egraph-opt optimize model.onnx --trials 128          also tune the loops of the costliest generated kernels",
    "egraph-opt optimize model.onnx --shape N=8           for this length of the symbolic dimension N only",
    "egraph-opt optimize model.onnx --shape N=1,4,16      a program for each of these, the original for any other",
    "egraph-opt optimize model.onnx --rules +mine.py,-epilogue   with the rules of a file, without a built-in group",
    "egraph-opt optimize model.onnx --rpc-tracker 127.0.0.1:9190 --rpc-key epyc   timed on other machines, for them",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model to optimize")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.onnx", help="the optimized model (default MODEL.opt.onnx)"
    )
    parser.add_argument(
        "--target",
        choices=("cpu", "cuda:sm_90"),
        default="cpu",
        help="what it will run on: cpu (default), or cuda:sm_90, chosen by the GPU's measurements in --profile-db, else"
        " by those that come with this package, else by a roofline",
    )
    parser.add_argument("--device", default="", metavar="TEXT", help="which of several GPUs in --profile-db")
    parser.add_argument("--portable", action="store_true", help="standard operators only, no generated kernels")
    parser.add_argument(
        "--verify", type=whole_number(0), default=1, metavar="N", help="random inputs to verify on (default 1, 0: none)"
    )
    parser.add_argument("--time-limit", type=seconds, metavar="S", help="seconds for the whole run (default: no limit)")
    parser.add_argument(
        "--memory-limit",
        type=byte_count,
        metavar="SIZE",
        help="memory for the whole run, such as 4G or 500M; with less, less is tried (default: no limit)",
    )
    # For the process that watches: why there is only the model as it is, and what to touch before writing.
    parser.add_argument("--keep", help=argparse.SUPPRESS)
    parser.add_argument("--announce", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="also write the report as JSON")
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed of all random choices (default 0)"
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads of onnxruntime (default: its own choice)"
    )
    parser.add_argument(
        "--jobs",
        type=whole_number(1),
        metavar="N",
        help="processes that search and compile side by side (default: one per processor); changes the time only",
    )
    parser.add_argument(
        "--cost",
        default="measured",
        metavar="MODEL",
        help="what to choose by: measured (default: time on this machine), static (time by a roofline, nothing is"
        " measured), memory (peak of intermediate buffers), traffic (bytes moved), energy (joules by a rough count),"
        " launches (number of kernels and library calls), or FILE.py:NAME, a function of one step",
    )
    parser.add_argument(
        "--peak-memory",
        type=byte_count,
        metavar="SIZE",
        help="what intermediate buffers may take at once, such as 64M (default: no limit)",
    )
    parser.add_argument(
        "--slowest",
        type=factor,
        default=SLOWEST,
        metavar="FACTOR",
        help="what is not chosen by its time may take so many times the expected time of the fastest program"
        f" (default {SLOWEST:g}; inf for any)",
    )
    parser.add_argument(
        "--prove",
        action="store_true",
        help="measure on, for 20 minutes at most, until no other program can be more than 3 %% faster by what its steps"
        " take (default: until that is unlikely; the report gives the bound)",
    )
    parser.add_argument(
        "--profile-db", type=Path, metavar="FILE", help="profile database (default: in the cache folder)"
    )
    parser.add_argument(
        "--shape",
        type=choice_of_lengths,
        action="append",
        default=[],
        metavar="SYMBOL=N[,N…][,*]",
        help="one length for a symbolic dimension (which is then fixed), or several (N=1,4,16; or N=8,*): programs for"
        " these, chosen at run time, and the original for any other; INPUT=1,3,224,224 gives the shape of an input,"
        " INPUT[0]=8 an axis without a name; repeatable",
    )
    parser.add_argument(
        "--runtime",
        choices=CHOICES,
        default=DEFAULT,
        help="what will run the model: onnxruntime (default), openvino or torch (standard operators, chosen by what"
        " they cost there), or auto for the fastest of all that are installed",
    )
    parser.add_argument(
        "--rpc-tracker",
        default="",
        metavar="HOST:PORT",
        help="time on the devices of this TVM RPC tracker, for which the program then is; see egraph-opt worker --help",
    )
    parser.add_argument("--rpc-key", default="", metavar="KEY", help="which devices of the tracker")
    parser.add_argument(
        "--trials",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="tune the generated kernels that take most of the time with N schedules in all, e.g. 64 (default 0)",
    )
    parser.add_argument(
        "--tuning-seconds",
        type=seconds,
        default=300.0,
        metavar="S",
        help="time limit of tuning (default 300); a run that it ends is continued by the next one",
    )
    add_rule_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")


def run(options: argparse.Namespace) -> int:
    """Optimize, write, report."""
    from egraph_opt.cli.progress import shown
    from egraph_opt.runtime.artifacts import check_report_path, choose_output, library_path

    if not options.model.is_file():
        problem = "is not a file" if options.model.exists() else "does not exist"
        raise InputRejected(f"{options.model} {problem}")
    if options.target != "cpu":
        return _for_gpu(options)
    output = choose_output(options.model, options.output)
    check_report_path(options.report, (options.model, output, library_path(output)))

    if options.keep is not None:
        from egraph_opt.unchanged import kept

        limits = {"time_limit": options.time_limit, "memory": options.memory_limit}
        result = kept(options.model, options.keep, portable=options.portable, threads=options.threads, **limits)
        return _write(options, result, output)
    from egraph_opt.packs import cost_model
    from egraph_opt.pipeline import optimize

    with devices(options) as executor, shown(quiet=options.quiet, every_event=options.verbose > 0) as progress:
        result = optimize(
            options.model,
            target=options.target,
            portable=options.portable,
            verify=options.verify,
            time_limit=options.time_limit,
            memory_limit=options.memory_limit,
            seed=options.seed,
            threads=options.threads,
            jobs=options.jobs,
            cost=cost_model(options.cost) if ":" in options.cost else options.cost,
            peak_memory=options.peak_memory,
            slowest=options.slowest,
            prove=options.prove,
            profile_db=options.profile_db,
            rules=options.rules,
            fp=options.fp,
            shapes=dict(options.shape),
            runtime=options.runtime,
            executor=executor,
            trials=options.trials,
            tuning_seconds=options.tuning_seconds,
            progress=progress,
        )
    return _write(options, result, output)


def devices(options: argparse.Namespace) -> AbstractContextManager[Executor | None]:
    """The devices on which to measure; None for this machine, or if nothing is timed. Raises as `TrackerExecutor`."""
    if bool(options.rpc_tracker) != bool(options.rpc_key):
        raise UsageError("--rpc-tracker and --rpc-key belong together")
    if not options.rpc_tracker:
        return nullcontext()
    from egraph_opt.backends.tracker import TrackerExecutor, address_of

    if options.cost == "static":
        address_of(options.rpc_tracker)
        return nullcontext()
    return TrackerExecutor(options.rpc_tracker, options.rpc_key)


def _for_gpu(options: argparse.Namespace) -> int:
    """Choose and write a GPU program."""
    from egraph_opt.cli.progress import shown
    from egraph_opt.offline import choose
    from egraph_opt.runtime.artifacts import choose_file
    from egraph_opt.runtime.quantities import byte_text
    from egraph_opt.runtime.timing import significant

    _refuse_options_of_cpu(options)
    output = choose_file(options.model, options.output, ".gpu", "program")
    with shown(quiet=options.quiet, every_event=options.verbose > 0) as progress:
        program = choose(
            options.model,
            options.profile_db,
            target=options.target,
            device=options.device,
            shapes=dict(options.shape),
            rules=options.rules,
            fp=options.fp,
            progress=progress,
        )
    program.write(output)
    if not options.quiet:
        works = [step.work for step in program.steps if step.work is not None]
        kernels = sum(work.is_kernel for work in works)
        print(f"{len(works) - kernels} library calls and {kernels} kernels, {significant(program.seconds * 1e3)} ms")
        print(f"intermediate results take {byte_text(program.memory().peak)} at once")
        if "not measured" in program.device:
            print(f"NOT MEASURED: chosen by a {program.device.partition('; ')[2]}; see egraph-opt plan and profile")
        else:
            print(f"chosen by the measurements of {program.device}")
        print(f"written: {output}; on the GPU machine: egraph-opt run {output}")
    return 0


def _refuse_options_of_cpu(options: argparse.Namespace) -> None:
    """Raises UsageError for what was asked for and means nothing to a GPU program."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = [name for name in CPU_ONLY if getattr(options, name) != parser.get_default(name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{names} cannot be used with --target {options.target}")


def _write(options: argparse.Namespace, result: Result, output: Path) -> int:
    if options.announce is not None:
        options.announce.touch()
    result.save(output)
    if options.report is not None:
        result.report.write_json(options.report)
    if not options.quiet:
        print(result.report.table())
        if options.verbose and result.report.saturation:
            print(f"\n{result.report.growth()}\n")
        print(f"  written: {output}")
    else:
        for warning in result.report.warnings:
            print(f"egraph-opt: warning: {one_line(warning)}", file=sys.stderr)
    return 0
