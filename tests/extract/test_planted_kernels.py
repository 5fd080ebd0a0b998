"""Kernels that crash, hang, eat memory or compute something else are failures, and the run goes on."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import pytest

from egraph_opt.backends import model_timer, tvm_build, tvm_lower
from egraph_opt.backends.environment import find_compiler
from egraph_opt.backends.runner import LocalRunner
from egraph_opt.extract.alternatives import signature
from egraph_opt.extract.profile import KERNEL, Profile
from egraph_opt.extract.profiler import PORTABLE, Profiler
from egraph_opt.ir import expr as ex
from egraph_opt.ir import maps
from egraph_opt.ir.program import Step
from egraph_opt.ir.terms import Apply, Compute, Fill, Read, Reduce, Source, Tensor, View

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="kernels need a C compiler")
REAL = tvm_build.compile_object
SECONDS = 2.0
MEMORY = 600 << 20
PLANTED = {
    3: "*(volatile int *)8 = 1;",
    4: "for (volatile int i = 0;; i++);",
    5: "for (;;) memset(malloc(1 << 24), 1, 1 << 24);",
    6: "",  # nothing is written
    7: "abort();",
}


@dataclass(frozen=True)
class Impatient(LocalRunner):
    """This machine, and a kernel that takes seconds hangs."""

    def time_each(self, models: Sequence[Any], **options: Any) -> list[tuple[list[float], str]]:
        return model_timer.time_each(models, stage_seconds=SECONDS, **options)


def relu(rows: int) -> Compute:
    return Compute(Apply("relu", (Read(Source("x", (rows, 8))),)))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code of other kernels in the place of those with so many rows."""

    def compile_object(kernel: tvm_build.AnyKernel, *rest: Any) -> bytes:
        code = PLANTED.get(kernel.extents[0])
        if code is None:
            return REAL(kernel, *rest)
        source, result = tmp_path / "planted.c", tmp_path / "planted.o"
        source.write_text(
            "#include <stdlib.h>\n#include <string.h>\n"
            f"int __tvm_ffi_{kernel.name}(void *s, void *a, int n, void *r) {{ {code} return 0; }}\n"
        )
        subprocess.run([str(find_compiler()), "-O0", "-fPIC", "-c", source, "-o", result], check=True)
        return result.read_bytes()

    monkeypatch.setattr(tvm_build, "compile_object", compile_object)
    monkeypatch.setattr(model_timer, "available_memory", lambda: MEMORY)


def measured(*rows: int) -> dict[int, Any]:
    """What is known of the kernel of each number of rows after all of them were measured together."""
    profile = Profile(None, "device")
    steps = [(signature(relu(n)), Step("y", relu(n))) for n in rows]
    Profiler(profile, find_compiler(), 1, 17, runner=Impatient()).measure(steps, lambda done, total: None)
    return {n: profile.measured[profile._key(key)][KERNEL] for n, (key, _) in zip(rows, steps, strict=True)}


def test_bad_kernels_are_failures_and_the_others_are_timed(planted: None) -> None:
    found = measured(2, 3, 4, 5, 6, 7, 9)
    assert all(found[n].samples and not found[n].error for n in (2, 9))
    assert not any(found[n].samples for n in PLANTED)
    assert found[3].error == "the process that timed it died (exit code -11)"
    assert found[4].error == "the process that timed it was ended: no answer for 2 s"
    assert re.search(r"died \(exit code -11\)|took more than 540 MiB of memory", found[5].error)  # by who was faster
    assert found[6].error.startswith("it does not compute what it should: ")
    assert found[7].error == "the process that timed it died (exit code -6)"


def test_a_generated_kernel_that_is_wrong_at_its_end_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tvm_lower.kernel_module

    def wrong(name: str, body: Tensor, *rest: Any) -> Any:
        place = maps.linear([ex.iterator(i) for i in range(len(body.extents))], body.extents)
        last = maps.index_map((1,), body.extents, [place - (prod(body.extents) - 1)])
        return real(name, Apply("add", (body, View(Fill(Fraction(1), (1,)), last))), *rest)

    monkeypatch.setattr(tvm_lower, "kernel_module", wrong)
    step = Step("y", Compute(Reduce("sum", Read(Source("x", (400, 30, 8))), 1)))
    key, profile = signature(step.buffer), Profile(None, "device")
    Profiler(profile, find_compiler(), 1, 17).measure([(key, step)], lambda done, total: None)
    assert profile.failure(key, KERNEL).endswith("first at [399, 29]")
    best = profile.best(key)
    assert best is not None
    assert (best.implementation, bool(best.samples)) == (PORTABLE, True)


def test_a_bad_kernel_is_not_measured_again(planted: None, tmp_path: Path) -> None:
    for _ in range(2):
        profile = Profile(tmp_path / "p", "device")
        before = dict(profile.measured)
        steps = [(signature(relu(6)), Step("y", relu(6)))]
        Profiler(profile, find_compiler(), 1, 17).measure(steps, lambda done, total: None)
    assert profile.measured == before
    assert KERNEL in next(iter(before.values()))
