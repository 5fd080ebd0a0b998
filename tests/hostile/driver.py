"""Runs `egraph-opt optimize` on hostile files, many in one process, and writes down what it did.

Used as ``python -m tests.hostile.driver FOLDER CASE…``: prints one line of JSON before and one after every case. A case
that hangs or crashes ends the process, so the reader knows which one it was.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.hostile.build import MODEL, SECRET

# Bytes beyond what is used before the first case; seconds of processor time, and of time at all for what only waits.
MEMORY = 2 << 30
PROCESSOR_SECONDS, SECONDS = 10, 60
# Of a run with a time limit: what the option says.
TIME_LIMIT = "4"
_OPENED: list[str] = []
_WATCHING = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHING:
        return
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
        _OPENED.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event.startswith(
        ("socket.connect", "socket.bind", "socket.getaddrinfo", "os.system", "os.exec", "os.posix_spawn")
    ):
        _OPENED.append(f"event {event}")


def files(folder: Path) -> dict[str, int]:
    """Everything below a folder: the size of files, -1 for the rest."""
    return {
        str(path.relative_to(folder)): path.lstat().st_size if path.is_file() and not path.is_symlink() else -1
        for path in sorted(folder.rglob("*"))
    }


def run(make: Any, place: Path, limit: bool) -> dict[str, Any]:
    """Exit code, texts, files that were opened, and files before and after, of one case."""
    global _WATCHING
    from egraph_opt.cli import main

    folder, temporary = place / "model", place / "temporary"
    for path in (folder, place / "outside", temporary):
        path.mkdir(parents=True)
    (place / "outside" / "secret.bin").write_bytes(SECRET)
    words = make(folder) or [str(folder / MODEL)]
    os.chdir(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    before, source = files(folder), (folder / MODEL)
    original = source.read_bytes() if source.is_file() else b""
    out, err = io.StringIO(), io.StringIO()
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    options = ["--cost", "static", "--portable", "--threads", "1", *(["--time-limit", TIME_LIMIT] if limit else [])]
    _OPENED.clear()
    _WATCHING, problem, code = True, "", -1
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["optimize", *words, *options])
    except BaseException:
        problem = traceback.format_exc()
    _WATCHING = False
    faulthandler.cancel_dump_traceback_later()
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = files(folder)
    end = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "code": code,
        "out": out.getvalue()[-3000:],
        "err": err.getvalue()[-3000:],
        "problem": problem,
        "opened": sorted(set(_OPENED)),
        "new": sorted(name for name in after if name not in before),
        "gone": sorted(name for name in before if name not in after),
        "kept": not original or (source.is_file() and source.read_bytes() == original),
        "leaks": any(SECRET in (folder / name).read_bytes() for name in after if 0 < after[name] < 1 << 24),
        "left": sorted(files(temporary)),
        "pwned": any("pwned" in name for name in after if name not in before and "touch" not in name),
        "seconds": end.ru_utime + end.ru_stime - used.ru_utime - used.ru_stime,
    }
    shutil.rmtree(place)
    return found


def limit_memory() -> None:
    """Let this process have so much more memory than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def warm_up() -> None:
    """Load every library before memory and files are watched."""
    from tests.hostile.build import good
    from tests.pipeline.support import static

    static(good(), portable=True)
    os.sched_getaffinity(0)


def main() -> None:
    """Run the named cases."""
    from tests.hostile.cases import CASES

    folder, names = Path(sys.argv[1]), sys.argv[2:]
    known = {case.name: case for case in CASES}
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    warm_up()
    sys.addaudithook(_watch)
    limit_memory()
    for number, name in enumerate(names):
        print(json.dumps({"begin": name}), file=report, flush=True)
        found = run(known[name].make, folder / str(number), known[name].limit)
        print(json.dumps({"end": name, **found}), file=report, flush=True)


if __name__ == "__main__":
    main()
