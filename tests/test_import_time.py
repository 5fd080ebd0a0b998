"""Importing the package and printing help load nothing heavy."""

import subprocess
import sys
import time

import pytest

HEAVY = ("egglog", "tvm", "tvm_ffi", "onnxruntime", "onnx", "numpy")


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print('LOADED', *(n for n in {HEAVY!r} if n in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "statement",
    [
        "import egraph_opt",
        "import egraph_opt; egraph_opt.EgraphOptError, dir(egraph_opt)",
        "import egraph_opt.cli; egraph_opt.cli.main(['--help'])",
        "import egraph_opt.cli; egraph_opt.cli.main(['optimize', '--help'])",
        "import egraph_opt.runtime.report, egraph_opt.runtime.artifacts",
    ],
)
def test_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) == set()


def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "egraph_opt", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    # The best of several: other tests share the processor.
    assert min(seconds() for _ in range(5)) < 0.3


def test_public_names() -> None:
    import egraph_opt
    from egraph_opt.errors import EgraphOptError

    assert egraph_opt.EgraphOptError is EgraphOptError
    assert isinstance(egraph_opt.__version__, str)
    assert set(egraph_opt.__all__) <= set(dir(egraph_opt))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        egraph_opt.optimise  # noqa: B018
