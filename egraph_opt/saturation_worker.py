"""Saturation in a process of its own, which can be killed.

egglog cannot be interrupted inside a run, and the Python functions of foreign rules may do anything. So both run in a
worker that is watched from outside: a shared page tells which group runs and since when which rule's Python function
is called, and whoever hangs, dies or takes too much memory is known by name.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from operator import is_not
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from egraph_opt.egraph.engine import EGraph
from egraph_opt.egraph.saturate import Budget, Round, Saturation, saturate
from egraph_opt.egraph.snapshot import Snapshot, no_collection
from egraph_opt.errors import EgraphOptError, LimitReached, one_line
from egraph_opt.ir.naming import canonical
from egraph_opt.limits import Limits as RunLimits
from egraph_opt.limits import held_by
from egraph_opt.packs import Pack, Selection, load, registered

if TYPE_CHECKING:
    from egraph_opt.ir.program import Program

# The worker finds modules exactly where its parent does; -P keeps the current folder out, which may hold anything.
# It does not hear Ctrl-C, which is for the parent, but ends with the parent's process group.
_COMMAND = (
    "import json, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]);"
    " from egraph_opt.saturation_worker import work; work(int(sys.argv[2]), int(sys.argv[3]))"
)
# Seconds between two looks at the worker.
_POLL = 0.05
# Objects between two looks for cyclic garbage, and how many of these make one at older objects: an e-graph is a great
# many objects and no garbage, and with Python's numbers a fifth of the time would go there.
_COLLECTION = (100_000, 50, 100)
# Seconds in which a worker must have started.
_START_SECONDS = 60.0
# When a call began (monotonic seconds, 0: egglog itself runs), the number of its group and of its rule.
_BEAT = struct.Struct("<dHH")


@dataclass(frozen=True)
class Limits:
    """Limits that end a worker: seconds of one saturation and of one call of a foreign rule's function, and bytes.

    So do those of the ``whole`` run.
    """

    seconds: float = 120.0
    call_seconds: float = 10.0
    memory: int | None = None
    whole: RunLimits = field(default_factory=RunLimits)


class Fault(Exception):  # noqa: N818 - says what happened
    """A saturation went wrong in ``group``, in a Python function of ``rule`` where that is known."""

    def __init__(self, reason: str, group: str = "", rule: str = "", limit: bool = False) -> None:
        super().__init__(one_line(reason))
        self.reason = one_line(reason)
        self.group = group
        self.rule = rule
        self.limit = limit

    def error(self) -> EgraphOptError:
        """The error of a run in which no pack is to blame."""
        return LimitReached(self.reason) if self.limit else EgraphOptError(f"saturation failed: {self.reason}")


@dataclass(frozen=True)
class Saturated:
    """A saturated e-graph as it was read back, and how it came about."""

    snapshot: Snapshot
    saturation: Saturation


def saturate_program(
    program: Program,
    selection: Selection,
    budget: Budget,
    progress: Callable[[Round], None] | None = None,
    watch: Callable[[str, str], None] | None = None,
) -> Saturated:
    """Saturate in this very process. What tensors are called and in which order they stand changes nothing."""
    canonical_program, names = canonical(program)
    found = saturate_canonical(canonical_program, selection, budget, progress, watch)
    found.snapshot.rename(names)
    return found


def saturate_canonical(
    program: Program,
    selection: Selection,
    budget: Budget,
    progress: Callable[[Round], None] | None = None,
    watch: Callable[[str, str], None] | None = None,
) -> Saturated:
    """Saturate in this very process; equal programs of other names or another order may give other results."""
    egraph = _prepared(selection)
    with egraph.apart(watch):
        egraph.add_program(program)
        done = saturate(egraph, selection.phases, selection.simplification, budget=budget, progress=progress)
        snapshot = Snapshot(egraph)
    _engines.last = (selection.groups, egraph)
    done.made = dict(snapshot.made)
    return Saturated(snapshot, done)


# Each thread's e-graph without a program, with the groups that are declared in it: they belong to their threads.
_engines = threading.local()


def _prepared(selection: Selection) -> EGraph:
    """An e-graph in which the rules are declared; it is put back only where nothing went wrong."""
    groups, egraph = getattr(_engines, "last", ((), None))
    _engines.last = ((), None)
    if egraph is None or len(groups) != len(selection.groups) or any(map(is_not, groups, selection.groups)):
        egraph = EGraph()
        egraph.add_rules(selection.groups)
    return egraph


class Worker:
    """A process that saturates one program after the other. Close it, or use it as a context manager.

    Programs are taken as they are: names and order should be canonical.
    A worker that raised a :class:`Fault` is dead (``alive`` is false) unless the fault was an ordinary exception.
    """

    def __init__(self) -> None:
        self._beat = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        self._beat.truncate(mmap.PAGESIZE)
        self._page = mmap.mmap(self._beat.fileno(), mmap.PAGESIZE)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._connection, theirs = _pair()
        paths = json.dumps([entry or str(Path.cwd()) for entry in sys.path])
        numbers = (theirs.fileno(), self._beat.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND, paths, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what rules print
            stderr=self._errors,
            pass_fds=numbers,
        )
        theirs.close()
        self._started = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process; whoever waits for it gets a :class:`Fault`."""
        if self.alive:
            self._process.kill()

    def close(self) -> None:
        """End the process at once."""
        self.kill()
        self._process.wait()
        self._connection.close()
        self._page.close()
        self._beat.close()
        self._errors.close()

    def saturate(
        self,
        program: Program,
        selection: Selection,
        budget: Budget,
        limits: Limits,
        progress: Callable[[Round], None] | None = None,
    ) -> Saturated:
        """Saturate there. Raises :class:`Fault`; whatever else is raised, a KeyboardInterrupt say, ends the worker."""
        try:
            return self._saturate(program, selection, budget, limits, progress)
        except Fault:
            raise
        except BaseException:
            self._process.kill()
            raise

    def _saturate(
        self,
        program: Program,
        selection: Selection,
        budget: Budget,
        limits: Limits,
        progress: Callable[[Round], None] | None,
    ) -> Saturated:
        self._page[: _BEAT.size] = _BEAT.pack(0.0, 0, 0)
        names = _Names.of(selection)
        until = time.monotonic() + _START_SECONDS
        while not self._started:
            self._started = self._message(until, names, replace(limits, memory=None), "it did not start") == "ready"
        try:
            # Weights stay here: rules see shapes only.
            self._connection.send((replace(program, constants={}), _handed_over(selection), budget))
        except OSError:
            raise self._died(names) from None
        until = time.monotonic() + limits.seconds
        while True:
            message = self._message(until, names, limits, f"it took longer than {limits.seconds:g} seconds")
            match message:
                case ("round", done):
                    if progress is not None:
                        progress(done)
                case ("done", snapshot, saturation):
                    return Saturated(snapshot, saturation)
                case ("fault", reason, group, rule):
                    raise Fault(reason, group, rule)

    def _message(self, until: float, names: _Names, limits: Limits, late: str) -> Any:
        while True:
            try:
                if self._connection.poll(_POLL):
                    with no_collection():
                        return self._connection.recv()
            except (EOFError, OSError):
                raise self._died(names) from None
            now = time.monotonic()
            begun, group, rule = self._where(names)
            if rule in names.foreign and now - begun > limits.call_seconds:
                raise self._killed(f"its Python function ran longer than {limits.call_seconds:g} seconds", group, rule)
            if now > until:
                raise self._killed(late, group, rule)
            if reason := limits.whole.reached():
                raise self._killed(reason, group, rule)
            if limits.memory is not None and held_by(self._process.pid) > limits.memory:
                raise self._killed(f"it took more than {limits.memory / 2**20:.0f} MiB of memory", group, rule)

    def _where(self, names: _Names) -> tuple[float, str, str]:
        begun, group, rule = _BEAT.unpack(self._page[: _BEAT.size])
        return begun, names.groups[group], names.rules[rule]

    def _killed(self, reason: str, group: str, rule: str) -> Fault:
        self._process.kill()
        self._process.wait()
        return Fault(reason, group, rule, limit=True)

    def _died(self, names: _Names) -> Fault:
        code = self._process.wait()
        _, group, rule = self._where(names)
        how = f"ended the process (exit code {code})" if code >= 0 else f"crashed ({signal.Signals(-code).name})"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return Fault(f"{how}: {lines[-1]}" if lines else how, group, rule)


class Workers:
    """Workers that wait for something to do, and threads that wait for those that do something. Close them."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._pending: list[Future[Any]] = []
        self._closed = False

    def start(self, count: int) -> None:
        """Let workers start in the background until there are so many."""
        for worker in [self.take() for _ in range(count - len(self._busy))]:
            self.put(worker)

    def take(self) -> Worker:
        """A worker that is put back when it has done its work."""
        with self._lock:
            if self._closed:
                raise Fault("the run has ended", limit=True)
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    break
                worker.close()
            else:
                worker = Worker()
            self._busy.add(worker)
            return worker

    def put(self, worker: Worker) -> None:
        """Have a worker wait for more; a dead one is forgotten."""
        with self._lock:
            self._busy.discard(worker)
            if worker.alive and not self._closed:
                self._idle.append(worker)
                return
        worker.close()

    def submit(self, most: int, task: Callable[..., Saturated], *arguments: Any) -> Future[Saturated]:
        """Call ``task`` with a worker and the arguments in a thread, of which there are ``most`` at once."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(most, "saturation")
        future = self._threads.submit(lambda: task(self.take(), *arguments))
        self._pending.append(future)
        return future

    def wait(self) -> None:
        """Until all that was submitted has ended in some way."""
        wait_for(self._pending)
        self._pending.clear()

    def close(self) -> None:
        """End all workers at once; what they were doing raises."""
        with self._lock:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            for worker in self._busy:
                worker.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        for worker in workers:
            worker.close()


@dataclass(frozen=True)
class _Names:
    """The groups and rules of a selection by the numbers on the shared page; number 0 is none."""

    groups: tuple[str, ...]
    rules: tuple[str, ...]
    foreign: Mapping[str, str]

    @classmethod
    def of(cls, selection: Selection) -> _Names:
        groups = selection.groups
        rules = (rule.name for group in groups for rule in group.rules)
        return cls(("", *(group.name for group in groups)), ("", *rules), selection.foreign)


def _pair() -> tuple[Connection, Connection]:
    import multiprocessing

    return multiprocessing.Pipe()


# What is pickled by value is global.
_pickling = threading.Lock()


def _handed_over(selection: Selection) -> tuple[Any, ...]:
    """A selection for another process: packs by reference where they have one, else as code by value."""
    with _pickling:
        packs = [
            ("loaded", pack.reference, pack.identity) if pack.reference else ("code", _by_value(pack), pack.name)
            for pack in selection.packs
        ]
    return packs, selection.off, selection.named, selection.fp


def _by_value(pack: Pack) -> bytes:
    import cloudpickle  # type: ignore[import-untyped]

    # What a worker cannot import travels by value; __main__ does so anyway.
    modules = {getattr(each.function, "__module__", None) for rule in pack.rules for each in rule.calls}
    modules |= {getattr(rule.combine, "__module__", None) for rule in pack.rules}
    strange = [sys.modules[name] for name in modules if name in sys.modules and not _importable(name)]
    for module in strange:
        cloudpickle.register_pickle_by_value(module)
    try:
        data: bytes = cloudpickle.dumps(pack)
    except Exception as error:
        raise Fault(f"pack {pack.name!r} cannot be handed to another process: {error}") from error
    finally:
        for module in strange:
            cloudpickle.unregister_pickle_by_value(module)
    return data


def _importable(module: str) -> bool:
    import importlib.util

    if module.partition(".")[0] in ("egraph_opt", *sys.stdlib_module_names):
        return True
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin == getattr(sys.modules[module], "__file__", None)


def _received(packs: list[tuple[Any, ...]], off: frozenset[str], named: frozenset[str], fp: Any) -> Selection:
    found = []
    for kind, content, identity in packs:
        if kind == "code":
            pack = pickle.loads(content)
        else:
            pack = load(content, tried=True)
            if pack.identity != identity:
                raise EgraphOptError(f"rule pack {content} changed while it was in use")
        found.append(pack)
    return registered(Selection(tuple(found), off, named, fp))


def work(connection_number: int, beat_number: int) -> None:
    """The worker: programs come in and snapshots go out until the parent closes the connection."""
    gc.set_threshold(*_COLLECTION)
    connection = Connection(connection_number)
    page = mmap.mmap(beat_number, mmap.PAGESIZE)
    requests: list[Any] = []
    arrived = threading.Semaphore(0)

    def read() -> None:
        while True:
            try:
                requests.append(connection.recv())
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone; whatever runs is of no use
            arrived.release()

    connection.send("ready")
    threading.Thread(target=read, daemon=True).start()
    received: dict[str, Selection] = {}
    while True:
        arrived.acquire()
        program, choice, budget = requests.pop(0)
        _answer(connection, page, program, choice, budget, received)


def _answer(
    connection: Connection,
    page: mmap.mmap,
    program: Program,
    choice: tuple[Any, ...],
    budget: Budget,
    received: dict[str, Selection],
) -> None:
    where = ("", "")
    numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def watch(group: str, rule: str) -> None:
        nonlocal where
        where = (group, rule)
        begun = time.monotonic() if rule else 0.0
        _BEAT.pack_into(page, 0, begun, numbers[0].get(group, 0), numbers[1].get(rule, 0))

    try:
        key = repr(choice)
        if key not in received:
            received[key] = _received(*choice)
        selection = received[key]
        names = _Names.of(selection)
        numbers = ({n: i for i, n in enumerate(names.groups)}, {n: i for i, n in enumerate(names.rules)})
        found = saturate_canonical(program, selection, budget, lambda done: connection.send(("round", done)), watch)
        watch("", "")
        answer: tuple[Any, ...] = ("done", found.snapshot, found.saturation)
    except BaseException as error:  # a foreign rule may raise anything, and egglog's panics are not Exceptions
        text = str(error) if isinstance(error, EgraphOptError) else f"{type(error).__name__}: {error}"
        answer = ("fault", text, *where)
    connection.send(answer)
