"""Devices of a TVM RPC tracker as an executor, and the worker that makes a machine such a device.

A tracker (``python -m tvm.exec.rpc_tracker``) hands out the devices that registered under a key, each to one client at
a time. ``egraph-opt worker`` registers a machine; it runs :func:`runner.measure`, so library calls are timed there as
well as kernels. There is no authentication: whoever reaches a worker can run code on it, so it listens on the loopback
interface unless told otherwise, for use through a tunnel.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

from egraph_opt.backends.model_timer import DevicesLost
from egraph_opt.backends.runner import measure
from egraph_opt.errors import BackendMissing, UsageError, one_line

T = TypeVar("T")
# What the worker registers, and a client calls.
FUNCTION = "egraph_opt.measure"
# Seconds for a tracker to answer, between two looks whether there are devices, and for one request on a device.
TRACKER_SECONDS, PATROL_SECONDS, SESSION_SECONDS = 10.0, 1.0, 1800.0
# The ports that a worker tries.
PORTS = (9090, 9199)


def address_of(text: str) -> tuple[str, int]:
    """``HOST:PORT``, also ``[::1]:9190``. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UsageError(f"{text!r} is not the address of a tracker such as 127.0.0.1:9190")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Connection:
    """A connection to a tracker that does not wait for ever. Raises DevicesLost where there is no tracker."""

    def __init__(self, address: tuple[str, int]) -> None:
        from tvm.rpc import base

        self._base = base
        self._name = f"{address[0]}:{address[1]}"
        try:
            self._socket = socket.create_connection(address, TRACKER_SECONDS)
            self._socket.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(self._socket, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise OSError("it is something else")
        except OSError as error:
            raise DevicesLost(f"no TVM RPC tracker answers at {self._name}: {error}") from error

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def devices(self) -> list[str]:
        """The keys of all devices, each as often as there are devices with it."""
        answer = self._asked([self._base.TrackerCode.SUMMARY])
        return sorted(str(entry.get("key", "")).removeprefix("server:") for entry in answer["server_info"])

    def ask_for(self, key: str) -> None:
        """Queue up for a device."""
        self._base.sendjson(self._socket, [self._base.TrackerCode.REQUEST, key, "", 1])
        self._socket.settimeout(PATROL_SECONDS)

    def given(self) -> tuple[str, int, str] | None:
        """The device that was asked for: host, port and the key to open it; None where there is none yet."""
        try:
            if not self._socket.recv(1, socket.MSG_PEEK):
                raise DevicesLost(f"the tracker at {self._name} ended")
        except TimeoutError:
            return None
        self._socket.settimeout(TRACKER_SECONDS)
        host, port, key = self._received()
        return str(host), int(port), str(key)

    def _asked(self, question: Any) -> Any:
        self._base.sendjson(self._socket, question)
        return self._received()

    def _received(self) -> Any:
        try:
            code, answer = self._base.recvjson(self._socket)
        except (OSError, ValueError, TypeError) as error:
            raise DevicesLost(f"the tracker at {self._name} does not answer: {error}") from error
        if code != self._base.TrackerCode.SUCCESS:
            raise DevicesLost(f"the tracker at {self._name} refuses")
        return answer


class TrackerExecutor(Executor):
    """Runs :func:`runner.measure`, and nothing else, on the devices of a tracker that have a key.

    Raises UsageError for an address that is none, DevicesLost where no tracker or no such device answers.
    """

    def __init__(self, tracker: str, key: str) -> None:
        need_tornado()
        self._address = address_of(tracker)
        self._key = key
        self._threads: list[threading.Thread] = []
        self._ended = self._given_up = False
        self._check()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """The answer of a device, once one was free."""
        if fn is not measure or len(args) != 1 or kwargs:
            raise TypeError("devices of a tracker run egraph_opt.backends.runner.measure only")
        if self._ended:
            raise RuntimeError("the executor was shut down")
        future: Future[Any] = Future()
        # Daemons: a device that never answers keeps no program from ending.
        thread = threading.Thread(target=self._attend, args=(future, args[0]), daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work, and with ``cancel_futures`` give up what has no device yet."""
        self._ended = True
        self._given_up = cancel_futures
        for thread in self._threads if wait else ():
            thread.join()

    def __exit__(self, *_: object) -> None:
        """Unlike that of other executors it does not wait: nobody wants the answers any more."""
        self.shutdown(wait=False, cancel_futures=True)

    def _attend(self, future: Future[bytes], request: bytes) -> None:
        """Wait for a device, and for its answer."""
        try:
            device = self._device(future)
            if device is None:
                return
            answer: Future[bytes] = Future()
            threading.Thread(target=_call, args=(answer, device, request), daemon=True).start()
            if not wait_for([answer], SESSION_SECONDS).done:
                raise DevicesLost(f"{device[0]}:{device[1]} did not answer for {SESSION_SECONDS:g} s")
            future.set_result(answer.result())
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                future.set_exception(error)

    def _device(self, future: Future[bytes]) -> tuple[str, int, str] | None:
        """A device that is free now; None where nobody waits for it any more."""
        with _Connection(self._address) as connection:
            connection.ask_for(self._key)
            while (device := connection.given()) is None:
                self._check()
                if self._given_up:
                    future.cancel()
                if future.cancelled():
                    return None
        return device if future.set_running_or_notify_cancel() else None

    def _check(self) -> None:
        with _Connection(self._address) as connection:
            devices = connection.devices()
        if self._key not in devices:
            known = f"; it has {', '.join(dict.fromkeys(devices))}" if devices else "; it has none at all"
            where = f"{self._address[0]}:{self._address[1]}"
            raise DevicesLost(f"the tracker at {where} has no device with the key {self._key!r}{known}")


def _call(answer: Future[bytes], device: tuple[str, int, str], request: bytes) -> None:
    """Have a device answer a request."""
    found = _answer(device, request)
    if isinstance(found, bytes):
        answer.set_result(found)
    else:  # a new error: an old one would hold the session, and so the device
        answer.set_exception(DevicesLost(f"{device[0]}:{device[1]} {found}"))


def _answer(device: tuple[str, int, str], request: bytes) -> bytes | str:
    """The answer, or in words why there is none."""
    from tvm import rpc

    try:
        session = rpc.connect(*device, session_timeout=SESSION_SECONDS)
        try:
            function = session.get_function(FUNCTION)
        except AttributeError:
            return "is no device of egraph-opt worker"
        return bytes(function(request))
    except Exception as error:  # TVM's exceptions are of many kinds and many lines
        return f"was lost: {one_line(str(error))}"


def need_tornado() -> None:
    """Raise BackendMissing where TVM's RPC has not what it needs."""
    from importlib.util import find_spec

    if find_spec("tornado") is None:
        raise BackendMissing("TVM's RPC needs tornado: pip install 'egraph-opt[distributed]'")


def serve(tracker: str, key: str, *, host: str = "127.0.0.1", ready: Callable[[int], None] = lambda port: None) -> None:
    """Be a device of a tracker until interrupted; ``ready`` is told the port. Returns only by an exception.

    ``host`` is the address of the interface on which to listen.
    """
    need_tornado()
    address = address_of(tracker)
    with _Connection(address):
        pass
    import tvm_ffi
    from tvm.rpc.server import PopenRPCServerState

    def answer(request: bytes) -> bytearray:
        print(f"measuring what {len(request)} bytes ask for", file=sys.stderr, flush=True)
        return bytearray(measure(bytes(request)))

    tvm_ffi.register_global_func(FUNCTION, answer, override=True)

    def say(what: threading.ExceptHookArgs) -> None:
        print(f"a session ended badly: {what.exc_value}", file=sys.stderr, flush=True)

    threading.excepthook = say
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path.cwd()
    sys.path[:] = [str(Path(entry).absolute()) for entry in sys.path]  # sessions have folders of their own
    try:
        while True:
            # It forks a process for each session, and when one of them dies it stops listening, in a folder that is
            # gone.
            os.chdir(folder)
            server = _in_daemon(lambda: PopenRPCServerState(host, *PORTS, tracker_addr=address, key=key, silent=True))
            ready(server.port)
            while server.thread.is_alive():
                server.thread.join(PATROL_SECONDS)
            server.sock.close()
    finally:
        for child in multiprocessing.active_children():
            child.kill()


def _in_daemon(start: Callable[[], T]) -> T:
    """What a function returns in a daemon thread: the threads that it starts end with the process, too."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(start())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found.result()
