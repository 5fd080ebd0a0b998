"""``egraph-opt optimize``: from a model file to a faster, verified one."""

import argparse
from pathlib import Path

from egraph_opt.cli.arguments import add_rule_options, seconds, whole_number
from egraph_opt.errors import InputRejected

SUMMARY = "write a faster, verified version of a model"
DESCRIPTION = """\
Optimize MODEL.onnx for this machine. Writes OUT.onnx and, when kernels were generated, OUT.kernels.so beside it. The
before/after table goes to stdout, progress to stderr. Where nothing faster is found, an unchanged copy is written."""
EXAMPLES = (
    "egraph-opt optimize model.onnx                       writes model.opt.onnx",
    "egraph-opt optimize model.onnx -o fast.onnx --report fast.json",
    "egraph-opt optimize model.onnx --portable            standard ONNX operators only",
    "egraph-opt optimize model.onnx --cost static         no measurements: quick, less sure",
    "egraph-opt optimize model.onnx --rules +mine.py,-epilogue   with the rules of a file, without a built-in group",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model to optimize")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.onnx", help="the optimized model (default MODEL.opt.onnx)"
    )
    parser.add_argument("--target", choices=("cpu",), default="cpu", help="what it will run on (default cpu)")
    parser.add_argument("--portable", action="store_true", help="standard operators only, no generated kernels")
    parser.add_argument(
        "--verify", type=whole_number(0), default=1, metavar="N", help="random inputs to verify on (default 1, 0: none)"
    )
    parser.add_argument("--time-limit", type=seconds, metavar="S", help="seconds for the whole run (default: no limit)")
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
    add_rule_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(options: argparse.Namespace) -> int:
    """Optimize, write, report."""
    from egraph_opt.cli.progress import ProgressPrinter
    from egraph_opt.runtime.artifacts import check_report_path, choose_output, library_path
    from egraph_opt.runtime.progress import silent

    if not options.model.is_file():
        problem = "is not a file" if options.model.exists() else "does not exist"
        raise InputRejected(f"{options.model} {problem}")
    output = choose_output(options.model, options.output)
    check_report_path(options.report, (options.model, output, library_path(output)))

    from egraph_opt.pipeline import optimize

    printer = None if options.quiet else ProgressPrinter(every_event=options.verbose > 0)
    try:
        result = optimize(
            options.model,
            target=options.target,
            portable=options.portable,
            verify=options.verify,
            time_limit=options.time_limit,
            seed=options.seed,
            threads=options.threads,
            cost=options.cost,
            profile_db=options.profile_db,
            rules=options.rules,
            fp=options.fp,
            progress=printer or silent,
        )
    finally:
        if printer:
            printer.close()
    result.save(output)
    if options.report is not None:
        result.report.write_json(options.report)
    if not options.quiet:
        print(result.report.table())
        if options.verbose and result.report.saturation:
            print(f"\n{result.report.growth()}\n")
        print(f"  written: {output}")
    return 0
