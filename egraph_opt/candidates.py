"""Models with plans in the place of regions: built, stored where a session can load them, and compared by content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends import tvm_build
from egraph_opt.backends.model_timer import TimedModel
from egraph_opt.extract.implement import Implementer
from egraph_opt.frontends.onnx_writer import rebuild, serialized, takes_data_file
from egraph_opt.ir.program import Plan
from egraph_opt.runtime.report import Accuracy, RevertedRegion

if TYPE_CHECKING:
    import onnx

    from egraph_opt.extract.profile import Profile
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region


def store(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model of any size into an empty or new folder; returns the model file."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    if takes_data_file(model):
        duplicate = type(model)()
        duplicate.CopyFrom(model)
        model = duplicate
    content, chunks = serialized(model, "model.onnx.data")
    if chunks:
        with (folder / "model.onnx.data").open("wb") as file:
            file.writelines(chunks)
    path.write_bytes(content)
    return path


def digest(path: Path) -> str:
    """What identifies a stored model: a hash of all its files' content but the kernels', whose names are hashes."""
    total = hashlib.sha256()
    for name in (path, path.with_name(path.name + ".data")):
        if name.exists():
            with name.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


@dataclass(frozen=True)
class Candidate:
    """A rebuilt model stored with its kernel library, what it replaces, and once it is verified its ``accuracy``."""

    model: onnx.ModelProto
    stored: TimedModel
    plans: Mapping[int, Plan]
    kernels: tuple[str, ...]
    reverted: tuple[RevertedRegion, ...] = ()
    accuracy: Accuracy | None = None

    @cached_property
    def digest(self) -> str:
        """Equal for equal models."""
        assert isinstance(self.stored.model, Path)
        return digest(self.stored.model)

    @property
    def library(self) -> bytes | None:
        """The kernel library, if there are kernels."""
        return self.stored.kernel_library.read_bytes() if self.stored.kernel_library is not None else None


@dataclass
class Builder:
    """Builds candidates in ``folder``; every kernel is compiled once. Without a ``compiler`` there are no kernels."""

    loaded: LoadedModel
    regions: Sequence[Region]
    profile: Profile
    compiler: Path | None
    folder: Path
    built: int = 0
    _objects: dict[str, bytes] = field(default_factory=dict)

    def build(self, plans: Mapping[int, Plan]) -> Candidate:
        """The model with these plans in the place of their regions. Raises EgraphOptError where one cannot be written."""
        implementer = Implementer(self.profile, self.compiler is not None)
        implemented = {index: implementer.implement(plan) for index, plan in sorted(plans.items())}
        model = rebuild(self.loaded, self.regions, implemented, implementer.names)
        folder = self.folder / f"candidate{self.built}"
        self.built += 1
        path, library = store(model, folder), None
        names = tuple(sorted(implementer.kernels))
        if names:
            for name in names:
                if name not in self._objects:
                    self._objects[name] = tvm_build.compile_object(implementer.kernels[name])
            library = tvm_build.build_library(
                [implementer.kernels[name] for name in names],
                folder / "model.kernels.so",
                compiler=str(self.compiler),
                objects=self._objects,
            )
        return Candidate(model, TimedModel(path, library), dict(plans), names)
