"""The devices that bundles and programs run on, by name."""

from egraph_opt.errors import UsageError
from egraph_opt.gpu.device import Device


def device_of(name: str, architecture: str, *, tf32: bool = False) -> Device:
    """``cuda``: the current GPU; ``host``: the processor in its place. Raises BackendMissing where it is not there."""
    if name == "host":
        from egraph_opt.gpu.host_device import HostDevice

        return HostDevice(architecture)
    if name == "cuda":
        from egraph_opt.gpu.cuda_device import CudaDevice

        return CudaDevice(architecture, tf32=tf32)
    raise UsageError(f"unknown device {name!r}; known: cuda, host")


def roofline_key(architecture: str) -> str:
    """What a profile database calls a GPU that was not measured."""
    from egraph_opt.extract.gpu_devices import TYPICAL

    return f"{architecture}; roofline of {TYPICAL[architecture]}, not measured"
