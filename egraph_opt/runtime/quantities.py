"""Numbers with units, for people."""

from egraph_opt.runtime.timing import significant


def byte_text(size: float) -> str:
    """A number of bytes: 512 B, 12.1 MiB."""
    whole = max(round(size), 1)
    unit = max(0, min(4, (whole.bit_length() - 1) // 10))
    return f"{round(size)} B" if unit == 0 else f"{significant(size / 1024**unit)} {'KMGT'[unit - 1]}iB"


def quantity(value: float, unit: str) -> str:
    """A value in a unit: seconds as us or ms, bytes with binary prefixes, others with three digits."""
    if unit == "s":
        return f"{value * 1e6:.3g} us" if value < 1e-3 else f"{value * 1e3:.3g} ms"
    return byte_text(value) if unit == "B" else f"{significant(value)} {unit}".rstrip()


def origin(source: str, charge: float, unit: str) -> str:
    """Where the cost of a step is from, and what is charged on top of it: "measured + 2 us per step"."""
    return f"{source} + {quantity(charge, unit)} per step" if charge else source
