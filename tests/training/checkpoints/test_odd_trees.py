"""Checkpoints whose values are not what they should be: one PackError each, whatever stands where."""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the PyTorch path needs the extra 'torch'")

sys.path.insert(0, str(Path(__file__).parent))

import writers_encoders as writers  # noqa: E402

from styleclip_rt.engines.errors import PackError  # noqa: E402
from styleclip_rt.runtime.archives import Source  # noqa: E402
from styleclip_rt.runtime.training.checkpoints import encoders, identity, mappers  # noqa: E402

LONG = "9" * 5000  # more digits than int() takes
ODD = [
    *(
        np.zeros(0, np.float32),
        np.array("text"),
        np.zeros((0, 3, 3, 3)),
        np.ones(()),
        np.array([1 + 2j]),
        np.ones((2, 2)),
    ),
    *(np.full(4, np.nan), np.zeros((1,) * 10), np.array([True, False]), None, "x", 3, [np.ones(3)], {"a": np.ones(2)}),
]
NEW_KEYS = [f"encoder.styles.{LONG}.linear.weight", f"mapper.mapper_{LONG}.mapping.1.weight", "body.99", "x"]
IMPORTS = {
    "encoder": encoders.import_inverter,
    "identity": identity.import_identity,
    "levels": lambda source: mappers.import_mapper("x", source, 18, 8),
    "style": lambda source: mappers.import_mapper("x", source, 6, 8),
}


def trees():
    narrow = {"widths": writers.NARROW, "reduction": 4}
    made = {
        "encoder": writers.write_encoder(styles=4, **narrow),
        "identity": writers.write_identity(embed=8, **narrow),
        "levels": writers.write_mapper("LevelsMapper", width=8),
        "style": writers.write_mapper(
            "FullStyleSpaceMapper", channels=(8, 8, 8, 6, 6, 6, 4, 4), opts={"stylegan_size": 16}
        ),
    }
    return {name: arrays_of(tree) for name, tree in made.items()}


def arrays_of(tree):
    if isinstance(tree, dict):
        return {key: arrays_of(value) for key, value in tree.items()}
    return tree.numpy() if isinstance(tree, torch.Tensor) else tree


def spoil(tree, rng):
    """Replaces, removes or adds one entry of the state dict, an option, or the file's top level."""
    state = tree["state_dict"] if isinstance(tree.get("state_dict"), dict) else tree
    what = rng.choice(["replace", "remove", "add", "option", "top"])
    if what == "replace":
        state[rng.choice(list(state))] = rng.choice(ODD)
    elif what == "remove":
        state.pop(rng.choice(list(state)))
    elif what == "add":
        state[rng.choice(NEW_KEYS)] = rng.choice(ODD)
    elif what == "option" and isinstance(tree.get("opts"), dict):
        tree["opts"][rng.choice(list(tree["opts"]))] = rng.choice(ODD)
    else:
        tree[rng.choice(list(tree))] = rng.choice(ODD)


def copied(tree):
    return {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}


@pytest.mark.parametrize("name", IMPORTS)
def test_odd_values_are_refused_in_one_message(name):
    whole, rng, messages = trees()[name], random.Random(11), []
    for _ in range(25):
        tree = copied(whole)
        for _ in range(rng.randint(1, 3)):
            spoil(tree, rng)
        source = Source(Path("file.pt"), "torch", "", 1, tree)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for module in (encoders, identity, mappers):
                module.recognises(source)
            try:
                IMPORTS[name](source)
            except PackError as error:
                messages.append(str(error))
    assert len(messages) > 12
    assert all("file.pt" in message and len(message) < 4000 for message in messages)
