"""Functions in other processes: answers, errors, crashes and limits."""

import math
import os
import signal
import time
from concurrent.futures import wait
from contextlib import suppress

import pytest

from egraph_opt.backends.processes import ProcessDied, ProcessExecutor
from egraph_opt.errors import LimitReached
from egraph_opt.limits import Limits


def test_answers_come_from_other_processes() -> None:
    with ProcessExecutor(2) as executor:
        assert list(executor.map(math.factorial, range(20))) == [math.factorial(n) for n in range(20)]
        found = {future.result() for future in [executor.submit(os.getpid) for _ in range(8)]}
    assert found
    assert os.getpid() not in found
    assert len(found) <= 2  # no more than there may be, and they are used again


def test_errors_are_raised_and_the_process_goes_on() -> None:
    with ProcessExecutor(1) as executor:
        process = executor.submit(os.getpid).result()
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            executor.submit(math.sqrt, -1.0).result()
        assert executor.submit(os.getpid).result() == process


def test_a_crash_costs_one_call_only() -> None:
    with ProcessExecutor(1) as executor:
        first = executor.submit(os.getpid).result()
        with pytest.raises(ProcessDied, match="SIGSEGV"):
            executor.submit(signal.raise_signal, signal.SIGSEGV).result()
        with pytest.raises(ProcessDied, match="exit code 3"):
            executor.submit(os._exit, 3).result()
        assert executor.submit(os.getpid).result() != first


def test_calls_end_at_the_limit() -> None:
    with ProcessExecutor(2, limits=Limits(time.monotonic() + 1.0)) as executor:
        futures = [executor.submit(time.sleep, 1000) for _ in range(3)]
        wait(futures, timeout=60)
        for future in futures:
            with pytest.raises(LimitReached):
                future.result()


def test_an_interrupt_ends_what_runs() -> None:
    """Leaving by an exception waits for nothing, and no process stays."""
    executor = ProcessExecutor(1)
    with suppress(KeyboardInterrupt), executor:
        process = executor.submit(os.getpid).result()
        executor.submit(time.sleep, 1000)
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
