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
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path

from egraph_opt.cli import build_parser, fail, main
from egraph_opt.errors import INTERNAL_EXIT_CODE, EgraphOptError, InputRejected, Interrupted, LimitReached
from egraph_opt.limits import OUT_OF_MEMORY, OUT_OF_TIME, held_by

# Seconds that a process has to end itself after Ctrl-C.
PATIENCE = 1.5
# The time limit may be exceeded by this factor and so many seconds, the memory limit by this factor: the process keeps
# them itself where it can.
LATENESS, GRACE, EXCESS = 1.05, 0.5, 1.1
# Seconds between two looks at the memory.
LOOK = 0.05
# Seconds in which what was found must be written, or the model as it is.
WRITING_SECONDS = 60.0
# Seconds that a model may take to crash onnxruntime again.
TRYING_SECONDS = 30.0
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
    most = EXCESS * options.memory_limit if options.memory_limit else inf
    with tempfile.TemporaryDirectory(prefix="egraph-opt-", ignore_cleanup_errors=True) as folder:
        try:
            code = _kept_or_done(words, folder, limit, most)
        except KeyboardInterrupt:
            return fail("interrupted", Interrupted.exit_code)
        except LimitReached as reason:
            return fail(str(reason), LimitReached.exit_code)
        if code >= 0:
            return code
        if -code in (signal.SIGKILL, signal.SIGXCPU):
            return fail("the process was killed, perhaps for want of memory", LimitReached.exit_code)
        if -code in (signal.SIGTERM, signal.SIGHUP):
            return fail("the process was ended", 128 - code)
        name = signal.Signals(-code).name
        with contextlib.suppress(KeyboardInterrupt, LimitReached):
            if _run(_TRY, [str(options.model)], folder, TRYING_SECONDS, quiet=True) < 0:
                return fail(f"onnxruntime crashes on {options.model} ({name})", InputRejected.exit_code)
        return fail(f"internal error, please report it: the process crashed ({name})", INTERNAL_EXIT_CODE)


def _kept_or_done(words: Sequence[str], folder: str, limit: float, most: float) -> int:
    """The status of the run, or, where a limit ended it, of one that writes the model as it is."""
    announced = Path(folder, "writing")
    try:
        return _run(_RUN, [*words, f"--announce={announced}"], folder, limit, most, announced=announced)
    except LimitReached as reason:
        code = _run(_RUN, [*words, f"--keep={reason}"], folder, WRITING_SECONDS, most)
        if code == LimitReached.exit_code or code == -signal.SIGKILL:
            raise
        return code


def _turn(left: float, most: float) -> float:
    """Seconds until the next look."""
    return max(min(left, LOOK if most < inf else inf), 0.0)


def _run(
    program: str,
    words: Sequence[str],
    folder: str,
    limit: float,
    most: float = inf,
    *,
    quiet: bool = False,
    announced: Path | None = None,
) -> int:
    """The status of a process; it and all that it started are ended where this one is interrupted, or at a limit.

    Raises LimitReached after ``limit`` seconds, or where they hold more than ``most`` bytes. From the moment the file
    ``announced`` is there the process has its time to write.
    """
    settings = json.dumps([[str(Path(place).absolute()) for place in sys.path], folder, *words])
    sink = subprocess.DEVNULL if quiet else None
    interrupted = False

    def stop(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", program, settings], process_group=0, stdout=sink, stderr=sink
    )
    until = time.monotonic() + limit
    try:
        while True:
            try:
                left = until - time.monotonic()
                return worker.wait(PATIENCE if interrupted else None if left == inf == most else _turn(left, most))
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                worker.send_signal(signal.SIGINT)
            except subprocess.TimeoutExpired:
                if interrupted:
                    raise KeyboardInterrupt from None
                if announced is not None and announced.exists():
                    until, announced = time.monotonic() + WRITING_SECONDS, None
                if time.monotonic() > until:
                    raise LimitReached(OUT_OF_TIME) from None
                if most < inf and held_by(worker.pid) > most:
                    raise LimitReached(OUT_OF_MEMORY) from None
    finally:
        # Also what it started and did not end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        signal.signal(signal.SIGTERM, before)
