"""Every example of the gallery runs as its documentation says, prints something and proves its claims."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from egraph_opt import examples
from egraph_opt.backends.environment import working_compiler

NAMES = sorted(module.name for module in pkgutil.iter_modules(examples.__path__))
# These build kernels.
NEED_COMPILER = ("own_kernel", "own_scalar_function", "own_schedule")
LONGEST = 80


def test_the_gallery_is_complete() -> None:
    assert len(NAMES) >= 10
    assert {"my_first_rule", "association", "own_kernel", "saturate_a_model"} <= set(NAMES)


# In a process of its own: what examples register stays registered.
@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    if name in NEED_COMPILER and working_compiler()[0] is None:
        pytest.skip("no C compiler")
    command = [sys.executable, "-m", f"egraph_opt.examples.{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example prints what it shows"


@pytest.mark.parametrize("name", NAMES)
def test_form(name: str) -> None:
    source = (Path(examples.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")
    assert source.startswith('"""')
    assert len(source.splitlines()) <= LONGEST
    assert "    assert " in source
    assert "def main() -> None:" in source
