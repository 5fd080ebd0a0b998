"""onnxruntime as one of the runtimes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from egraph_opt.backends.onnxruntime import Array, bound_caller, make_session


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime, the only one that runs generated kernels; ``pooled`` sessions share the pool of the process."""

    name: str = "onnxruntime"
    package: str = "onnxruntime"
    pooled: bool = False

    def load(self, model: str | Path | bytes, *, threads: int | None = None, kernel_library: Path | None = None) -> Any:
        """See `make_session`."""
        return make_session(model, kernel_library=kernel_library, threads=threads, process_pool=self.pooled)

    def bound(self, session: Any, inputs: Mapping[str, Array]) -> Callable[[], object]:
        """See `bound_caller`."""
        return bound_caller(session, inputs)
