"""A numpy evaluation of terms, and arrays that end or begin at an inaccessible page."""

import ctypes
import mmap

import numpy as np

from egraph_opt.ir import maps, scalar
from egraph_opt.ir.terms import Apply, Fill, Read, Reduce, Softmax, View

_REDUCE = {"sum": np.sum, "max": np.max, "min": np.min}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_kept = []  # mappings must outlive the arrays over them


def evaluate(term, arrays):
    """The term's value in float64."""
    with np.errstate(all="ignore"):
        match term:
            case Read(source):
                return arrays[source.name].astype(np.float64).reshape(source.extents)
            case View(inner, index):
                return maps.gathered(evaluate(inner, arrays), index)
            case Reduce(operation, inner, count):
                value = evaluate(inner, arrays)
                axes = tuple(range(value.ndim - count, value.ndim))
                return _REDUCE[operation](value, axis=axes) if count else value
            case Apply(function, arguments):
                values = [evaluate(argument, arrays) for argument in arguments]
                return np.asarray(scalar.lookup(function)(*values), dtype=np.float64)
            case Softmax(inner, count):
                value = evaluate(inner, arrays)
                axes = tuple(range(value.ndim - count, value.ndim))
                powers = np.exp(value - value.max(axis=axes, keepdims=True))
                return powers / powers.sum(axis=axes, keepdims=True)
            case Fill(value, extents):
                return np.full(extents, float(value))
    raise AssertionError(term)


def fenced(values, *, at_end):
    """A flat copy of float32 values with an inaccessible page directly after (or before) it."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    page = mmap.PAGESIZE
    data_pages = -(-max(flat.nbytes, 4) // page)
    mapping = mmap.mmap(-1, (data_pages + 2) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    for fence in (0, data_pages + 1):
        assert _libc.mprotect(address + fence * page, page, 0) == 0
    offset = page + (data_pages * page - max(flat.nbytes, 4) if at_end else 0)
    array = np.frombuffer(mapping, np.float32, max(flat.size, 1), offset)
    array[: flat.size] = flat
    _kept.append(mapping)
    return array
