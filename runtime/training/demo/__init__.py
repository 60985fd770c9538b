"""May import everything of `runtime` and `runtime.training`: the recipe of the embedded pack `toyfaces`.

Knows factors and captions; the StyleCLIP methods in `runtime.training` see only the generator and CLIP.
"""
