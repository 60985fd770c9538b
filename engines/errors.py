"""The one error tree of the project: each class carries the HTTP status of a server and the exit code of a command.

Every message is one plain sentence or two: what came, what was expected, what to do next.
"""

from __future__ import annotations


class StyleclipError(Exception):
    """Base of every error that this project raises on purpose."""

    http_status: int = 500
    exit_code: int = 1


class InputError(StyleclipError):
    """The caller's value cannot be used: a wrong name, shape, dtype, range or file."""

    http_status = 400
    exit_code = 2


class ImageError(InputError):
    """The picture cannot be read, or is outside the limits on bytes and pixels."""

    http_status = 415


class PackError(StyleclipError):
    """A model pack is malformed, damaged, or of a version this release cannot read."""

    http_status = 422
    exit_code = 3


class BundleError(StyleclipError):
    """An engine bundle is malformed, damaged, or of a version this release cannot read."""

    http_status = 422
    exit_code = 3


class ToleranceError(StyleclipError):
    """An exported graph differs from PyTorch by more than its tolerance."""

    exit_code = 4


class EngineError(StyleclipError):
    """A backend failed while loading or running a graph."""

    exit_code = 5


class EngineUnavailable(EngineError):
    """The engine or device that was asked for cannot run on this machine."""

    http_status = 503
    exit_code = 6


class MissingDependency(StyleclipError):
    """An optional library is not installed; the message names the extra that brings it."""

    http_status = 501
    exit_code = 7
