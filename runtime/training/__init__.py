"""Layer 3, may import `engines`, `runtime`, torch, open_clip and safetensors; nothing below this layer imports it.

The PyTorch path: networks, model packs, optimisation, mappers, directions, inverters, and the recipe of the
demonstration pack.
"""
