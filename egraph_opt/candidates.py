"""Models with plans in the place of regions: built, stored where a session can load them, and compared by content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from egraph_opt.backends import tvm_build
from egraph_opt.backends.model_timer import TimedModel
from egraph_opt.errors import EgraphOptError, one_line
from egraph_opt.extract.implement import Implementer
from egraph_opt.extract.own_kernels import refuse_wrong
from egraph_opt.extract.profiler import timing_opset
from egraph_opt.frontends.onnx_writer import rebuild, serialized, weights
from egraph_opt.ir.program import Plan
from egraph_opt.ir.terms import Call
from egraph_opt.runtime.report import Accuracy, RevertedRegion

if TYPE_CHECKING:
    import onnx

    from egraph_opt.extract.profile import Profile
    from egraph_opt.frontends.onnx_model import LoadedModel
    from egraph_opt.frontends.regions import Region
    from egraph_opt.verification import Judge

OUT_OF_TIME = "the time limit was reached"


def store(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model of any size into an empty or new folder; returns the model file."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    content, chunks = serialized(model, "model.onnx.data"), weights(model)
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
    _tried: set[str] = field(default_factory=set)

    def build(self, plans: Mapping[int, Plan]) -> Candidate:
        """The model with these plans in the place of their regions.

        Raises EgraphOptError where one of them cannot be written.
        """
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
            self._try(implementer.untried, library)
        return Candidate(model, TimedModel(path, library), dict(plans), names)

    def _try(self, untried: Mapping[str, Call], library: Path) -> None:
        """Kernels of users run here for the first time: in a process of their own, each once."""
        for name, call in sorted(untried.items()):
            if name not in self._tried:
                refuse_wrong(call, library, timing_opset(self.loaded.opset))
                self._tried.add(name)


@dataclass
class Prover:
    """Builds and verifies candidates; where one fails, the regions at fault go back to their original nodes.

    After ``deadline`` (monotonic seconds) nothing new is tried.
    """

    builder: Builder
    judge: Judge
    regions: Sequence[Region]
    deadline: float = inf

    def prove(self, plans: Mapping[int, Plan]) -> tuple[Candidate | None, tuple[RevertedRegion, ...]]:
        """A candidate that computes as many of these regions by their plans as is right, and the reverted regions."""
        reverted: list[RevertedRegion] = []
        found = self._proven(dict(plans), reverted)
        return (None if found is None else replace(found, reverted=tuple(reverted))), tuple(reverted)

    def _proven(self, plans: dict[int, Plan], reverted: list[RevertedRegion]) -> Candidate | None:
        outcome = self._attempt(plans)
        if isinstance(outcome, Candidate):
            return outcome
        if len(plans) == 1 or time.monotonic() > self.deadline:
            reverted += [self._reverted(index, outcome) for index in plans]
            return None
        order = sorted(plans)
        halves = [{i: plans[i] for i in part} for part in (order[: len(order) // 2], order[len(order) // 2 :])]
        found = [half for half in (self._proven(half, reverted) for half in halves) if half is not None]
        if len(found) < 2:
            return found[0] if found else None
        kept = {**found[0].plans, **found[1].plans}
        if len(kept) < len(plans):
            return self._proven(kept, reverted)
        reverted += [self._reverted(index, f"wrong only together with other regions: {outcome}") for index in halves[1]]
        return found[0]

    def _attempt(self, plans: Mapping[int, Plan]) -> Candidate | str:
        if time.monotonic() > self.deadline:
            return OUT_OF_TIME
        try:
            candidate = self.builder.build(plans)
            verdict = self.judge.verdict(candidate.stored, self.regions)
        except EgraphOptError as error:
            return str(error)
        except Exception as error:  # whatever goes wrong with a plan, the original nodes remain
            return f"internal error: {type(error).__name__}: {error}"
        return verdict if isinstance(verdict, str) else replace(candidate, accuracy=verdict)

    def _reverted(self, index: int, why: str) -> RevertedRegion:
        nodes = next(len(region.nodes) for region in self.regions if region.index == index)
        return RevertedRegion(str(index), one_line(why), nodes)
