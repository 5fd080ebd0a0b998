"""Judges cases of the fuzzer, one line of JSON before and one after each: ``python -m tests.fuzz.worker``."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

from tests.hostile.driver import limit_memory, warm_up

PROCESSOR_SECONDS, SECONDS = 30, 300


def main() -> None:
    """Read "SEED NUMBER" or paths of files from stdin and judge them."""
    from egraph_opt import candidates
    from tests.fuzz.mutate import mutated
    from tests.fuzz.oracle import verdict

    candidates.CHEAPER = 0.0  # what can be replaced is, whether it promises to be faster or not
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    warm_up()
    limit_memory()
    with tempfile.TemporaryDirectory(prefix="egraph-opt-fuzz-") as folder:
        for line in sys.stdin:
            case = line.rstrip("\n")
            print(json.dumps({"begin": case}), file=report, flush=True)
            seed, _, number = case.partition(" ")
            if number.isdigit():
                steps, content = mutated(int(seed), int(number))
            else:
                steps, content = case, Path(case).read_bytes()
            used = resource.getrusage(resource.RUSAGE_SELF)
            seconds = int(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            found, details = verdict(content, Path(folder), portable=not (number.isdigit() and int(number) % 16 == 0))
            faulthandler.cancel_dump_traceback_later()
            end = {"end": case, "class": found, "details": details, "steps": steps}
            print(json.dumps(end), file=report, flush=True)


if __name__ == "__main__":
    main()
