"""Layer 4, may import `engines`, `runtime` (training included), torch, onnx, onnxscript; only `benchmarks` imports it.

Turns a model pack into a verified engine bundle: typed ONNX graphs, shared weights, figures against PyTorch.
"""
