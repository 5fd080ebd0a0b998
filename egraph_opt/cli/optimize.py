"""``egraph-opt optimize``: from a model file to a faster, verified one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.cli.arguments import add_rule_options, byte_count, choice_of_lengths, seconds, whole_number
from egraph_opt.errors import InputRejected, UsageError

if TYPE_CHECKING:
    from egraph_opt.result import Result

SUMMARY = "write a faster, verified version of a model"
DESCRIPTION = """\
Optimize MODEL.onnx for this machine. Writes OUT.onnx and, when kernels were generated, OUT.kernels.so beside it. The
before/after table goes to stdout, progress to stderr. Where nothing faster is found, an unchanged copy is written."""
EXAMPLES = (
    "egraph-opt optimize model.onnx                       writes model.opt.onnx",
    "egraph-opt optimize model.onnx -o fast.onnx --report fast.json",
    "egraph-opt optimize model.onnx --portable            standard ONNX operators only",
    "egraph-opt optimize model.onnx --cost static         no measurements: quick, less sure",
    "egraph-opt optimize model.onnx --shape N=8           for this length of the symbolic dimension N only",
    "egraph-opt optimize model.onnx --shape N=1,4,16      a program for each of these, the original for any other",
    "egraph-opt optimize model.onnx --rules +mine.py,-epilogue   with the rules of a file, without a built-in group",
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
        help="what it will run on: cpu (default), or cuda:sm_90, for which --profile-db names the GPU's measurements",
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
        "--cost",
        choices=("measured", "static"),
        default="measured",
        help="choose by measurement on this machine (default) or by a static model",
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
    add_rule_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


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
    from egraph_opt.pipeline import optimize

    with shown(quiet=options.quiet, every_event=options.verbose > 0) as progress:
        result = optimize(
            options.model,
            target=options.target,
            portable=options.portable,
            verify=options.verify,
            time_limit=options.time_limit,
            memory_limit=options.memory_limit,
            seed=options.seed,
            threads=options.threads,
            cost=options.cost,
            profile_db=options.profile_db,
            rules=options.rules,
            fp=options.fp,
            shapes=dict(options.shape),
            progress=progress,
        )
    return _write(options, result, output)


def _for_gpu(options: argparse.Namespace) -> int:
    """Choose and write a GPU program."""
    from egraph_opt.cli.progress import shown
    from egraph_opt.offline import choose
    from egraph_opt.runtime.artifacts import choose_file
    from egraph_opt.runtime.timing import significant

    if options.profile_db is None:
        raise UsageError("a GPU target needs --profile-db: the measurements of egraph-opt profile on that GPU")
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
        print(f"chosen by the measurements of {program.device}")
        print(f"written: {output}; on the GPU machine: egraph-opt run {output}")
    return 0


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
    return 0
