"""What there is to choose from: the steps that can fill every buffer, and the bodies of those that are kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from egraph_opt.egraph.snapshot import ENode
from egraph_opt.ir import extensions, library, scalar
from egraph_opt.ir.terms import Call, Compute, Reshape, Source, Tensor


@dataclass(frozen=True, eq=False)
class Body:
    """One way to evaluate a tensor: an e-node with a body for each tensor it uses; ``leaves`` are buffer classes."""

    node: ENode
    parts: tuple[Body, ...]
    density: float
    leaves: frozenset[int]
    kind: frozenset[str] = frozenset()
    rank: float = 0.0
    size: int = 1


@dataclass(frozen=True, eq=False)
class Alternative:
    """One step that fills a buffer from the buffers ``needs``; ``text`` orders equal costs and never depends on ids."""

    step: Call | Compute | Reshape
    needs: tuple[int, ...]
    estimate: float

    @cached_property
    def text(self) -> str:
        return signature(self.step)


def buffer_name(owner: int) -> str:
    """The name under which a step refers to the buffer of a class."""
    return f"#{owner}"


def signature(step: Call | Compute | Reshape) -> str:
    """What a step does, whatever buffers it reads: the key of its measurements.

    It tells versions of what users added apart.
    """
    from egraph_opt.ir.program import kernel_signature
    from egraph_opt.ir.terms import show

    match step:
        case Call(operator, attributes, arguments, extents):
            shapes = ",".join(
                "x".join(map(str, a.extents)) + ("c" if isinstance(a, Source) and a.constant else "") for a in arguments
            )
            called = f"{operator}[{attributes}]({shapes})->{'x'.join(map(str, extents))}"
            if operator not in library.ADDED and not scalar.ADDED:
                return called
            from egraph_opt.extract.own_kernels import version

            return version(step, called)
        case Compute(tensor):
            body, sources = kernel_signature(tensor)
            shapes = ",".join("x".join(map(str, source.extents)) for source in sources)
            functions = extensions.identity(body)
            return f"kernel({shapes}) {show(body)}" + (f" with {functions}" if functions else "")
        case Reshape(buffer, extents):
            return f"reshape({'x'.join(map(str, buffer.extents))})->{'x'.join(map(str, extents))}"


@dataclass
class Problem:
    """The AND-OR graph of buffers. ``given`` buffers exist already, ``folded`` ones are computed ahead of time.

    ``values`` are those of folded buffers, once they were computed.
    """

    alternatives: dict[int, list[Alternative]]
    roots: dict[str, int]
    given: dict[int, Source]
    folded: dict[int, Tensor | Call | Reshape]
    extents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    values: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


def well_founded(
    constants: Mapping[int, Sequence[Alternative]], given: Mapping[int, Source]
) -> dict[int, Call | Compute | Reshape]:
    """The step that computes each buffer of weights in the fewest stages, the cheapest of them: none waits for itself,
    as two that are reshapes of each other would."""
    chosen: dict[int, Call | Compute | Reshape] = {}
    users: dict[int, list[tuple[int, Alternative]]] = {}
    left: dict[Alternative, int] = {}
    ready: dict[int, list[Alternative]] = {}
    for owner, found in constants.items():
        for alternative in found:
            waits = {need for need in alternative.needs if need not in given}
            left[alternative] = len(waits)
            for need in waits:
                users.setdefault(need, []).append((owner, alternative))
            if not waits:
                ready.setdefault(owner, []).append(alternative)
    while ready:
        for owner, some in ready.items():
            chosen[owner] = min(some, key=lambda a: (a.estimate, a.text)).step
        filled, ready = ready, {}
        for need in filled:
            for owner, alternative in users.get(need, ()):
                left[alternative] -= 1
                if not left[alternative] and owner not in chosen:
                    ready.setdefault(owner, []).append(alternative)
    return chosen
