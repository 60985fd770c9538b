"""Layer 2, may import `engines`, numpy, pillow, click, tokenizers, ftfy; never torch (only `runtime.training`).

Edits images: the editor (the main path), the numpy reference maths, prompts, the tokenizer, images, sheets and the
command line.
"""
