"""Extraction for models without kernels: what a kernel costs is what the standard operators cost it is written with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from egraph_opt.egraph import primitives
from egraph_opt.egraph.snapshot import ENode, Snapshot
from egraph_opt.extract.alternatives import Alternative
from egraph_opt.extract.cost_models import Latency
from egraph_opt.extract.portable_plan import Expressible
from egraph_opt.extract.priced_extraction import PricedAlternative, PricedExtraction, _Counted
from egraph_opt.extract.roofline import STEP_SECONDS
from egraph_opt.frontends.portable import express
from egraph_opt.ir.terms import Read, Reshape, Source, View

# What reading a buffer costs a body: nearly nothing, but more than the body that the buffer is filled with. Else bodies
# that only read buffers in turns could crowd that one out.
_READ_SECONDS = 1e-8
# What a view costs a body that standard operators cannot write by itself: only as a part of others it may vanish.
_UNWRITABLE_SECONDS = 1e-2


class PortableExtraction(PricedExtraction):
    """The alternatives of one snapshot for a model of an opset; estimates leave out what every step costs beside its
    own time (``roofline.STEP_SECONDS``), once.
    """

    def __init__(self, snapshot: Snapshot, opset: int, unavailable: Collection[str] = ()) -> None:
        super().__init__(snapshot, Latency(), Expressible(opset), unavailable)
        self._views: dict[str, bool] = {}

    def _roughly(self, owner: int, body: _Counted) -> float:
        found = super()._roughly(owner, body)
        if body.node.constructor == "Read":
            return found + _READ_SECONDS
        if body.node.constructor == "View" and not self._is_writable(str(body.node.arguments[1])):
            return found + _UNWRITABLE_SECONDS
        return found

    def _is_writable(self, text: str) -> bool:
        if text not in self._views:
            index = primitives.map_of(text)
            self._views[text] = express("y", View(Read(Source("x", index.source)), index)) is not None
        return self._views[text]

    def _steps(self, owner: int, node: ENode) -> Iterable[Alternative]:
        for alternative in super()._steps(owner, node):
            if isinstance(alternative, PricedAlternative) and not isinstance(alternative.step, Reshape):
                alternative = replace(alternative, estimate=max(alternative.estimate - STEP_SECONDS, 0.0))
            yield alternative
