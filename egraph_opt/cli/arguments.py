"""Argument types that several commands share."""

import argparse
import math
import re
from collections.abc import Callable, Sequence

from egraph_opt.backends.runtimes import NAMES as RUNTIMES


def whole_number(minimum: int) -> Callable[[str], int]:
    """A type for whole numbers from `minimum` on."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    return parse


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None


def seconds(text: str) -> float:
    """A positive number of seconds."""
    value = _number(text, "a number of seconds")
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def key(text: str) -> str:
    """A name that is not empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def factor(text: str) -> float:
    """How many times something, at least 1; may be infinite."""
    value = _number(text, "a number")
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def byte_count(text: str) -> int:
    """A size in bytes: ``4G``, ``500M``, ``64K`` (powers of 1024) or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    count = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ") if match is not None else 0.0
    if not 1 <= count < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4G or 500M")
    return int(count)


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas: ``3,5``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 3,5") from None


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``NAME=1,3,224,224`` for an input, ``SYMBOL=16`` for a symbolic dimension; names may contain ``=``."""
    name, equals, lengths = text.rpartition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=1,3,224,224")
    shape = numbers(lengths) if lengths else ()
    if any(length < 0 for length in shape):
        raise argparse.ArgumentTypeError(f"{text!r} has a negative length")
    return name, shape


def choice_of_lengths(text: str) -> tuple[str, int | tuple[int, ...]]:
    """``SYMBOL=8`` for one length, ``SYMBOL=1,4,16`` or ``SYMBOL=8,*`` for programs of these lengths beside the rest,
    ``NAME=1,3,224,224`` for the shape of an input."""
    several = text.endswith(",*")
    name, lengths = named_shape(text.removesuffix(",*"))
    if not lengths or 0 in lengths:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form SYMBOL=8 or SYMBOL=1,4,16")
    return name, lengths if several or len(lengths) > 1 else lengths[0]


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """--seed, --shape, --threads and --trust-kernels, for commands that run models."""
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="seed of the random inputs (default 0)"
    )
    parser.add_argument(
        "--shape",
        type=named_shape,
        action="append",
        default=[],
        metavar="NAME=D,D,…",
        help="shape of an input, or SYMBOL=N for a symbolic dimension; repeatable (symbols default to 1)",
    )
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads of onnxruntime (default: its own choice)"
    )
    parser.add_argument(
        "--trust-kernels",
        action="store_true",
        help="run the code of a .kernels.so beside a model although it was not built here",
    )


def runtime_names(text: str) -> tuple[str, ...]:
    """``openvino`` for all models, ``onnxruntime,openvino`` for one each."""
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown runtime {unknown[0]!r}; known: {', '.join(RUNTIMES)}")
    return names


def add_runtime_option(parser: argparse.ArgumentParser) -> None:
    """--runtime, for commands that run models as they are."""
    parser.add_argument(
        "--runtime",
        type=runtime_names,
        default=("",),
        metavar="NAME[,NAME]",
        help=f"what runs the models: {', '.join(RUNTIMES)}; one for both or one for each (default: what the model was"
        " optimized for, onnxruntime where it does not say)",
    )


def add_rule_options(parser: argparse.ArgumentParser) -> None:
    """--rules and --fp, for commands that run rules."""
    parser.add_argument(
        "--rules",
        type=str,
        default="",
        metavar="+PACK,-RULE,…",
        help="add rule packs (installed or FILE.py) and switch rules, groups or packs off; see egraph-opt rules --help",
    )
    parser.add_argument(
        "--fp",
        choices=("strict", "default", "real"),
        default="default",
        help="what rules may do to numbers: keep every bit, re-order sums and products (default), or whatever holds for"
        " real numbers",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
