"""Values of the sources of a program, drawn from a seed and the source's name."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from egraph_opt.ir.program import Program
from egraph_opt.ir.terms import Buffer, Source, Tensor, children

Array = np.ndarray[Any, Any]
# residues: for exact arithmetics; small: integers with ties and zeros; normal; positive; special: everything IEEE has;
# moderate: NaN, infinities and signed zeros among values whose sums and products neither overflow nor vanish.
Values = Literal["residues", "small", "normal", "positive", "special", "moderate"]
_MODERATE = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0, -1.0, 0.5, -3.0, 1e3, -1e3, 1e-3)
_SPECIAL = (*_MODERATE, 1e300, -1e300, 1e-300, -1e-300, 5e-324, -5e-324)


def drawn_values(kind: Values, extents: Sequence[int], *, seed: int = 0, name: str = "x") -> Array:
    """An array of these extents; equal arguments give equal values."""
    generator = np.random.default_rng([seed, zlib.crc32(f"{kind} {name}".encode())])
    match kind:
        case "residues":
            return generator.integers(1, 1 << 20, tuple(extents))
        case "small":
            return generator.integers(-3, 4, tuple(extents)).astype(float)
        case "normal":
            return generator.normal(size=tuple(extents))
        case "positive":
            return np.exp(generator.normal(size=tuple(extents)))
    choices = np.array(_SPECIAL if kind == "special" else _MODERATE)
    return np.where(
        generator.random(tuple(extents)) < 0.7,
        generator.choice(choices, tuple(extents)),
        generator.normal(size=tuple(extents)),
    )


def sources(program: Program) -> dict[str, Source]:
    """All sources that a program reads, by name, without the tensors that it defines."""
    found = {source.name: source for source in program.inputs}
    defined = set()
    for name, term in program.definitions:
        for source in _leaves(term):
            if source.name not in defined:
                found.setdefault(source.name, source)
        defined.add(name)
    return found


def source_values(program: Program, kind: Values, seed: int) -> Mapping[str, Array]:
    """Values for all sources of a program; the values that it gives for its constants are not used."""
    return {name: drawn_values(kind, source.extents, seed=seed, name=name) for name, source in sources(program).items()}


def _leaves(term: Tensor | Buffer) -> Iterator[Source]:
    if isinstance(term, Source):
        yield term
    for child in children(term):
        yield from _leaves(child)
