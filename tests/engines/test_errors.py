from __future__ import annotations

import pytest

from styleclip_rt.engines import errors


@pytest.mark.parametrize(
    ("name", "http_status", "exit_code"),
    [
        ("InputError", 400, 2),
        ("ImageError", 415, 2),
        ("PackError", 422, 3),
        ("BundleError", 422, 3),
        ("ToleranceError", 500, 4),
        ("EngineError", 500, 5),
        ("EngineUnavailable", 503, 6),
        ("MissingDependency", 501, 7),
    ],
)
def test_each_class_has_its_status_and_exit_code(name, http_status, exit_code):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.StyleclipError)
    assert (kind.http_status, kind.exit_code) == (http_status, exit_code)


def test_an_image_error_is_an_input_error_and_an_unavailable_engine_an_engine_error():
    assert issubclass(errors.ImageError, errors.InputError)
    assert issubclass(errors.EngineUnavailable, errors.EngineError)
