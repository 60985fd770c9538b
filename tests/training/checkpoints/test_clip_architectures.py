"""Every architecture of open_clip is built or refused with its reason; other towers and vocabularies end to end."""

from __future__ import annotations

import copy
import json

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
open_clip = pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.archives import read_source  # noqa: E402
from styleclip_rt.runtime.model import Tokens  # noqa: E402
from styleclip_rt.runtime.tokenizer import Tokenizer  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import clip as importer  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import clip_architectures  # noqa: E402
from styleclip_rt.runtime.training.checkpoints.clip_architectures import (  # noqa: E402
    expected_shapes,
    matching,
    named,
    registry,
)
from styleclip_rt.runtime.training.checkpoints.clip_tokenizer import taken_over  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip, clip_config  # noqa: E402

REFUSED = {
    "coca_roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "mt5-xl-ViT-H-14",
    "nllb-clip-base",
    "nllb-clip-base-siglip",
    "nllb-clip-large",
    "nllb-clip-large-siglip",
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "xlm-roberta-large-ViT-H-14",
}
FAMILIES = [
    "RN50x4",
    "ViT-H-14",
    "ViT-M-32-alt",
    "coca_ViT-L-14",
    "ViT-L-14-CLIPA",
    "ViT-B-16-SigLIP2",
    "MobileCLIP2-S0",
    "EVA02-B-16",
    "PE-Core-T-16-384",
    "ViTamin-S",
    "swin_base_patch4_window7_224",
    "ViT-L-14-worldwide",
]


def test_every_architecture_is_supported_or_refused_with_its_reason():
    refused = {}
    for name, config in registry().items():
        try:
            clip_config(config)
        except PackError as error:
            refused[name] = str(error)
    assert set(refused) == REFUSED & set(open_clip.list_models())
    for name, reason in refused.items():
        assert registry()[name]["text_cfg"]["hf_model_name"] in reason
        assert "transformers" in reason
        with pytest.raises(PackError, match="only open_clip's own text towers"):
            named(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_networks_are_those_of_open_clip(name):
    """The names and shapes of its own factory, without its captioning decoder; and nothing is fetched."""
    if name not in registry():
        pytest.skip(f"this open_clip has no {name}")
    with torch.device("meta"):
        theirs = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta").state_dict()
    wanted = {k: tuple(v.shape) for k, v in theirs.items() if not k.startswith("text_decoder.")}
    wanted = {k: shape for k, shape in wanted.items() if not k.endswith("num_batches_tracked")}
    assert expected_shapes(registry()[name]) == wanted


def test_an_architecture_is_found_by_its_tensors():
    assert matching(expected_shapes(registry()["ViT-B-16-plus-240"])) == ["ViT-B-16-plus-240"]
    assert matching(expected_shapes(registry()["RN50"])) == ["RN50", "RN50-quickgelu"]
    assert matching({"token_embedding.weight": (49408, 512)}) == []


def test_published_weights_of_only_quick_gelu_are_pointed_out():
    assert "need RN50-quickgelu" in named("RN50").notes[0]
    assert named("RN50-quickgelu").notes == ()
    assert named("ViT-B/32").name == "ViT-B-32"
    assert named("ViT-L/14@336px").name == "ViT-L-14-336"


def tiny(vision=None, text=None, **rest):
    return {
        "embed_dim": 32,
        "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32, **(vision or {})},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2, **(text or {})},
        **rest,
    }


SIGLIP_TEXT = {
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
}
COCA = {"context_length": 15, "width": 64, "heads": 2, "layers": 1, "vocab_size": 49408}
TOWERS = {
    "SigLIP text": tiny(text=SIGLIP_TEXT, custom_text=True, init_logit_bias=-10.0),
    "timm image": tiny({"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 160}, custom_text=True),
    "timm image, text outside": tiny({"timm_model_name": "test_convnext", "image_size": 160}),
    "layer scale, own norm, average": tiny({"ls_init_value": 0.5, "pool_type": "avg", "final_ln_after_pool": True}),
    "pooled at a given id": tiny(text={"pool_type": "eos", "eos_id": 49407}),
    "CoCa": tiny(
        {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        {"embed_cls": True, "context_length": 15, "output_tokens": True},
        custom_text=True,
        multimodal_cfg=COCA,
    ),
}


def open_clip_model(config):
    """The model as open_clip's factory makes it."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    settings = copy.deepcopy(config)
    custom = settings.pop("custom_text", False)
    kind = CoCa if "multimodal_cfg" in settings else CustomTextCLIP if custom else CLIP
    torch.manual_seed(11)
    model = kind(**settings).eval().requires_grad_(False)
    for value in model.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():  # biases, norms and moments at their start hide mistakes
            value += 0.1 * torch.rand(value.shape)
    return model


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_other_towers_equal_open_clips_own_forward(tmp_path, config):
    model = open_clip_model(config)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    front = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": front}))
    clip, tokenizer = importer.import_clip(read_source(tmp_path / "open_clip_pytorch_model.bin"))
    json.dumps([clip.config, tokenizer.config])
    network = Clip(clip.config).eval()
    network.model.load_state_dict(clip.content, strict=False)
    images = torch.rand(2, 3, network.image_size, network.image_size) * 2 - 1  # mean and std 0.5: as they are
    rows = torch.randint(1, 49000, (2, network.context_length))
    rows[:, -1] = 49407
    theirs = model.encode_image(images), model.encode_text(rows)
    for ours, other in zip((network.encode_image(images), network.encode_text(rows)), theirs, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.double(), other.double()).min() > 1 - 1e-8
    assert tokenizer.config["context_length"] == network.context_length
    assert ("logit_bias" in clip.content) == ("init_logit_bias" in config)
    if "multimodal_cfg" in config:
        assert "caption decoder" in clip.notes[-1]
        assert not any("text_decoder" in name for name in clip.content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timm_model_name": "hf-hub:somebody/model"}, "plain name of a model of timm"),
        ({"timm_model_name": "no_such_model"}, "refused"),
        ({"layers": 100_000}, "layers is 100000; expected 0 to 256"),
        ({"width": -8}, "width is -8"),
        ({"image_size": [32, 64]}, "expected a square"),
    ],
    ids=str,
)
def test_configs_from_strangers(change, message):
    with pytest.raises(PackError, match=message):
        Clip(tiny(change))


@pytest.mark.parametrize("front", [{"mean": [1, 2]}, {"std": [0, 1, 1]}, {"interpolation": "nearest"}], ids=str)
def test_front_ends_that_cannot_be_applied(front):
    with pytest.raises(PackError, match="CLIP config"):
        Clip({**tiny(), **front})


@pytest.mark.parametrize("text", ["{", "[]", '{"model_cfg": 3}', '{"model_cfg": {}, "preprocess_cfg": 1}', "[" * 5000])
def test_config_files_that_are_none(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(PackError):
        named(str(tmp_path / "c.json"))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small architecture in the registry, with weights under tags, and downloads that serve a folder."""
    model = open_clip_model(tiny())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    entry = {"url": "https://example.org/weights.pt", "hf_hub": "", "mean": (0.5,) * 3, "std": (0.25,) * 3}
    entry |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    tags = {"openai": {**entry, "quick_gelu": True}, "laion": entry}
    for module in (clip_architectures, importer):
        monkeypatch.setattr(module, "tags_of", lambda name: tags)
    monkeypatch.setattr(clip_architectures, "registry", lambda: {"Tiny": tiny()})
    fetched = []

    def fetch_tag(entry):
        fetched.append(entry["url"])
        return str(tmp_path / "weights.pt")

    def fetch_file(repository, filename="weights.pt"):
        fetched.append(f"{repository}/{filename}")
        if not (tmp_path / filename).is_file():
            raise OSError("404")
        return str(tmp_path / filename)

    return {"tag": fetch_tag, "file": fetch_file}, fetched, tmp_path


def test_a_name_fetches_openais_weights_and_their_activation(published):
    fetch, fetched, _ = published
    clip, tokenizer = importer.import_clip_by_name("Tiny", fetch)
    assert (clip.config["pretrained"], clip.config["quick_gelu"]) == ("openai", True)
    assert (clip.config["mean"], clip.config["std"]) == ([0.5] * 3, [0.25] * 3)
    assert tokenizer.config["clean"] == "clip"
    assert importer.import_clip_by_name("Tiny/laion", fetch)[0].config["quick_gelu"] is False
    assert fetched == ["https://example.org/weights.pt"] * 2


def test_a_repository_of_hugging_face(published):
    fetch, fetched, folder = published
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": tiny(quick_gelu=True)}))
    clip, _ = importer.import_clip_by_name("hf-hub:somebody/tiny", fetch)
    assert (clip.config["architecture"], clip.config["quick_gelu"]) == ("hf-hub:somebody/tiny", True)
    assert fetched == ["somebody/tiny/open_clip_config.json", "somebody/tiny/weights.pt"]


def test_without_a_network_the_error_says_where_the_file_is(published):
    def offline(*_):
        raise OSError("Name or service not known")

    with pytest.raises(
        PackError, match=r"Name or service not known.*by hand from https://example.org/weights.pt.*Tiny/l"
    ):
        importer.import_clip_by_name("Tiny/laion", {"tag": offline, "file": offline})
    with pytest.raises(InputError, match="knows no weights 'other'"):
        importer.import_clip_by_name("Tiny/other", {"tag": offline, "file": offline})


def vocabulary(bos=True):
    """A small tokenizers file that frames texts as published ones do: </s> at the end, perhaps <s> before."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, processors

    words = {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3, "a": 4, "face": 5, "with": 6}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A </s>" if bos else "$A </s>"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 2), ("</s>", 1)])
    return {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": b'{"pad_token": "</s>"}'}


def test_the_tokenizer_of_another_vocabulary_lies_beside_the_weights(tmp_path):
    text = {
        **SIGLIP_TEXT,
        "vocab_size": 7,
        "hf_tokenizer_name": "timm/x",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    config = tiny(text=text, custom_text=True)
    torch.save(open_clip_model(config).state_dict(), tmp_path / "model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(PackError, match=r"that of timm/x on Hugging Face; put the tokenizer\.json"):
        importer.import_clip(read_source(tmp_path / "model.bin"))
    for name, content in vocabulary(bos=False).items():
        (tmp_path / name).write_bytes(content)
    _, imported = importer.import_clip(read_source(tmp_path / "model.bin"))
    assert imported.config == {"bos": None, "eos": 1, "pad": 1, "context_length": 16, "clean": "canonicalize"}
    tokenizer = Tokenizer.open(tmp_path / "tokenizer.json", Tokens(**imported.config))
    assert tokenizer.encode(["A_Face!"])[0, :4].tolist() == [4, 5, 1, 1]


def test_how_a_tokenizer_frames_a_text():
    text = {"context_length": 8, "tokenizer_kwargs": {"strip_sep_token": True}}
    assert taken_over(vocabulary(), text, "x").config | {"pad": 1} == {
        "bos": 2,
        "eos": 0,
        "pad": 1,
        "context_length": 8,
        "clean": "whitespace",
    }
    gemma = {"add_bos_token": False, "add_eos_token": True, "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}
    files = {**vocabulary(), "tokenizer_config.json": json.dumps(gemma).encode()}
    config = taken_over(files, {}, "x").config
    assert (config["bos"], config["eos"], config["pad"]) == (None, 1, 0)
    with pytest.raises(PackError, match="one token at the end"):
        taken_over({**files, "tokenizer_config.json": b'{"add_eos_token": false}'}, {}, "x")
    with pytest.raises(PackError, match="not a file of the tokenizers library"):
        taken_over({"tokenizer.json": b"{}"}, {}, "x")
    with pytest.raises(PackError, match="not supported"):
        taken_over(files, {"tokenizer_kwargs": {"language": "de"}}, "x")
