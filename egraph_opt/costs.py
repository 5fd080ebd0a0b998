"""Cost models: what programs are chosen by.

A cost model is any function of one step (:class:`StepInfo`) that returns a number of at least 0, infinity for what must
not be used; a program costs the sum over its steps, and the cheapest is looked for::

    import egraph_opt
    from egraph_opt.costs import Device, Energy, Latency, Roofline, blended

    egraph_opt.optimize("model.onnx", cost=lambda step: step.bytes)
    egraph_opt.optimize("model.onnx", cost=Roofline(Device(flops=2e12)))
    egraph_opt.optimize("model.onnx", cost=blended({Latency(): 1.0, Energy(): 0.5}))

The same functions serve :meth:`egraph_opt.EGraph.extract`. ``Latency`` wants steps to be measured; a function of one's
own that reads ``step.seconds`` gets measured ones if it has an attribute ``measures`` that is true.
"""

from egraph_opt.extract.cost_models import (
    NAMED,
    Blended,
    Energy,
    Latency,
    Launches,
    PeakMemory,
    Roofline,
    Traffic,
    blended,
)
from egraph_opt.extract.roofline import Device
from egraph_opt.extract.step_info import CostModel, StepInfo

__all__ = [
    "NAMED",
    "Blended",
    "CostModel",
    "Device",
    "Energy",
    "Latency",
    "Launches",
    "PeakMemory",
    "Roofline",
    "StepInfo",
    "Traffic",
    "blended",
]
