"""Output files: their names, and their replacement in one step.

A reader sees either the old file or the whole new one: everything is written beside its final place, flushed to the
disk and renamed. Several files are renamed only after all of them are complete.
"""

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from egraph_opt.errors import UsageError

MODEL_SUFFIX = ".onnx"
LIBRARY_SUFFIX = ".kernels.so"


def default_output(model: Path) -> Path:
    """MODEL.onnx → MODEL.opt.onnx, in the same folder."""
    return model.with_name(_stem(model) + ".opt" + MODEL_SUFFIX)


def library_path(model: Path) -> Path:
    """The kernel library that belongs to a model file: OUT.onnx → OUT.kernels.so."""
    return model.with_name(_stem(model) + LIBRARY_SUFFIX)


def choose_output(model: Path, output: Path | None) -> Path:
    """Where the optimized model goes; checked before any work is done.

    The input is overwritten only where `output` names it. Raises UsageError for a place that cannot be written.
    """
    chosen = output if output is not None else default_output(model)
    if not chosen.name:
        raise UsageError("the output has no name")
    for path in (chosen, library_path(chosen)):
        if path.is_dir():
            raise UsageError(f"output {path} is a folder")
        if path.exists() and not path.is_file():
            raise UsageError(f"output {path} is not a regular file")
    folder = Path(os.path.realpath(chosen)).parent
    if not folder.is_dir():
        raise UsageError(f"folder {folder} of the output does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"folder {folder} of the output is not writable")
    if output is None and _same_file(chosen, model):
        raise UsageError(f"output {chosen} is the input; name it with -o to replace it")
    if _same_file(library_path(chosen), model):
        raise UsageError(f"the kernel library {library_path(chosen)} would replace the input")
    return chosen


def choose_file(model: Path, output: Path | None, suffix: str, what: str) -> Path:
    """Where what is made of a model goes, MODEL with another suffix unless it is named.

    Raises UsageError for a place that cannot be written.
    """
    chosen = output or model.with_suffix(suffix)
    if chosen.resolve() == model.resolve() or chosen.is_dir() or not chosen.parent.is_dir():
        raise UsageError(f"the {what} cannot be written to {chosen}")
    return chosen


def check_report_path(report: Path | None, models: Iterable[Path]) -> None:
    """Raise UsageError for a report that could not be written or would replace one of `models`."""
    if report is None:
        return
    # Anything but a file would be replaced by one.
    if not report.name or not report.parent.is_dir() or (report.exists() and not report.is_file()):
        raise UsageError(f"the report cannot be written to {report}")
    for model in models:
        if _same_file(report, model):
            raise UsageError(f"the report would replace {model}")


class Publication:
    """Files that appear together, or not at all.

    ``with Publication() as publication: publication.stage(path).write_bytes(data)`` writes to a temporary neighbour of
    `path`. Leaving the block renames everything in the order of staging, so stage the file that refers to the others
    last; an exception inside the block removes the temporary files and leaves the old ones alone.
    """

    def __init__(self) -> None:
        self._staged: dict[Path, Path] = {}
        self._obsolete: list[Path] = []

    def stage(self, path: Path) -> Path:
        """The temporary path to write in place of `path`; symbolic links are followed, so the link stays one."""
        final = Path(os.path.realpath(path))
        if final not in self._staged:
            # The final suffix stays: writers choose formats by it, and shared libraries load by it.
            self._staged[final] = final.with_name(f".{secrets.token_hex(8)}{final.suffix}")
        return self._staged[final]

    def remove(self, path: Path) -> None:
        """Remove an old file that the new ones make obsolete, after they are in place; it may be missing."""
        self._obsolete.append(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for temporary in self._staged.values():
                    _flush(temporary)
                for final, temporary in self._staged.items():
                    os.replace(temporary, final)
                for path in self._obsolete:
                    path.unlink(missing_ok=True)
                for folder in {final.parent for final in self._staged}:
                    _flush(folder)
        finally:
            for temporary in self._staged.values():
                temporary.unlink(missing_ok=True)


def data_path(model: Path, data: Iterable[bytes]) -> Path:
    """Where the weights of a model too large for one file lie: OUT.onnx → OUT.onnx.DIGEST.data.

    The name depends on the content, so that an old model never finds the weights of a new one in the place of its own.
    """
    digest = hashlib.sha256()
    for chunk in data:
        digest.update(chunk)
    return model.with_name(f"{model.name}.{digest.hexdigest()[:16]}.data")


def _older_data(model: Path, kept: Path | None) -> list[Path]:
    """Data files that :func:`write_model` wrote for earlier models of this name."""
    pattern = re.compile(re.escape(model.name) + r"\.[0-9a-f]{16}\.data")
    return [path for path in model.absolute().parent.iterdir() if pattern.fullmatch(path.name) and path != kept]


def write_model(
    output: Path,
    model: bytes | Iterable[bytes],
    library: Path | bytes | None,
    data: Sequence[bytes] = (),
    stored: Path | None = None,
) -> tuple[Path, ...]:
    """Write OUT.onnx, with a `library` (its bytes or a file to copy) OUT.kernels.so, and `data` as the file `stored`.

    Returns the written paths, the model first. What belonged to the model that is replaced is removed: without a
    library an old OUT.kernels.so, and other data files that were written for this output.
    """
    beside = library_path(output)
    written = [output]
    with Publication() as publication:
        if library is not None:
            publication.stage(beside).write_bytes(library if isinstance(library, bytes) else library.read_bytes())
            written.append(beside)
        else:
            publication.remove(beside)
        for path in _older_data(output, stored.absolute() if stored is not None else None):
            publication.remove(path)
        if stored is not None:
            with publication.stage(stored).open("wb") as file:
                file.writelines(data)
            written.append(stored)
        with publication.stage(output).open("wb") as file:
            file.writelines([model] if isinstance(model, bytes) else model)
    return tuple(written)


def _stem(model: Path) -> str:
    return model.name[: -len(MODEL_SUFFIX)] if model.name.lower().endswith(MODEL_SUFFIX) else model.name


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other) or (
        one.exists() and other.exists() and os.path.samefile(one, other)
    )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems refuse to flush a folder; the rename is atomic all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
