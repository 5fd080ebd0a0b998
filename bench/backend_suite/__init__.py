"""onnx's own backend test-suite through this optimizer and its peers: `python -m bench.backend_suite`."""
