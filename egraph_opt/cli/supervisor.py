"""The command line in a process of its own, watched by one that loads nothing.

Models are anybody's: onnxruntime divides by zero on some and crashes, and egglog does not hear Ctrl-C. The watcher
turns what ends the other process into an exit code and a line, ends it when it does not answer, and removes its files.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import inf
from pathlib import Path

from egraph_opt.cli import build_parser, fail, main
from egraph_opt.errors import INTERNAL_EXIT_CODE, EgraphOptError, InputRejected, Interrupted, LimitReached

# Seconds that a process has to end itself after Ctrl-C.
PATIENCE = 1.5
# The time limit may be exceeded by this factor and so many seconds, which one operator of the model may take.
LATENESS, GRACE = 1.1, 30.0
# Ends with its parent, keeps its files where the parent removes them, and finds modules where its parent does.
_START = """
import ctypes, json, signal, sys, tempfile
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
sys.path[:], tempfile.tempdir, *sys.argv[1:] = json.loads(sys.argv[1])
"""
_RUN = _START + "from egraph_opt.cli import main\nsys.exit(main())"
_TRY = _START + (
    "from egraph_opt.backends.onnxruntime import input_specs, make_session, random_inputs, run\n"
    "session = make_session(sys.argv[1])\n"
    "run(session, random_inputs(input_specs(session)), seconds=30.0)"
)


def supervised(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, whatever happens to the process that does the work."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = build_parser().parse_args(words)
    except (EgraphOptError, SystemExit):
        return main(words)
    if options.command != "optimize":
        return main(words)
    limit = LATENESS * options.time_limit + GRACE if options.time_limit else inf
    with tempfile.TemporaryDirectory(prefix="egraph-opt-", ignore_cleanup_errors=True) as folder:
        try:
            code = _run(_RUN, words, folder, limit)
        except KeyboardInterrupt:
            return fail("interrupted", Interrupted.exit_code)
        except subprocess.TimeoutExpired:
            return fail("the time limit was reached", LimitReached.exit_code)
        if code >= 0:
            return code
        if -code in (signal.SIGKILL, signal.SIGXCPU):
            return fail("the process was killed, perhaps for want of memory", LimitReached.exit_code)
        if -code in (signal.SIGTERM, signal.SIGHUP):
            return fail("the process was ended", 128 - code)
        name = signal.Signals(-code).name
        with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            if _run(_TRY, [str(options.model)], folder, GRACE, quiet=True) < 0:
                return fail(f"onnxruntime crashes on {options.model} ({name})", InputRejected.exit_code)
        return fail(f"internal error, please report it: the process crashed ({name})", INTERNAL_EXIT_CODE)


def _run(program: str, words: Sequence[str], folder: str, limit: float, *, quiet: bool = False) -> int:
    """The status of a process; it and all that it started are ended where this one is interrupted, or at the limit."""
    settings = json.dumps([[str(Path(place).absolute()) for place in sys.path], folder, *words])
    sink = subprocess.DEVNULL if quiet else None
    interrupted = False

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", program, settings], process_group=0, stdout=sink, stderr=sink
    )
    try:
        while True:
            try:
                return worker.wait(PATIENCE if interrupted else None if limit == inf else limit)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                worker.send_signal(signal.SIGINT)
            except subprocess.TimeoutExpired:
                if interrupted:
                    raise KeyboardInterrupt from None
                raise
    finally:
        # Also what it started and did not end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        signal.signal(signal.SIGTERM, before)
