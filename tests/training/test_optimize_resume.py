"""Interrupted optimisations: they go on bit for bit, refuse another run's folder, and lose nothing to a bad step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from styleclip_rt.engines.errors import InputError, StyleclipError
from styleclip_rt.runtime.training import optimize_state
from styleclip_rt.runtime.training.inputs import read_inputs
from styleclip_rt.runtime.training.optimize import Optimized, Saving, optimize
from styleclip_rt.runtime.training.optimize_settings import PUBLISHED, OptimizeSettings
from styleclip_rt.runtime.training.optimize_state import State
from styleclip_rt.runtime.training.pack import Pack, load_pack

from .conftest import Kill

SHORT_RUN = replace(PUBLISHED, steps=6)


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("toyfaces")


@pytest.fixture(scope="module")
def w(pack: Pack) -> Tensor:
    return read_inputs(pack, [], seeds=[1, 2, 3]).w


def same(a: Optimized, b: Optimized) -> bool:
    return torch.equal(a.s, b.s) and a.after == b.after and a.history == b.history and a.image == b.image


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        SHORT_RUN,
        replace(SHORT_RUN, space="s", batch=2, patience=3),
        replace(SHORT_RUN, space="w", whiten=True, warm=32),
    ],
    ids=["w", "s", "warm"],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    pack: Pack, w: Tensor, tmp_path: Path, settings: OptimizeSettings
) -> None:
    whole = optimize(pack, w, "purple-hair", settings, save_every=2)
    saving = Saving(tmp_path / "work", every_s=-1.0)
    steps = 0

    def stop(done: int, total: int, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps in (3, 5):
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            optimize(pack, w, "purple-hair", settings, save_every=2, saving=saving, progress=stop)
    resumed = optimize(pack, w, "purple-hair", settings, save_every=2, saving=saving, progress=stop)
    assert steps < 3 + settings.steps * 2 + 1
    assert all(same(a, b) for a, b in zip(whole, resumed, strict=True))
    assert [[step for step, _ in r.frames] for r in resumed] == [[step for step, _ in r.frames] for r in whole]
    again = optimize(
        pack, w, "purple-hair", settings, save_every=2, saving=saving, progress=lambda *_: pytest.fail("a step")
    )
    assert all(same(a, b) for a, b in zip(whole, again, strict=True))


def test_another_run_in_the_folder_is_refused_or_replaced(pack: Pack, w: Tensor, tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    settings = replace(SHORT_RUN, steps=2)
    optimize(pack, w[:1], "purple-hair", settings, saving=saving)
    with pytest.raises(InputError, match=r"holds another run .other lr, neutral, target.*delete this one"):
        optimize(pack, w[:1], "a face with glasses", replace(settings, lr=0.2), saving=saving)
    with pytest.raises(InputError, match="other faces, latents"):
        optimize(pack, w[:2], "purple-hair", settings, saving=saving)
    fresh = optimize(pack, w[:1], "purple-hair", replace(settings, lr=0.2), saving=replace(saving, restart=True))
    assert "started anew" in fresh[0].notes[0]
    (tmp_path / "batch-0000.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(InputError, match=r"batch-0000.pt cannot be read.*delete it"):
        optimize(pack, w[:1], "purple-hair", replace(settings, lr=0.2), saving=saving)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_rest(pack: Pack, w: Tensor, tmp_path: Path) -> None:
    wild = replace(PUBLISHED, steps=8, lr=1e30, batch=1)
    with pytest.raises(
        InputError, match=r"face0000 is not finite at step 2 of 8: lower lr; the last good step is kept"
    ):
        optimize(pack, w[:1], "purple-hair", wild, saving=Saving(tmp_path))
    state = optimize_state.load(tmp_path / "batch-0000.pt")
    assert state is not None
    assert state.step == 2
    assert len(state.history) == 2
    assert state.best_latent.isfinite().all()


def test_a_full_disk_is_one_line_and_keeps_the_older_checkpoint(
    pack: Pack, w: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, file = State.fresh(w, {}, 1.0), tmp_path / "batch-0000.pt"
    optimize_state.save(state, file)
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        StyleclipError, match=r"batch-0000.pt: No space left on device; the checkpoint there is the prev"
    ):
        optimize_state.save(state, file)
    assert file.read_bytes() == before


RUN = """
from pathlib import Path
from styleclip_rt.runtime.training.optimize import Saving, optimize
from styleclip_rt.runtime.training.optimize_settings import PUBLISHED
from styleclip_rt.runtime.training.inputs import read_inputs
from styleclip_rt.runtime.training.pack import load_pack
from dataclasses import replace
pack = load_pack("toyfaces")
w = read_inputs(pack, [], seeds=[1]).w
optimize(pack, w, "purple-hair", replace(PUBLISHED, steps=14), saving=Saving(Path(sys.argv[4]), every_s=-1.0))
"""


def test_sigkill_loses_no_checkpoint(pack: Pack, tmp_path: Path, killed: Callable[..., None], one_thread: None) -> None:
    """Killed in the middle of a step, in the middle of a checkpoint, and then to the end: the bits of one run."""
    file, settings = tmp_path / "work" / "batch-0000.pt", replace(PUBLISHED, steps=14)
    steps = []
    for kill in (Kill("after", 3, random.Random(7).uniform(0.02, 0.1)), Kill("before", 3)):
        killed(kill, tmp_path / "work", body=RUN)
        state = optimize_state.load(file)
        assert state is not None
        assert state.step == len(state.history) < settings.steps
        steps.append(state.step)
    assert steps[0] >= 3
    assert steps[1] == steps[0] + 2, "the third checkpoint of the second run never got its name"
    done, w = [], read_inputs(pack, [], seeds=[1]).w  # alone, as in the processes: a batch has other last digits
    saving = Saving(tmp_path / "work", every_s=-1.0)
    resumed = optimize(pack, w, "purple-hair", settings, saving=saving, progress=lambda step, *_: done.append(step))
    assert len(done) <= settings.steps - steps[1] + 1, "it began where it had been"
    assert same(resumed[0], optimize(pack, w, "purple-hair", settings)[0])
