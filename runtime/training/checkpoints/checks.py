"""Whether the parts of a pack fit each other, and whether each is what its file says; all faults are found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ....engines.errors import StyleclipError
from ..named import read
from ..networks.e4e import E4EConfig
from ..networks.mapper import MapperConfig
from ..pack import Pack

OWN_NETWORKS = ("generator", "clip", "inverter", "identity")


def misfits(pack: Pack) -> list[str]:
    """What does not fit together, one sentence each; empty for a sound pack. Loads no network."""
    faults: list[str] = []
    for check in (_inverter, _mappers, _statistics, _directions, _tokenizer):
        try:
            faults += check(pack)
        except StyleclipError as error:
            faults.append(str(error))
    return faults


def verify_pack(pack: Pack, progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """{component: fault} of a pack: hashes, names and shapes of every tensor, every network built; then how they fit.

    The key "pack" holds what does not fit together. Networks are loaded one at a time.
    """
    faults = {}
    for component in pack.components:
        progress(component)
        try:
            _load(pack, component)
        except StyleclipError as error:
            faults[component] = str(error)
        pack.release(component)
    if not faults and (found := misfits(pack)):
        faults["pack"] = "; ".join(found)
    return faults


def _load(pack: Pack, component: str) -> None:
    """Loads a component as its users do; StyleclipError where that fails."""
    pack.file(component)
    if component in OWN_NETWORKS:
        getattr(pack, component)
    elif component.startswith("mapper/"):
        pack.mapper(component.removeprefix("mapper/"))
    elif component.startswith("direction/"):
        read(pack, component.removeprefix("direction/"))
    elif component == "tokenizer":
        tokenizer_size(pack)
    else:
        pack.tensors(component)


def tokenizer_size(pack: Pack) -> int:
    """Number of token ids of the pack's tokenizer; PackError where its file is none."""
    from tokenizers import Tokenizer

    from ....engines.errors import PackError

    try:
        return int(Tokenizer.from_file(str(pack.file("tokenizer"))).get_vocab_size())
    except PackError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise PackError(f"tokenizer: not a file of the tokenizers library ({error}); import CLIP again") from None


def _inverter(pack: Pack) -> Iterator[str]:
    if not (pack.has("inverter") and pack.has("generator")):
        return
    config, generator = E4EConfig.from_dict(pack.config("inverter")), pack.layout
    have, want = (config.num_ws, config.w_dim), (generator.num_ws, generator.config.w_dim)
    if have != want:
        yield f"the inverter gives w+ {list(have)}, the generator reads {list(want)}: they belong to different models"


def _mappers(pack: Pack) -> Iterator[str]:
    if not pack.has("generator"):
        return
    generator = pack.layout
    want = (generator.num_ws, generator.config.w_dim)
    widths = tuple(layer.channels for layer in generator.style_layers)
    for name in pack.mappers:
        config = MapperConfig.from_dict(pack.config(f"mapper/{name}"))
        if (config.num_ws, config.w_dim) != want:
            yield f"mapper {name!r} is for w+ [{config.num_ws}, {config.w_dim}], the generator has {list(want)}"
        elif config.kind == "style" and tuple(config.channels) != widths:
            yield f"mapper {name!r} is for style layers of {list(config.channels)} channels, not {list(widths)}"


def _statistics(pack: Pack) -> Iterator[str]:
    if pack.has("statistics") and pack.has("generator"):
        _ = pack.statistics
    yield from ()


def _directions(pack: Pack) -> Iterator[str]:
    if not pack.has("directions"):
        return
    table = pack.tensors("directions").get("delta_i_c")
    if table is None or table.ndim != 2:
        yield "directions hold no delta_i_c [S, E]"
        return
    if pack.has("generator") and len(table) != pack.layout.style_channels:
        yield f"directions have {len(table)} rows, the generator {pack.layout.style_channels} style channels"
    if pack.has("clip") and table.shape[1] != int(pack.config("clip").get("embed_dim", 0)):
        yield f"directions are {table.shape[1]} wide, the embeddings of CLIP {pack.config('clip').get('embed_dim')}"


def _tokenizer(pack: Pack) -> Iterator[str]:
    if not (pack.has("tokenizer") and pack.has("clip")):
        return
    text, tokens = pack.config("clip").get("text_cfg", {}), pack.config("tokenizer")
    size, vocabulary = tokenizer_size(pack), text.get("vocab_size")
    if vocabulary is not None and size > int(vocabulary):
        yield f"the tokenizer knows {size} tokens, CLIP {vocabulary}: they belong to different models"
    length = int(text.get("context_length", 77))
    if tokens.get("context_length") != length:
        yield f"the tokenizer makes rows of {tokens.get('context_length')} tokens, CLIP reads {length}"
