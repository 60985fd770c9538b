"""Options of the commands that take a photo: where the face is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..engines.errors import InputError
from .cli_common import F

if TYPE_CHECKING:
    from .align_frame import Frame, Framing
    from .editor import Editor

NAMES = ("landmarks", "landmark_model", "face", "no_align")


def photo_options(command: F) -> F:
    """--landmarks, --landmark-model, --face and --no-align; see `photo_settings`."""
    for option in (
        click.option("--no-align", is_flag=True, help="IMG is an aligned crop: take it as it is, its centred square."),
        click.option(
            "--face", metavar="N", type=click.IntRange(min=1), help="Which of several faces, 1 for the leftmost."
        ),
        click.option(
            "--landmark-model",
            metavar="FILE",
            help="Find landmarks by this model: dlib's predictor or .onnx. Default: $STYLECLIP_RT_LANDMARKS.",
        ),
        click.option("--landmarks", metavar="FILE", help="68 points of each face in IMG: JSON, .npy or .pts."),
    ):
        command = option(command)
    return command


def take_photo_options(options: dict[str, Any]) -> dict[str, Any]:
    """Move the options of `photo_options` out of a command's options."""
    taken = {name: options.pop(name) for name in NAMES}
    if taken["landmarks"] and taken["landmark_model"]:
        raise InputError("--landmarks and --landmark-model both say where the face is; give one of them")
    if taken["no_align"] and taken["landmark_model"]:
        raise InputError("--no-align takes the photo as it is; leave out --landmark-model")
    return taken


def photo_settings(taken: dict[str, Any]) -> dict[str, Any]:
    """The arguments landmarks, face and align of `Editor.edit` and `Editor.framing`; loads the landmark model."""
    from .align_models import open_finder

    landmarks = open_finder(taken["landmark_model"]) if taken["landmark_model"] else taken["landmarks"]
    return {"landmarks": landmarks, "face": taken["face"], "align": False if taken["no_align"] else None}


def framing_of(editor: Editor, taken: dict[str, Any]) -> Framing:
    """The framing that the options ask for."""
    return editor.framing(**photo_settings(taken))


def is_asked(taken: dict[str, Any]) -> bool:
    """Whether any of the options was given."""
    return any(taken.values())


def frame_record(frame: Frame | None) -> dict[str, Any]:
    """The JSON of a frame: which face of how many, and the corners of its crop in pixels from the photo's edge."""
    if frame is None or frame.face is None:
        return {"face": None, "faces": None, "quad": None}
    return {"face": frame.face, "faces": frame.faces, "quad": frame.quad.round(3).tolist()}
