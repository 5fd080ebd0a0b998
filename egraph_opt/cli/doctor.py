"""``egraph-opt doctor``: what this machine offers, and what is missing."""

import argparse

from egraph_opt.errors import BackendMissing

SUMMARY = "show versions, compiler, processor and cache"
DESCRIPTION = "Show what optimizing on this machine will use. Exit code 6 where something that is needed is missing."
EXAMPLES = ("egraph-opt doctor",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options."""


def run(options: argparse.Namespace) -> int:
    """Print one line per finding."""
    from egraph_opt.backends import environment, runtimes
    from egraph_opt.runtime.cache import default_cache_folder, folder_size
    from egraph_opt.runtime.quantities import byte_text

    versions = environment.package_versions()
    missing = [name for name in environment.REQUIRED if name not in versions]
    for name in ("python", "egraph-opt", *environment.REQUIRED):
        _line(name, versions.get(name, "not installed"))
    for name in runtimes.NAMES:
        if name not in environment.REQUIRED:
            _line(name, runtimes.version(name) if not runtimes.problem(name) else f"an extra: {runtimes.problem(name)}")
    compiler = environment.find_compiler()
    if compiler is None:
        _line("C compiler", "missing: only portable models can be written (install gcc)")
    else:
        _line("C compiler", f"{compiler}: {environment.compiler_version(compiler)}")
    _line("processor", environment.processor_name())
    _line("threads", str(environment.usable_threads()))
    target = environment.tvm_target()
    _line("TVM target", target)
    files, size = folder_size(default_cache_folder())
    _line("cache", f"{default_cache_folder()}: {files} files, {byte_text(size)}")
    if missing or target.startswith("missing"):
        raise BackendMissing(
            f"{', '.join(missing) or 'TVM'} cannot be used; reinstall egraph-opt with its dependencies"
        )
    return 0


def _line(name: str, value: str) -> None:
    print(f"{name:<15} {value}")
