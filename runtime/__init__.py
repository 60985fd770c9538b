"""Layer 2, may import `engines`, numpy, pillow, click, tokenizers; never torch or onnx (only `runtime.training` does).

Edits images: the editor (the main path), the numpy reference maths, prompts, the tokenizer, images, sheets and the
command line.
"""
