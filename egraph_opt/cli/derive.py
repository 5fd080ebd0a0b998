"""``egraph-opt derive``: what one operator can be turned into, and by which rules."""

import argparse

from egraph_opt.cli.arguments import add_rule_options, numbers, whole_number
from egraph_opt.errors import UsageError

SUMMARY = "show what one operator can be turned into"
DESCRIPTION = """\
Saturate one operator with random weights and print which library operators and kernels its class contains, with the
chain of rules that made each. Operators: conv, conv_transpose, matmul, band_matmul, pool. Every option has a
default."""
EXAMPLES = (
    "egraph-opt derive conv --channels 6,10 --size 9,7 --kernel 5,3 --pads 2,0,2,2 --groups 1",
    "egraph-opt derive conv_transpose --kernel 4,4 --stride 2,2 --pads 1,1,1,1 --output-padding 0,0",
    "egraph-opt derive band_matmul --dilation 4",
    "egraph-opt derive conv --growth                     e-nodes of every round, and the rules that made most",
    "egraph-opt derive conv --rules +mine.py,-windows    with the rules of a file, without a built-in group",
)
LISTS = {
    "batch": "batch size",
    "channels": "input and output channels: IN,OUT",
    "size": "spatial size: H,W (matmul: rows, inner, columns)",
    "kernel": "kernel size: H,W",
    "stride": "stride: H,W",
    "dilation": "dilation: H,W (band_matmul: one number)",
    "pads": "padding as ONNX orders it: begins, then ends (TOP,LEFT,BOTTOM,RIGHT)",
    "output_padding": "extra rows and columns of conv_transpose: H,W",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("operator", metavar="OPERATOR", help="conv, conv_transpose, matmul, band_matmul or pool")
    for name, text in LISTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=numbers, metavar="N,…", help=text)
    parser.add_argument("--operation", choices=("max", "average"), help="operation of a pool")
    parser.add_argument("--groups", type=whole_number(1), metavar="N", help="groups of channels")
    parser.add_argument("--growth", action="store_true", help="also show e-nodes per round and the busiest rules")
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Derive and print; options that are not given keep the operator's defaults."""
    from egraph_opt.derive import OPERATORS, derive_operator

    if options.operator not in OPERATORS:
        raise UsageError(f"unknown operator {options.operator}; known: {', '.join(OPERATORS)}")
    names = (*LISTS, "groups", "operation")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    found = derive_operator(options.operator, rules=options.rules, fp=options.fp, **given)
    print(found)
    if options.growth:
        print(f"\n{found.saturation.table()}")
    return 0
