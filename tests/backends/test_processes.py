"""Functions in other processes: answers, errors, crashes and limits."""

import math
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor, wait
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


def test_processes_can_be_made_ready() -> None:
    """Each of them, and no more than there may be even when calls come meanwhile."""
    with ProcessExecutor(3) as executor:
        executor.prepare(os.putenv, "PREPARED", "yes")
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda _: executor.submit(time.sleep, 0.05).result(), range(6)))
        until = time.monotonic() + 60
        while len(executor._idle) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(executor._idle) == len(executor._all) == 3


def test_processes_that_are_made_ready_do_not_outlive_the_executor() -> None:
    with ProcessExecutor(3) as executor:
        executor.prepare(time.sleep, 1000)
        while not executor._all:
            time.sleep(0.01)
        processes = set(executor._all)
    assert len(processes) == 1, "they start one after the other"
    assert all(process._process.poll() is not None for process in processes)
    assert not executor._all


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
