"""Programs for a GPU: files that travel between machines, and the devices that measure and run them.

Nothing here imports egglog, tvm, onnx or onnxruntime: a GPU machine needs Python, numpy and torch.
"""
