"""Layer 5, may import every other package: accuracy and latency measurements and the tables of the README."""
