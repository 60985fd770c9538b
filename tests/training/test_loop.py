"""The training loop and its checkpoints: exact resumption, NaN, full disks, damage, other settings."""

from __future__ import annotations

import errno
import json
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

from styleclip_rt.engines.errors import InputError, StyleclipError  # noqa: E402
from styleclip_rt.runtime.training import loop_store  # noqa: E402
from styleclip_rt.runtime.training.loop import load_stage, rng_for, train  # noqa: E402
from styleclip_rt.runtime.training.loop_ranks import Ranks, process_group, ranks  # noqa: E402
from styleclip_rt.runtime.training.loop_store import SafetensorsStore, TorchStore  # noqa: E402
from styleclip_rt.runtime.training.ranger import Ranger  # noqa: E402

OPTIMIZERS = {"adam": torch.optim.AdamW, "ranger": partial(Ranger, betas=(0.95, 0.999))}
STEPS = 20


class Stop(Exception):
    """Ends a training from inside, as a kill would."""


def store_of(kind: str, work: Path):
    return TorchStore(work / "s.pt", torch.device("cpu")) if kind == "pt" else SafetensorsStore(work / "s.st", {"a": 1})


def run(work: Path, *, steps=STEPS, stop=None, loss=lambda i, value: value, kind="st", optimizer="ranger", **more):
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 4)

    def step(i):
        if i == stop:
            raise Stop
        x = torch.from_numpy(rng_for(7, i).standard_normal((8, 4), dtype="float32"))
        value = loss(i, (model(x) - x.flip(1)).square().mean())
        return {"loss": value, "again": value.detach()}

    more = {"store": store_of(kind, work), "save_every": 3, "ema": 0.9, "schedule": "constant", **more}
    return train("s", work, model, step, steps=steps, lr=0.05, optimizer=OPTIMIZERS[optimizer], log_every=2, **more)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", ["st", "pt"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stopped_run_resumes_exactly(tmp_path, optimizer, kind):
    whole = run(tmp_path / "whole", optimizer=optimizer, kind=kind)
    for stop in (4, 11, 17):  # the last checkpoints are of steps 3, 9 and 15, between two LookAhead steps
        with pytest.raises(Stop):
            run(tmp_path / "parts", stop=stop, optimizer=optimizer, kind=kind)
    resumed = run(tmp_path / "parts", optimizer=optimizer, kind=kind)
    assert torch.equal(weights(whole), weights(resumed))
    logs = [[json.loads(line) for line in (tmp_path / w / "s.jsonl").open()] for w in ("whole", "parts")]
    assert [row["step"] for row in logs[0]] == list(range(0, STEPS, 2))
    assert [[row[k] for k in ("step", "loss", "again")] for row in logs[0]] == [
        [row[k] for k in ("step", "loss", "again")] for row in logs[1]
    ]


def test_a_finished_run_returns_at_once_and_a_longer_one_goes_on(tmp_path):
    first = run(tmp_path)
    assert torch.equal(weights(first), weights(run(tmp_path, stop=0)))
    longer = run(tmp_path, steps=30)
    assert torch.equal(weights(longer), weights(run(tmp_path / "other", steps=30)))


def test_a_loss_that_is_not_finite_ends_the_run_before_the_weights(tmp_path):
    def poison(i, value):
        return value * float("nan") if i == 10 else value

    with pytest.raises(InputError, match=r"the loss is nan at step 10; lower lr or resume from .*s\.st"):
        run(tmp_path, loss=poison)
    store = store_of("st", tmp_path)
    assert store.done() == 9
    assert torch.equal(weights(run(tmp_path)), weights(run(tmp_path / "clean")))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls == 6:
                self.param_groups[0]["params"][0].data[0] = float("inf")

    OPTIMIZERS["broken"] = Broken
    try:
        with pytest.raises(InputError, match="weights are not finite after step 5"):
            run(tmp_path, optimizer="broken")
    finally:
        del OPTIMIZERS["broken"]
    assert store_of("st", tmp_path)._read()[1]["step"] == 3


@pytest.mark.parametrize("kind", ["st", "pt"])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, kind):
    with pytest.raises(Stop):
        run(tmp_path, stop=4, kind=kind)
    before = store_of(kind, tmp_path).path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop_store.os, "fsync", full)
        with pytest.raises(StyleclipError, match=r"No space left on device; the checkpoint there is the previous one"):
            run(tmp_path, kind=kind)
    assert store_of(kind, tmp_path).path.read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    assert torch.equal(weights(run(tmp_path, kind=kind)), weights(run(tmp_path / "clean", kind=kind)))


def test_a_full_disk_that_torch_reports_is_named_too(tmp_path, monkeypatch):
    def full(state, file):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore")

    monkeypatch.setattr(loop_store.torch, "save", full)
    with pytest.raises(StyleclipError, match="file write failed; there is no checkpoint yet"):
        run(tmp_path, kind="pt")


def test_a_log_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "s.jsonl").mkdir()
    with pytest.raises(StyleclipError, match=r"cannot write .*s\.jsonl: .*the last checkpoint is intact"):
        run(tmp_path)


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"other settings \(a 1, now 2\); repeat those, or name another --work"):
        run(tmp_path, store=SafetensorsStore(tmp_path / "s.st", {"a": 2}))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint" * 9], ids=["empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "s.st").write_bytes(content)
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        run(tmp_path)


def test_a_checkpoint_of_another_network_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    run(tmp_path)
    head = SafetensorsStore(tmp_path / "s.st", {"a": 1})._read()[1]
    tensors = load_file(tmp_path / "s.st")
    del tensors["model.weight"]
    save_file(tensors, tmp_path / "s.st", {"training": json.dumps(head)})
    with pytest.raises(InputError, match="does not fit this training"):
        run(tmp_path)


def test_the_recipes_checkpoints_are_what_they_were(tmp_path):
    """Keys of the `.pt` files of older runs, and a finished one without its optimiser."""
    model = run(tmp_path, kind="pt", optimizer="adam")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    assert sorted(state) == ["ema", "model", "optimizer", "step"]
    assert state["step"] == STEPS
    assert state["optimizer"] is None
    assert torch.equal(weights(load_stage(tmp_path, "s", torch.nn.Linear(4, 4))), weights(model))


def test_the_watcher_sees_every_step_and_the_average(tmp_path):
    seen = []
    model = run(tmp_path, watch=lambda done, net, row: seen.append((done, weights(net).clone(), row)))
    assert [done for done, _, _ in seen] == list(range(1, STEPS + 1))
    assert torch.equal(seen[-1][1], weights(model))
    assert [row is not None for _, _, row in seen[:4]] == [True, False, True, False]


def test_one_process_is_alone():
    with process_group() as alone:
        assert alone == ranks() == Ranks(0, 1)
    batch = torch.arange(6.0)
    assert torch.equal(alone.share(batch), batch)
    assert torch.equal(Ranks(1, 3).share(batch), torch.tensor([2.0, 3.0]))
    with pytest.raises(InputError, match="a batch of 6 cannot be shared by 4 processes"):
        Ranks(0, 4).share(batch)
