"""Importers of public checkpoints into packs. May import runtime.training, runtime and engines; nothing is unpickled."""
