"""Layer 4, may import `engines`, `runtime`, `runtime.training`, torch, onnx and onnxscript; only `benchmarks` imports it.

Turns a model pack into a verified engine bundle: typed ONNX graphs, shared weights, figures against PyTorch.
"""
