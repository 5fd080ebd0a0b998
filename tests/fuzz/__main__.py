"""The fuzzer: ``python -m tests.fuzz --seconds 3600 --seed 1 --keep findings``.

Every case is a pure function of the seed and its number; ``python -m tests.fuzz --only SEED NUMBER`` judges one again,
``--file MODEL.onnx`` a file. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Cases a worker gets before it is replaced, so that what leaks does not add up.
BATCH = 400
# The same question to onnxruntime alone, in a process of its own: its crashes and hangs are not ours.
ALONE = """
import sys, resource
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from pathlib import Path
from tests.fuzz.oracle import _answers
_answers(Path(sys.argv[1]))
"""


@dataclass
class Fuzzer:
    """Counts of classes, and findings as (case, class, details, steps); files are kept in ``folder``."""

    folder: Path | None = None
    verbose: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str, str, str]] = field(default_factory=list)
    failures: int = 0

    def judge(self, cases: list[str]) -> None:
        """Judge cases in a worker, or several when they crash."""
        while cases:
            done = 0
            with subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            ) as worker:  # fmt: skip
                answer, errors = worker.communicate("".join(f"{case}\n" for case in cases))
            begun = ""
            for line in answer.splitlines():
                entry = json.loads(line)
                if "begin" in entry:
                    begun = entry["begin"]
                else:
                    done += 1
                    self.note(entry["end"], entry["class"], entry["details"], entry["steps"])
                    begun = ""
            if done == len(cases):
                return
            if not begun:
                self.failures += 1
                if self.failures > 10:
                    raise RuntimeError(f"the worker does not start: {errors[-2000:]}")
                time.sleep(30)  # somebody may be editing the source
                continue
            self.note(begun, f"worker ended with {worker.returncode}", errors[-1500:], "")
            cases = cases[done + 1 :]

    def note(self, case: str, found: str, details: str, steps: str) -> None:
        """Count a verdict and keep a finding."""
        if not found.startswith("ok"):
            content = content_of(case)
            if found.startswith("worker ended") and self._runtime_fails(content):
                found = "ok, onnxruntime crashes or hangs"
        self.counts[found] += 1
        if not found.startswith("ok"):
            self.findings.append((case, found, details, steps))
            print(f"{found}: python -m tests.fuzz --only {case}\n    {steps}\n    {details[:600]}", flush=True)
            if self.folder is not None:
                (self.folder / f"{case.replace('/', '_').replace(' ', '-')}.onnx").write_bytes(content)
        elif self.verbose or found == "ok 5":
            print(f"{found}: {case} {details[:300]}", flush=True)

    def _runtime_fails(self, content: bytes) -> bool:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(content)
            done = subprocess.run([sys.executable, "-c", ALONE, str(path)], capture_output=True)
        return done.returncode < 0


def content_of(case: str) -> bytes:
    """The bytes of a case."""
    from tests.fuzz.mutate import mutated

    seed, _, number = case.partition(" ")
    return mutated(int(seed), int(number))[1] if number.isdigit() else Path(case).read_bytes()


def batches(seed: int, first: int, last: int, until: float) -> Iterator[list[str]]:
    """Cases in batches, until a number or a time is reached."""
    while first < last and time.monotonic() < until:
        yield [f"{seed} {number}" for number in range(first, min(first + BATCH, last))]
        first += BATCH


def main() -> int:
    """Fuzz."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="number of the first case")
    parser.add_argument("--cases", type=int, default=1 << 60, metavar="N", help="how many cases at most")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where files with findings go")
    parser.add_argument("--only", nargs=2, metavar=("SEED", "NUMBER"), help="judge one case again")
    parser.add_argument("--file", type=Path, help="judge a file")
    options = parser.parse_args()
    fuzzer = Fuzzer(options.keep, verbose=bool(options.only or options.file))
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if options.only or options.file:
        fuzzer.judge([" ".join(options.only) if options.only else str(options.file.absolute())])
    else:
        for cases in batches(options.seed, options.first, options.first + options.cases, begun + options.seconds):
            fuzzer.judge(cases)
            total = sum(fuzzer.counts.values())
            rate = total / (time.monotonic() - begun) * 60
            print(f"{total} cases, {rate:.0f} a minute: {dict(sorted(fuzzer.counts.items()))}", flush=True)
    return 1 if fuzzer.findings else 0


if __name__ == "__main__":
    sys.exit(main())
