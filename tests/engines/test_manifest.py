"""Hostile and damaged bundles: each is refused with a BundleError that says what and where, and nothing is run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from styleclip_rt.engines.bundle import open_bundle
from styleclip_rt.engines.errors import BundleError, EngineError
from styleclip_rt.engines.manifest import path_inside, read_manifest

SIZE = {"sha256": "0" * 64, "bytes": 6}


def listing(name):
    return lambda manifest: manifest["files"].update({name: SIZE})


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(manifest):
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return change


def drop(*keys):
    def change(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    return change


FIRST_INPUT = ("graphs", "project", "inputs", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            put("version", 99), "format version is 99, this release reads version 1; upgrade", id="version 99"
        ),
        pytest.param(put("version", True), "format version is True", id="version true"),
        pytest.param(put("version", "1"), "format version is '1'", id="version text"),
        pytest.param(drop("version"), "format version is None", id="no version"),
        pytest.param(put("format", "other"), "format is 'other', expected", id="other format"),
        pytest.param(listing("../outside"), "'../outside' points outside the bundle", id="climbs out"),
        pytest.param(listing("graphs/../../outside"), "points outside the bundle", id="climbs out in the middle"),
        pytest.param(listing("/etc/hostname"), "'/etc/hostname' points outside the bundle", id="absolute"),
        pytest.param(listing("C:\\windows\\win.ini"), "is not a plain relative path", id="windows path"),
        pytest.param(listing("a\0b"), "is not a plain relative path", id="nul byte"),
        pytest.param(listing("a\nb"), "is not a plain relative path", id="line break"),
        pytest.param(listing(""), "is not a plain relative path", id="empty path"),
        pytest.param(listing("x" * 5000), "cannot be followed|is missing", id="endless name"),
        pytest.param(listing("graphs"), "the file graphs is missing", id="directory as file"),
        pytest.param(listing("absent.bin"), "the file absent.bin is missing", id="missing file"),
        pytest.param(put("files", {}), "`files` must be a non-empty object", id="no files"),
        pytest.param(put("files", []), "`files` must be a non-empty object", id="files is a list"),
        pytest.param(put("files", "tokenizer.json", "abc"), "`files` must be", id="file row is text"),
        pytest.param(put("files", "tokenizer.json", "sha256", "zz"), "expected 64 hex digits", id="bad hash"),
        pytest.param(put("files", "tokenizer.json", "bytes", -1), "expected the size of the file", id="negative size"),
        pytest.param(put("files", "tokenizer.json", "bytes", 3), "has 2 bytes, the manifest says 3", id="other size"),
        pytest.param(drop("graphs"), "`graphs` must be a non-empty object", id="no graphs"),
        pytest.param(
            put("graphs", "project", "file", "elsewhere.onnx"), "not in its `files`", id="unlisted graph file"
        ),
        pytest.param(put("graphs", "project", "file", ["a"]), "not in its `files`", id="graph file is a list"),
        pytest.param(put("graphs", "project", "inputs", []), "must be a non-empty list", id="no inputs"),
        pytest.param(put(*FIRST_INPUT, "dtype", "object"), "has dtype 'object', expected one of", id="object dtype"),
        pytest.param(put(*FIRST_INPUT, "dtype", {}), "has dtype {}", id="dtype is an object"),
        pytest.param(put(*FIRST_INPUT, "shape", ["N", 0]), "expected a list of positive integers", id="size 0"),
        pytest.param(put(*FIRST_INPUT, "shape", ["N", 1.5]), "expected a list of positive integers", id="size 1.5"),
        pytest.param(put(*FIRST_INPUT, "shape", [1] * 99), "expected a list of positive integers", id="rank 99"),
        pytest.param(put(*FIRST_INPUT, "name", None), "has the name None", id="no name"),
        pytest.param(
            put("graphs", "project", "inputs", [{"name": "x", "dtype": "float32", "shape": [1]}] * 2),
            "names one tensor twice",
            id="one name twice",
        ),
    ],
)
def test_a_bad_manifest_is_refused(tamper, change, message):
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(tamper(change), device="cpu")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"\x80\x04pickle", "not JSON", id="not text"),
        pytest.param(b"{", "not JSON", id="cut off"),
        pytest.param(b"[1, 2]", "holds a list, expected a JSON object", id="list"),
        pytest.param(b"[" * 200_000, "not JSON", id="deep nesting"),
        pytest.param(b'{"a": "' + b"x" * 10_000_000 + b'"}', "larger than 4194304 bytes", id="10 MB"),
        pytest.param(b'{"version": ' + b"9" * 5000 + b"}", "not JSON|format is None", id="endless number"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(bundle_dir, data, message):
    (bundle_dir / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle_dir, device="cpu")


@pytest.mark.parametrize("where", ["absent", "tiny/tokenizer.json", "tiny/graphs"])
def test_a_path_without_a_bundle_says_what_to_give(bundle_dir, where):
    with pytest.raises(BundleError, match=r"no bundle at .* give the directory that `styleclip-rt export` wrote"):
        open_bundle(bundle_dir.parent / where)


def test_links_may_stay_inside_but_not_leave(bundle_dir):
    (bundle_dir.parent / "secret.json").write_text("secret")
    token = bundle_dir / "tokenizer.json"
    token.rename(bundle_dir / "real.json")
    token.symlink_to("real.json")
    read_manifest(bundle_dir)
    token.unlink()
    token.symlink_to("../secret.json")
    with pytest.raises(BundleError, match="leaves the bundle through a symbolic link"):
        open_bundle(bundle_dir, device="cpu")


def test_a_linked_directory_that_leaves_is_refused(bundle_dir):
    (bundle_dir / "graphs").rename(bundle_dir.parent / "elsewhere")
    (bundle_dir / "graphs").symlink_to("../elsewhere")
    with pytest.raises(BundleError, match="leaves the bundle through a symbolic link"):
        open_bundle(bundle_dir, device="cpu")


def test_a_loop_of_links_is_refused(bundle_dir):
    (bundle_dir / "tokenizer.json").unlink()
    (bundle_dir / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        open_bundle(bundle_dir, device="cpu")


def test_the_bundle_itself_may_be_reached_by_a_link(bundle_dir):
    link = bundle_dir.parent / "link"
    link.symlink_to(bundle_dir)
    with open_bundle(link, device="cpu", threads=1) as bundle:
        assert bundle.run("project", x=np.ones((1, 4), np.float32))["y"].shape == (1, 4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("location", ["../../outside.bin", "link.bin", "/etc/hostname"])
def test_weights_outside_the_bundle_are_not_read(bundle_dir, relist, tiny, engine, location):
    """The graph, too, can name files: the backends themselves must refuse what leaves its folder."""
    pytest.importorskip(engine)
    outside = bundle_dir.parent / "outside.bin"
    outside.write_bytes(bytes(1024))
    (bundle_dir / "graphs" / "link.bin").symlink_to(outside)
    relist("graphs/project.onnx", tiny.projection(False, location))
    with (
        open_bundle(bundle_dir, device="cpu", engine=engine) as bundle,
        pytest.raises(EngineError, match=r"cannot load .*project\.onnx"),
    ):
        bundle.run("project", x=np.ones((1, 4), np.float32))


@given(text=st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "", "b/c"])).map("/".join))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_no_path_leads_out(tmp_path, text):
    try:
        found = path_inside(tmp_path, text)
    except BundleError:
        return
    assert tmp_path.resolve() in found.parents


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    key=st.sampled_from(["format", "version", "files", "graphs", ("files", 0), ("graphs", 0), ("graphs", 0, "inputs")]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_any_json_anywhere_is_read_or_refused(bundle_dir, value, key):
    path = bundle_dir / "bundle.json"
    original = path.read_text()
    manifest = json.loads(original)
    target, *steps = [key] if isinstance(key, str) else key
    place, last = manifest, target
    for step in steps:
        place = place[last]
        last = next(iter(place)) if step == 0 else step
    place[last] = value
    path.write_text(json.dumps(manifest))
    try:
        read_manifest(bundle_dir)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017
    finally:
        path.write_text(original)
