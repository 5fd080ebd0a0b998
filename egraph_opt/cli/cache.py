"""``egraph-opt cache``: what was measured, and moving it between machines."""

import argparse
from collections.abc import Callable
from pathlib import Path

from egraph_opt.cli.arguments import table, whole_number
from egraph_opt.errors import UsageError

SUMMARY = "show, move or clean up what was measured"
DESCRIPTION = """\
The profile database holds what library calls and kernels took on each device. Measurements of another machine or GPU
are plain data and can be imported; values that nobody can have measured are left out."""
EXAMPLES = (
    "egraph-opt cache path",
    "egraph-opt cache info --profile-db H200.db",
    "egraph-opt cache export mine.db --device EPYC",
    "egraph-opt cache import H200.db",
    "egraph-opt cache prune --failed --older 7",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "action", choices=("path", "info", "export", "import", "prune"), help="what to do; prune deletes measurements"
    )
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE.db", help="where to export to, or import from")
    parser.add_argument(
        "--profile-db", type=Path, metavar="FILE", help="the profile database (default: in the cache folder)"
    )
    parser.add_argument(
        "--device", default="", metavar="TEXT", help="export or prune: devices whose name contains this"
    )
    parser.add_argument("--replace", action="store_true", help="import: replace what is there already")
    parser.add_argument("--failed", action="store_true", help="prune: only what failed")
    parser.add_argument("--older", type=whole_number(0), metavar="DAYS", help="prune: only what is older")


def run(options: argparse.Namespace) -> int:
    """Do it and print what was done."""
    from egraph_opt.runtime.cache import default_cache_folder

    database = options.profile_db or default_cache_folder() / "profile.sqlite"
    needs_file = options.action in ("export", "import")
    if needs_file != (options.file is not None):
        raise UsageError(f"cache {options.action} takes {'a' if needs_file else 'no'} file")
    _ACTIONS[options.action](options, database)
    return 0


def _path(options: argparse.Namespace, database: Path) -> None:
    print(database)


def _info(options: argparse.Namespace, database: Path) -> None:
    from egraph_opt.extract.profile_files import info

    entries = info(database) if options.profile_db or database.exists() else []
    rows = [("device", "measured", "failed", "last")]
    rows += [(entry.device, str(entry.measured), str(entry.failed), entry.last) for entry in entries]
    size = database.stat().st_size if database.exists() else 0
    print(f"{database}, {size / 1e6:.1f} MB")
    print(table(rows) if entries else "nothing was measured yet")


def _export(options: argparse.Namespace, database: Path) -> None:
    from egraph_opt.extract.profile_files import export

    print(f"{export(database, options.file, options.device)} measurements written to {options.file}")


def _import(options: argparse.Namespace, database: Path) -> None:
    from egraph_opt.extract.profile_files import import_

    new, absurd = import_(database, options.file, replace=options.replace)
    print(f"{new} measurements taken over{f', {absurd} left out that nobody can have measured' if absurd else ''}")


def _prune(options: argparse.Namespace, database: Path) -> None:
    from egraph_opt.extract.profile_files import prune

    deleted = prune(database, device=options.device, failed=options.failed, days=options.older)
    print(f"{deleted} measurements deleted")


_ACTIONS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "path": _path,
    "info": _info,
    "export": _export,
    "import": _import,
    "prune": _prune,
}
