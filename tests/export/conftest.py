"""Miniature packs of random weights with every component, 32 px unless told, so that export runs in seconds."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

CLIP_CONFIG = {
    "embed_dim": 64,
    "quick_gelu": False,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64, "image_size": 32},
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 40,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": 1,
        "pad_id": 2,
    },
    "mean": [0.5, 0.45, 0.4],
    "std": [0.26, 0.25, 0.27],
}


def randomise_norms(module):
    """Batch norms with fresh statistics are the identity; give them something to get wrong."""
    for part in module.modules():
        if isinstance(part, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            torch.nn.init.uniform_(part.running_var, 0.5, 2.0)
            torch.nn.init.normal_(part.running_mean, std=0.2)
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.2)
    return module


def write_tokenizer(path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<bos>", "<eos>", "<pad>", "<unk>", "a", "photo", "of", "face", "with", "bob-cut", "the", "glasses"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def make_generator(resolution: int = 32):
    from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig

    channels = {size: width for size, width in {4: 24, 8: 24, 16: 16, 32: 12}.items() if size <= resolution}
    if resolution > 32:  # a sixteenth of config-f: every layer has its usual share of the work, and so have the cuts
        from styleclip_rt.benchmarks.counts import full_width

        channels = {size: width // 16 for size, width in full_width(resolution).items()}
    generator = Generator(GeneratorConfig(resolution, 16, 16, 2, channels))
    for name, parameter in generator.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            torch.nn.init.normal_(parameter, mean=float("affine" in name), std=0.2)
    torch.nn.init.normal_(generator.mapping_network.w_avg)
    return generator.eval()


PARTS = ("generator", "clip", "inverter", "identity", "statistics", "directions", "mapper")


def fill_pack(writer, parts=PARTS, resolution: int = 32):
    """Adds random components to a PackWriter; `parts` picks which."""
    from styleclip_rt.runtime.training.networks.arcface import ArcFace, ArcFaceConfig
    from styleclip_rt.runtime.training.networks.clip import Clip
    from styleclip_rt.runtime.training.networks.e4e import E4EConfig, Encoder4Editing
    from styleclip_rt.runtime.training.networks.mapper import LevelsMapper, MapperConfig

    generator = make_generator(resolution)
    styles, ws = generator.style_channels, generator.num_ws
    table = torch.nn.functional.normalize(torch.randn(styles, 64), dim=-1)
    for layer in generator.style_layers:
        if layer.kind == "torgb":
            table[layer.offset : layer.offset + layer.channels] = 0
    stages = ((8, 1), (12, 1), (16, 1))
    makers = {
        "generator": lambda: generator,
        "clip": lambda: randomise_norms(Clip(CLIP_CONFIG)),
        "inverter": lambda: randomise_norms(
            Encoder4Editing(E4EConfig(ws, 16, 32, 8, ((8, 1), (12, 1), (16, 2)), 4, 8, 2, 5))
        ),
        "identity": lambda: randomise_norms(ArcFace(ArcFaceConfig(32, 16, 8, stages, 4))),
        "statistics": lambda: {
            "w_mean": torch.zeros(16),
            "s_mean": torch.ones(styles),
            "s_std": torch.rand(styles) * 0.3 + 0.05,
        },
        "directions": lambda: {"delta_i_c": table},
        "mapper": lambda: LevelsMapper(MapperConfig(ws, 16, fine=False)),
    }
    for part in parts:
        name = "mapper/bob-cut" if part == "mapper" else part
        config = {"samples": 100, "psi": 0.7, "convention": "random"} if part == "statistics" else None
        writer.add(name, makers[part](), config)
    return writer


@pytest.fixture(scope="session")
def generator_of():
    """`make_generator`, for test modules."""
    return make_generator


@pytest.fixture(scope="session")
def mini_pack(tmp_path_factory) -> Path:
    """Folder of a complete random pack."""
    return write_pack(tmp_path_factory.mktemp("packs"), 32)


@pytest.fixture(scope="session")
def pack_of(tmp_path_factory):
    """A function of a resolution that gives the folder of a complete random pack; see `make_generator`."""
    return lambda resolution: write_pack(tmp_path_factory.mktemp("packs"), resolution)


def write_pack(folder: Path, resolution: int) -> Path:
    from styleclip_rt.runtime.training.pack import PackWriter

    torch.manual_seed(7)
    with PackWriter(folder / "mini", "mini") as writer:
        fill_pack(writer, resolution=resolution)
        tokens = {"bos": 0, "eos": 1, "pad": 2, "context_length": 16}
        writer.add("tokenizer", write_tokenizer(folder / "tokenizer.json"), tokens)
        writer.templates = ["a photo of {}.", "the photo of {}."]
        target = {"target": "a face with a bob-cut", "neutral": "a face", "alpha": 3.0, "beta": 0.12}
        writer.prompts = {"bob-cut": target, "glasses": {**target, "target": "a face with glasses"}}
    return folder / "mini"


@pytest.fixture
def write_part_pack(tmp_path):
    """A function (parts) -> folder of a pack that holds only these components."""
    from styleclip_rt.runtime.training.pack import PackWriter

    counter = itertools.count()

    def write(parts) -> Path:
        folder = tmp_path / f"part{next(counter)}"
        with PackWriter(folder, "part") as writer:
            fill_pack(writer, parts)
        return folder

    return write


@pytest.fixture
def editor(bundle, tmp_path, monkeypatch):
    """An editor of the module's own fixture `bundle`, with a home of its own."""
    from styleclip_rt.runtime.editor import Editor

    monkeypatch.setenv("STYLECLIP_RT_HOME", str(tmp_path))
    with Editor.open(bundle.path, device="cpu") as opened:
        yield opened
