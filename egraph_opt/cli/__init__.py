"""The command line: one file a command, nothing heavy imported before a command runs."""

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from egraph_opt.cli import (
    bench,
    cache,
    check,
    derive,
    doctor,
    explain,
    kernel,
    optimize,
    plan,
    profile,
    rules,
    run,
    worker,
)
from egraph_opt.errors import (
    INTERNAL_EXIT_CODE,
    BackendMissing,
    EgraphOptError,
    Interrupted,
    LimitReached,
    UsageError,
    one_line,
)

COMMANDS = (optimize, check, bench, explain, kernel, doctor, derive, rules, cache, plan, profile, run, worker)

DESCRIPTION = """\
Make an ONNX model faster without changing what it computes.

Derives many programs that compute the same function, measures them on this machine, checks the fastest one against the
original and writes it as an ONNX model that stock onnxruntime runs."""

EXAMPLES = """\
examples:
  egraph-opt optimize model.onnx             write model.opt.onnx, print the before/after table
  egraph-opt optimize model.onnx --portable  standard operators only, no kernel library beside the model
  egraph-opt check model.onnx model.opt.onnx compare all outputs on random inputs
  egraph-opt bench model.onnx model.opt.onnx time both, interleaved
  egraph-opt explain model.opt.onnx          by which rules it came about, what else there was and what it costs
  egraph-opt kernel show model.opt.onnx      its generated kernels: what they compute, schedule, code, assembly
  egraph-opt derive conv --kernel 5,3        what one operator can be turned into, and by which rules
  egraph-opt rules show bias                 what a rule says; list and test show them all and try them out
  egraph-opt doctor                          what this machine offers
  egraph-opt plan model.onnx                 for a GPU elsewhere: what to measure there (then: profile, optimize, run)

exit codes:
  0 done (also: nothing faster found, unchanged copy written)   1 a bug of ours   2 usage   3 input rejected
  4 verification failed, nothing written   5 limit hit without a usable result   6 backend missing   130 interrupted"""


class Parser(argparse.ArgumentParser):
    """Usage errors become exceptions, so that `main` prints every error in the same form."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="egraph-opt",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        examples = "examples:\n" + "\n".join(f"  {example}" for example in command.EXAMPLES)
        child = commands.add_parser(
            name,
            help=command.SUMMARY,
            description=command.DESCRIPTION,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(child)
        child.add_argument(
            "-v", "--verbose", action="count", default=0, help="say more; -vv also prints the traceback of an error"
        )
        child.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Known before parsing, because parsing itself can fail.
    with_traceback = any(word.startswith("-vv") for word in words) or words.count("-v") + words.count("--verbose") > 1
    try:
        return _dispatch(words)
    except EgraphOptError as error:
        return fail(str(error) or type(error).__name__, error.exit_code, with_traceback)
    except KeyboardInterrupt:
        return fail("interrupted", Interrupted.exit_code, with_traceback)
    except BrokenPipeError:
        # The reader of our output went away; keep Python's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError:
        return fail("out of memory", LimitReached.exit_code, with_traceback)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module == "egraph_opt":
            return fail(f"internal error, please report it: {error}", INTERNAL_EXIT_CODE, with_traceback)
        message = f"{module} is not installed; reinstall egraph-opt with its dependencies"
        return fail(message, BackendMissing.exit_code, with_traceback)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        code = LimitReached.exit_code if full else UsageError.exit_code
        return fail(f"{error.strerror or error}{place}", code, with_traceback)
    except Exception as error:
        message = f"internal error, please report it (-vv prints the traceback): {type(error).__name__}: {error}"
        return fail(message, INTERNAL_EXIT_CODE, with_traceback)


def _dispatch(words: Sequence[str]) -> int:
    parser = build_parser()
    try:
        chosen = parser.parse_args(_joined(words))
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    if chosen.version:
        import egraph_opt

        print(f"egraph-opt {egraph_opt.__version__}")
        return 0
    if chosen.command is None:
        parser.print_help()
        return UsageError.exit_code
    code: int = chosen.run(chosen)
    sys.stdout.flush()
    return code


def _joined(words: Sequence[str]) -> list[str]:
    """The words with the argument of --rules joined to it: argparse takes what begins with "-" for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--rules":
            joined[-1] = f"--rules={word}"
        else:
            joined.append(word)
    return joined


def fail(message: str, code: int, with_traceback: bool = False) -> int:
    """Print an error as all errors are printed; returns the code."""
    if with_traceback:
        traceback.print_exc()
    print(f"egraph-opt: error: {one_line(message)}", file=sys.stderr)
    return code
