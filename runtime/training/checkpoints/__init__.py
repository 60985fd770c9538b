"""Importers of public checkpoints into packs. May import runtime.training, runtime, engines; nothing is unpickled."""
