"""What :func:`egraph_opt.optimize` returns."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egraph_opt.runtime.report import Report

if TYPE_CHECKING:
    import onnx

    from egraph_opt.backends.tvm_build import CompiledKernel


@dataclass
class Result:
    """An optimized ``model``, its kernel ``library`` if kernels were generated (its bytes), and the ``report``.

    ``compiled`` are the kernels that the library was linked from.
    """

    model: onnx.ModelProto
    report: Report
    library: bytes | None = None
    threads: int | None = None
    compiled: tuple[CompiledKernel, ...] = field(default=(), repr=False)
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def runtime(self) -> str:
        """What the model is for, as its metadata say."""
        from egraph_opt.backends.runtimes import DEFAULT, KEY
        from egraph_opt.frontends.onnx_metadata import entry

        return entry(self.model, KEY) or DEFAULT

    def session(self) -> Any:
        """A ready session of the model's runtime, used as one of onnxruntime, which gets the kernel library; a new one
        at every call."""
        from egraph_opt.backends.runtimes import find
        from egraph_opt.runtime.artifacts import library_path

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="egraph-opt-")
            self._write(Path(self._folder.name) / "model.onnx")
        path = Path(self._folder.name) / "model.onnx"
        library = library_path(path) if self.library is not None else None
        return find(self.runtime).load(path, kernel_library=library, threads=self.threads)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the model, beside it ``<stem>.kernels.so`` if kernels were generated, and a data file beyond 2 GB.

        Existing files are replaced atomically. Returns the written files, the model first.
        """
        from egraph_opt.runtime.artifacts import library_path
        from egraph_opt.runtime.cache import remember_library

        written = self._write(Path(path))
        if self.library is not None:
            # Without a cache the library is complete all the same; only our own commands will not trust it.
            with contextlib.suppress(OSError):
                remember_library(library_path(Path(path)))
        return written

    def _write(self, output: Path) -> tuple[Path, ...]:
        from egraph_opt.frontends.onnx_writer import pieces, weights
        from egraph_opt.runtime.artifacts import data_path, write_model

        large = weights(self.model)
        stored = data_path(output, large) if large else None
        content = pieces(self.model, stored.name if stored is not None else "")
        return write_model(output, content, self.library, large, stored)
