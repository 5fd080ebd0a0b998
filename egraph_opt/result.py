"""What :func:`egraph_opt.optimize` returns."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egraph_opt.runtime.report import Report

if TYPE_CHECKING:
    import onnx


@dataclass
class Result:
    """An optimized model: ``model`` (an onnx.ModelProto), its kernel library if kernels were generated, and the report."""

    model: onnx.ModelProto
    report: Report
    library: bytes | None = None
    threads: int | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def session(self) -> Any:
        """A ready onnxruntime session with the kernel library registered."""
        from egraph_opt.backends.onnxruntime import make_session

        folder = Path(self._place())
        path = folder / "model.onnx"
        if not path.exists():
            self.save(path)
        library = folder / "model.kernels.so"
        return make_session(path, kernel_library=library if self.library else None, threads=self.threads)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the model and, beside it, ``<stem>.kernels.so``; existing files are replaced atomically."""
        from egraph_opt.frontends.onnx_writer import serialized
        from egraph_opt.runtime.artifacts import Publication, library_path
        from egraph_opt.runtime.cache import remember_library

        output = Path(path)
        data_file = output.name + ".data"
        content, chunks = serialized(_copy(self.model), data_file)
        written = [output]
        with Publication() as publication:
            if self.library is not None:
                publication.stage(library_path(output)).write_bytes(self.library)
                written.append(library_path(output))
            else:
                publication.remove(library_path(output))
            if chunks:
                with publication.stage(output.with_name(data_file)).open("wb") as file:
                    file.writelines(chunks)
                written.append(output.with_name(data_file))
            publication.stage(output).write_bytes(content)
        if self.library is not None:
            remember_library(library_path(output))
        return tuple(written)

    def _place(self) -> str:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="egraph-opt-")
        return self._folder.name


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    duplicate = type(model)()
    duplicate.CopyFrom(model)
    return duplicate
