"""Licences of imported weights: what the user states, what a known file has, and otherwise "unknown" with a hint.

A file of weights does not say its licence, and a format proves nothing: anybody may train in the layout of another. So
only files that are known by their SHA-256 get a licence by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....engines.errors import InputError

UNKNOWN = "unknown"

KNOWN: dict[str, str] = {
    # OpenAI's CLIP archives; the hash is part of each download address (github.com/openai/CLIP, MIT).
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "MIT",  # RN50
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "MIT",  # RN101
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "MIT",  # RN50x4
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "MIT",  # RN50x16
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "MIT",  # RN50x64
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "MIT",  # ViT-B/32
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "MIT",  # ViT-B/16
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "MIT",  # ViT-L/14
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "MIT",  # ViT-L/14@336px
}
"""Licence by SHA-256 of the file."""

HINTS: dict[str, str] = {
    "generator": "NVIDIA's own StyleGAN2 networks, FFHQ's converted ones included, are under the NVIDIA Source Code "
    "License-NC (non-commercial)",
    "clip": "OpenAI's CLIP and LAION's are MIT; other collections differ",
    "inverter": "e4e's and pSp's repositories are MIT; the networks were trained against NVIDIA's non-commercial FFHQ "
    "generator",
    "identity": "the repository of model_ir_se50 (InsightFace_Pytorch) is MIT; its training faces are for research",
    "mapper": "StyleCLIP's repository is MIT; NVIDIA's non-commercial generator, also in the file, is not imported",
    "directions": "StyleCLIP's repository is MIT",
    "statistics": "StyleCLIP's repository is MIT",
}
"""What is published about the usual files of each kind, for the user to decide."""


def licence_of(component: str, found: str, sha256: str, stated: Mapping[str, str]) -> str:
    """The licence to record: stated by the user, else that of a known file, else `found` by the importer."""
    for key in (component, component.split("/")[0]):
        if key in stated:
            return stated[key]
    return KNOWN.get(sha256, found or UNKNOWN)


def hint(component: str) -> str:
    """What is published about the licences of this kind of file."""
    return HINTS.get(component.split("/")[0], "ask whoever made the file")


def read_licences(options: tuple[str, ...]) -> dict[str, str]:
    """COMPONENT=TEXT options as a table; InputError where one is of another form."""
    table = {}
    for option in options:
        component, sign, text = option.partition("=")
        if not sign or not component.strip() or not text.strip() or len(text) > 200 or not text.isprintable():
            raise InputError(f"licence {option[:80]!r}; expected COMPONENT=TEXT such as generator=MIT")
        table[component.strip()] = text.strip()
    return table
