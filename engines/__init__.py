"""Layer 1, may import numpy and the standard library only; each backend library is imported in one module, lazily.

Runs a graph, fast, and knows nothing of StyleCLIP but the names of a bundle's ports: typed errors and specs, one engine
contract, one module per backend, the choice of device with its reasons, and the reader of engine bundles.
"""
