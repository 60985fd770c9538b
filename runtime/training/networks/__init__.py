"""May import torch, open_clip and numpy: the networks of a model pack, each in the form that export can trace."""
