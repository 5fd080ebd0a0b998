"""What measuring and running need of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from egraph_opt.gpu.files import LibraryCall, Module, Work
from egraph_opt.ir.expr import Extents


class Device(Protocol):
    """Float32 arrays in a device's memory, and work on them, in order.

    ``key`` names the device and the versions of what runs on it, as in a profile database.
    """

    key: str

    def load(self, modules: Sequence[Module]) -> None:
        """Make the kernels of these modules known; their positions are ``Work.module``."""
        ...

    def upload(self, value: np.ndarray) -> Any:
        """A copy of an array in the device's memory."""
        ...

    def download(self, array: Any) -> np.ndarray:
        """The array as float32 in the host's memory."""
        ...

    def reshape(self, array: Any, extents: Extents) -> Any:
        """The same memory under other extents."""
        ...

    def arena(self, size: int) -> Any:
        """So many bytes of the device's memory."""
        ...

    def part(self, arena: Any, offset: int, extents: Extents) -> Any:
        """A float32 array in an arena, from a byte on."""
        ...

    def fills(self, work: Work) -> bool:
        """Whether the work can write its result where it is told to."""
        ...

    def work(self, work: Work, arguments: Sequence[Any], into: Any = None) -> Any:
        """The result of one step: a new array, or ``into`` where it ``fills``. Raises EgraphOptError where it fails.

        It shares no memory with the arguments.
        """
        ...

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """What ``run`` makes the device do, ready to be done again, as one graph where the device has such."""
        ...

    def seconds(self, run: Callable[[], None], repeats: int) -> float:
        """How long the device takes for ``run``, on average over ``repeats`` in a row."""
        ...


def called(work: Work, arguments: Sequence[Any], call: Callable[[LibraryCall, Sequence[Any]], Any]) -> Any:
    """The result of a work's library calls, done one after the other by ``call``.

    Arguments may have other extents than the work reads them with, as those of kernels, which see memory only.
    """
    shaped = zip(arguments, work.arguments, strict=True)
    buffers = {f"in{i}": value.reshape(extents) for i, (value, extents) in enumerate(shaped)}
    for each in work.calls:
        buffers[each.buffer] = call(each, [buffers[name] for name in each.arguments])
    return buffers[work.calls[-1].buffer]
