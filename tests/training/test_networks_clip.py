from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")
pytest.importorskip("open_clip", reason="the PyTorch path needs the extra 'torch'")
F = torch.nn.functional

from styleclip_rt.engines.errors import InputError, PackError  # noqa: E402
from styleclip_rt.runtime.training.networks.clip import Clip, Preprocess, RawFrontEnd, area_resize  # noqa: E402

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 32, "heads": 2, "layers": 2},
}
CONFIG["text_cfg"] |= {"pool_type": "eos", "eos_id": 1, "pad_id": 2}


def make_clip():
    torch.manual_seed(0)
    return Clip(CONFIG).eval().requires_grad_(False)


def test_embeddings_are_unit_length_at_any_image_size():
    clip = make_clip()
    for size in (32, 48, 100):
        embedding = clip.encode_image(torch.rand(2, 3, size, size) * 2 - 1)
        assert embedding.shape == (2, 64)
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-5)
    assert torch.allclose(clip.encode_text(torch.randint(3, 40, (4, 12))).norm(dim=-1), torch.ones(4), atol=1e-5)


def test_text_is_pooled_at_eos_and_what_follows_is_ignored():
    clip = make_clip()
    tokens = torch.tensor([[0, 5, 6, 1, 2, 2, 2, 2, 2, 2, 2, 2]])
    other = tokens.clone()
    other[:, 4:] = 7  # after eos: the causal mask hides it
    assert torch.allclose(clip.encode_text(tokens), clip.encode_text(other), atol=1e-6)
    other[:, 2] = 9
    assert not torch.allclose(clip.encode_text(tokens), clip.encode_text(other), atol=1e-3)


def test_preprocess_moves_the_range_and_normalises():
    front = Preprocess(8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    expected = ((image + 1) / 2 - mean[None, :, None, None]) / std[None, :, None, None]
    assert torch.allclose(front(image), expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resize_equals_pillow(mode):
    import numpy as np
    from PIL import Image

    pillows = getattr(Image.Resampling, mode.upper())
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    bands = [Image.fromarray(pixels[..., c]).convert("F").resize((32, 32), pillows) for c in range(3)]
    expected = np.stack([np.asarray(band) for band in bands])[None]
    front = Preprocess(32, (0, 0, 0), (1, 1, 1), mode)
    ours = front(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)
    assert np.abs(ours.numpy() * 255 - expected).max() < 0.01


@pytest.mark.parametrize("size", [256, 64, 32, 160])
def test_raw_front_end_equals_the_published_upsample_and_pool(size):
    """StyleCLIP: Upsample(scale 7), AvgPool2d(size // 32) to 224; here with scale 2 to 64."""
    image = torch.randn(2, 3, size, size)
    published = F.avg_pool2d(F.interpolate(image, scale_factor=2, mode="nearest"), size // 32)
    assert torch.allclose(RawFrontEnd(64)(image), published, atol=1e-5)


def test_area_resize_keeps_the_mean_and_has_gradients():
    image = torch.randn(1, 3, 50, 70, requires_grad=True)
    small = area_resize(image, 20)
    assert torch.allclose(small.mean(), image.mean(), atol=1e-5)
    small.sum().backward()
    assert image.grad is not None


def test_the_raw_front_end_skips_mean_and_std():
    clip, image = make_clip(), torch.rand(1, 3, 32, 32) * 2 - 1
    raw = clip.encode_image(image, front_end="raw")
    assert torch.allclose(raw, F.normalize(clip.model.visual(image), dim=-1), atol=1e-5)
    with pytest.raises(InputError, match="expected 'clip' or 'raw'"):
        clip.encode_image(image, front_end="mean")


def test_a_config_without_a_tower_or_with_unknown_keys_is_refused():
    with pytest.raises(PackError, match="text_cfg"):
        Clip({"embed_dim": 4, "vision_cfg": {"image_size": 32}})
    with pytest.raises(PackError, match="refused"):
        Clip({**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "colour": 1}})


def test_weights_load_into_plain_open_clip():
    from open_clip.model import CLIP

    plain = CLIP(embed_dim=64, vision_cfg=dict(CONFIG["vision_cfg"]), text_cfg=dict(CONFIG["text_cfg"]))
    plain.load_state_dict(make_clip().model.state_dict())


def test_the_front_end_of_the_config_is_the_one_that_is_applied():
    clip = Clip({**CONFIG, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5], "interpolation": "bilinear"}).eval()
    image = torch.rand(1, 3, 50, 50) * 2 - 1
    small = F.interpolate(image, (32, 32), mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    assert torch.allclose(clip.preprocess(image), ((small + 1) / 2 - mean) / std, atol=1e-5)
    with pytest.raises(InputError, match="expected one of bicubic, bilinear, area"):
        clip.preprocess(image, "nearest")


def test_towers_that_would_be_downloaded_are_refused():
    text = {**CONFIG["text_cfg"], "hf_model_name": "roberta-base"}
    with pytest.raises(PackError, match="'roberta-base' of the library transformers"):
        Clip({**CONFIG, "text_cfg": text})


def test_activations_differ():
    rows = torch.randint(3, 40, (4, 12))
    quick, plain = Clip({**CONFIG, "quick_gelu": True}).eval(), Clip(CONFIG).eval()
    quick.load_state_dict(plain.state_dict())
    assert not torch.allclose(quick.encode_text(rows), plain.encode_text(rows), atol=1e-6)
