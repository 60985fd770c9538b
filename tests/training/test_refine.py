"""Refining inverted photos: closer to the photo, not far from the encoder's w, and with the pack of the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from styleclip_rt.engines.errors import InputError, PackError
from styleclip_rt.runtime import store
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.images import image_from_u8, read_image
from styleclip_rt.runtime.training.inverter_losses import edge_loss, psnr_db
from styleclip_rt.runtime.training.networks.stylegan2 import Generator, GeneratorConfig
from styleclip_rt.runtime.training.pack import Pack, PackWriter, load_pack
from styleclip_rt.runtime.training.pictures import pictures, tensor_of
from styleclip_rt.runtime.training.refine import (
    RefineSettings,
    check_same,
    draw,
    pack_of_bundle,
    refine,
    refined,
    w_spread,
)

CONFIG = GeneratorConfig(resolution=16, z_dim=12, w_dim=12, mapping_layers=2, channels={4: 8, 8: 8, 16: 6})


def latents(pack: Pack, count: int, seed: int = 0) -> Tensor:
    z = torch.randn(count, CONFIG.z_dim, generator=torch.Generator().manual_seed(seed))
    return pack.generator.broadcast(pack.generator.mapping(z)).contiguous()


def photos_near(pack: Pack, count: int) -> tuple[Tensor, Tensor]:
    """Pictures [n,3,16,16] of the generator, and w that are somewhat off."""
    w = latents(pack, count)
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(9))
    return pack.generator(w).clamp(-1, 1), w + 0.4 * w_spread(pack.generator) * noise


def test_the_sample_portrait_gains_a_decibel_in_forty_steps_and_stays_near() -> None:
    pack = load_pack("toyfaces")
    photo = tensor_of([read_image(store.sample_portrait()).resize((64, 64))])
    with torch.no_grad():
        w = pack.inverter(photo)
    found = refined(pack, photo, w, RefineSettings(steps=40))
    assert found.psnr_db[0] > found.psnr_db_before[0] + 1
    assert 0.01 < found.distance[0] < 0.4  # standard deviations of W
    with torch.no_grad():
        assert psnr_db(pack.generator(found.w), photo)[0] == pytest.approx(float(found.psnr_db[0]), abs=1e-3)


def test_a_higher_price_of_distance_keeps_w_nearer(tiny: Pack) -> None:
    photo, w = photos_near(tiny, 2)
    free, tied = (refined(tiny, photo, w, RefineSettings(steps=30, distance=d)) for d in (0.0, 1.0))
    assert (tied.distance < free.distance).all()
    assert (free.psnr_db > tied.psnr_db).all()
    assert (tied.psnr_db > tied.psnr_db_before).all()


def test_a_photo_is_refined_alike_alone_and_among_others(tiny: Pack) -> None:
    photo, w = photos_near(tiny, 3)
    together = refine(tiny, photo, w, steps=10)
    alone = refine(tiny, photo[1:2], w[1:2], steps=10)
    assert torch.allclose(together[1:2], alone, atol=2e-3 * float(w_spread(tiny.generator)))


def test_w_that_cannot_be_bettered_is_kept(tiny: Pack) -> None:
    w = latents(tiny, 1)
    with torch.no_grad():
        photo = tiny.generator(w).clamp(-1, 1)
    found = refined(tiny, photo, w + 0.0, RefineSettings(steps=3, lr=5.0))
    assert torch.equal(found.w, w)
    assert found.distance[0] == 0
    assert found.psnr_db[0] == found.psnr_db_before[0]


def test_no_steps_change_nothing_and_the_networks_stay_as_they_are(tiny: Pack) -> None:
    photo, w = photos_near(tiny, 1)
    before = {name: tensor.clone() for name, tensor in tiny.generator.state_dict().items()}
    assert torch.equal(refine(tiny, photo, w, steps=0), w)
    refine(tiny, photo, w, steps=2)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.generator.state_dict().items())
    assert all(p.grad is None for p in tiny.generator.parameters())


def test_pictures_are_drawn_as_the_photo_shows_them(tiny: Pack) -> None:
    w = latents(tiny, 1)
    whole = tiny.generator(w)
    assert torch.equal(draw(tiny.generator, w, torch.zeros(1, 3, 16, 16)), whole)
    assert torch.equal(draw(tiny.generator, w, torch.zeros(1, 3, 12, 16)), whole[:, :, 2:14])
    small = draw(tiny.generator, w, torch.zeros(1, 3, 8, 8))
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(whole, 2), atol=1e-6)


def test_edges_are_those_of_three_sizes() -> None:
    image, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    expected = []
    for scale in (1, 2, 4):
        a, b = (torch.nn.functional.avg_pool2d(x, scale) for x in (image, target))
        rows = ((a[:, :, 1:] - a[:, :, :-1]) - (b[:, :, 1:] - b[:, :, :-1])).abs().mean()
        columns = ((a[..., 1:] - a[..., :-1]) - (b[..., 1:] - b[..., :-1])).abs().mean()
        expected.append(rows + columns)
    assert edge_loss(image, target) == pytest.approx(float(sum(expected)) / 3, abs=1e-6)
    assert edge_loss(image, image + 0.3) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("photo", "w", "message"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 4, 12), r"w is \[1, 4, 12\]; expected \[N, 6, 12\]"),
        (torch.zeros(2, 3, 16, 16), torch.zeros(1, 6, 12), r"photo is \[2, 3, 16, 16\]; expected \[1, 3, I, I\]"),
        (torch.full((1, 3, 16, 16), torch.nan), torch.zeros(1, 6, 12), "not finite"),
    ],
)
def test_wrong_inputs_are_named(tiny: Pack, photo: Tensor, w: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refine(tiny, photo, w)


def test_a_loss_that_is_not_finite_is_an_error(tiny: Pack) -> None:
    photo, w = photos_near(tiny, 1)
    with pytest.raises(InputError, match=r"the loss is (inf|nan) at step"):
        refined(tiny, photo, w * 1e30, RefineSettings(steps=2))


# With a bundle -------------------------------------------------------------------------------------------------------


def test_a_pack_that_changed_is_taken_while_it_draws_the_same(tiny: Pack, tmp_path: Path) -> None:
    w = latents(tiny, 1)
    with torch.no_grad():
        drawn = pictures(tiny.generator(w))[0]
    assert check_same(tiny, {"name": "tiny", "sha256": tiny.sha256}, w.numpy(), drawn) == []
    (note,) = check_same(tiny, {"name": "tiny", "sha256": "0" * 64}, w.numpy(), drawn)
    assert "changed since the export" in note
    torch.manual_seed(1)
    with PackWriter(tmp_path / "other", "tiny") as writer:
        writer.add("generator", Generator(CONFIG))
    with pytest.raises(InputError, match="not the one that the bundle was made from"):
        check_same(load_pack(tmp_path / "other"), {"name": "tiny", "sha256": tiny.sha256}, w.numpy(), drawn)


def test_a_generator_of_another_size_is_refused(tiny: Pack) -> None:
    w = np.zeros((1, 10, 128), np.float32)
    with pytest.raises(InputError, match="another picture"):
        check_same(tiny, {"name": "toyfaces", "sha256": "1"}, w, image_from_u8(np.zeros((64, 64, 3), np.uint8)))


def test_the_pack_is_the_one_that_the_bundle_names(tiny: Pack) -> None:
    assert pack_of_bundle(None, {"name": "toyfaces"}).name == "toyfaces"
    assert pack_of_bundle(str(tiny.path), {"name": "toyfaces"}).name == "tiny"
    with pytest.raises(PackError, match=r"made from: no pack at 'ffhq'.*name it by --pack"):
        pack_of_bundle(None, {"name": "ffhq"})
    with pytest.raises(PackError, match="no pack at 'nowhere'"):
        pack_of_bundle("nowhere", {"name": "toyfaces"})


def test_invert_refines_and_reports(tmp_path: Path) -> None:
    arguments = ["invert", "sample", "--bundle", "toyfaces", "--out", str(tmp_path / "w.npz"), "--json"]
    plain = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    better = json.loads(CliRunner().invoke(cli, [*arguments, "--refine", "8"], catch_exceptions=False).stdout)
    assert plain["refine"] is None
    assert better["refine"]["psnr_db_before"] == plain["psnr_db"]
    assert better["psnr_db"] > plain["psnr_db"] + 0.5
    assert better["refine"]["steps"] == 8
    assert better["notes"] == []
    w = np.load(tmp_path / "w.npz")["w"]
    assert w.shape == (1, 10, 128)
    assert w.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pack", "toyfaces"], "give --refine STEPS"),
        (["--refine", "3", "--pack", "nowhere"], "no pack at 'nowhere'"),
    ],
)
def test_invert_says_what_is_wrong_and_writes_nothing(tmp_path: Path, options: list[str], message: str) -> None:
    out = tmp_path / "w.npz"
    result = CliRunner().invoke(cli, ["invert", "sample", "--bundle", "toyfaces", "--out", str(out), *options])
    assert result.exit_code in (2, 3)
    assert message in result.stderr
    assert not out.exists()
