"""``egraph-opt plan``: what to measure on a GPU that is somewhere else."""

import argparse
from pathlib import Path

from egraph_opt.cli.arguments import add_rule_options, choice_of_lengths
from egraph_opt.errors import InputRejected

SUMMARY = "bundle what to measure on a GPU elsewhere"
DESCRIPTION = """\
Derive the programs that MODEL.onnx can be turned into and compile every kernel that a good one may need for a GPU
architecture; no GPU is needed, but the CUDA toolkit (nvcc). Then, on the GPU machine (Python, numpy and torch):
  egraph-opt profile BUNDLE -o GPU.db
and anywhere:
  egraph-opt optimize MODEL.onnx --target cuda:sm_90 --profile-db GPU.db"""
EXAMPLES = (
    "egraph-opt plan model.onnx --target cuda:sm_90 -o model.bundle",
    "egraph-opt plan model.onnx --shape N=8          with a length for a symbolic dimension",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="MODEL.onnx",
        help="the model; nodes outside the algebra must be ones that a library call computes",
    )
    parser.add_argument(
        "--target", choices=("cuda:sm_90",), default="cuda:sm_90", help="the GPU architecture (default cuda:sm_90)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="BUNDLE", help="the bundle (default MODEL.bundle)")
    parser.add_argument(
        "--shape",
        type=choice_of_lengths,
        action="append",
        default=[],
        metavar="SYMBOL=N",
        help="length of a symbolic dimension, or INPUT=1,3,224,224 for the shape of an input; repeatable",
    )
    add_rule_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")


def run(options: argparse.Namespace) -> int:
    """Plan, write, print a summary."""
    from egraph_opt.cli.arguments import table
    from egraph_opt.cli.progress import shown
    from egraph_opt.runtime.artifacts import choose_file

    if not options.model.is_file():
        raise InputRejected(f"{options.model} is not a file")
    output = choose_file(options.model, options.output, ".bundle", "bundle")

    from egraph_opt.offline import plan

    with shown(quiet=options.quiet, every_event=options.verbose > 0) as progress:
        bundle = plan(
            options.model,
            target=options.target,
            shapes=dict(options.shape),
            rules=options.rules,
            fp=options.fp,
            progress=progress,
        )
    bundle.write(output)
    if options.quiet:
        return 0
    kernels = [work for work in bundle.works if work.is_kernel]
    resources = {name: found for module in bundle.modules for name, found in module.resources.items()}
    rows = [
        ("to measure", ""),
        ("library calls", str(len(bundle.works) - len(kernels))),
        ("kernels", str(len(kernels))),
        ("steps they do", str(len({work.signature for work in kernels}))),
        ("most registers of a thread", str(max((resources[work.kernel].registers for work in kernels), default=0))),
        ("kernels left out", str(len(bundle.dropped))),
    ]
    print(table(rows))
    if options.verbose:
        for work, why in bundle.dropped.items():
            print(f"  left out: {work}: {why}")
    print(f"written: {output}; next, on the GPU machine: egraph-opt profile {output} -o GPU.db")
    return 0
