"""AOTInductor packages: a private cache with telling keys, and an engine that keeps the contract."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="AOTInductor needs the extra 'torch'")

from styleclip_rt.benchmarks.aoti import AotiEngine, build_package, package_file, package_key  # noqa: E402
from styleclip_rt.benchmarks.baseline import FOLDED, Variant  # noqa: E402
from styleclip_rt.benchmarks.network import NetworkSpec, load_network, make_inputs  # noqa: E402
from styleclip_rt.benchmarks.subjects import SubjectSpec  # noqa: E402
from styleclip_rt.benchmarks.torch_subjects import Edit  # noqa: E402
from styleclip_rt.engines.errors import EngineError, EngineUnavailable, InputError  # noqa: E402
from styleclip_rt.engines.spec import GraphSpec, TensorSpec  # noqa: E402

SPEC = SubjectSpec("AOTInductor", "aoti", "edit", technique=("folded",))


def test_a_key_is_another_for_all_that_code_depends_on() -> None:
    keys = {
        package_key("a", SPEC, 1),
        package_key("b", SPEC, 1),
        package_key("a", SPEC, 2),
        package_key("a", SubjectSpec("AOTInductor", "aoti", "synthesize", technique=("folded",)), 1),
        package_key("a", SubjectSpec("AOTInductor", "aoti", "edit", technique=("folded",), precision="fp16"), 1),
    }
    assert len(keys) == 5
    assert torch.__version__ in package_key("a", SPEC, 1)


@pytest.mark.skipif(os.name != "posix", reason="modes of folders are POSIX's")
def test_the_cache_is_this_user_s_alone() -> None:
    folder = package_file("key").parent
    folder.chmod(0o755)
    file = package_file("key")
    assert file.suffix == ".pt2"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert package_file("key") == file
    assert package_file("other") != file


def test_a_compiler_that_fails_leaves_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **named: object) -> str:
        raise RuntimeError("no C++ compiler\nmore lines")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    with pytest.raises(EngineError, match=r"cannot compile package: no C\+\+ compiler$"):
        build_package(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), tmp_path / "package.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_package_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "bad.pt2"
    file.write_bytes(b"not a package")
    ports = (TensorSpec("x", "float32", (1, 2)),)
    with pytest.raises(EngineError, match="cannot load"):
        AotiEngine(file, GraphSpec("linear", ports, ports))


def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EngineUnavailable, match="use device='cpu'"):
        AotiEngine(tmp_path / "none.pt2", GraphSpec("none", (), ()), device="cuda")


@pytest.mark.slow
def test_a_package_is_an_engine_that_draws_the_same_picture(tmp_path: Path) -> None:
    """Built, loaded, checked feeds, fresh outputs, and equal to PyTorch within a level."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("AOTInductor needs a C++ compiler")
    network = load_network(NetworkSpec(size=64, width="sixteenth"))
    feeds = make_inputs(network, 2, seed=5)
    names = ("w", "delta_t", "alpha", "beta")
    inputs = tuple(torch.from_numpy(feeds[name]) for name in names)
    module = Edit(Variant(network.generator, FOLDED), network.directions, network.sigma).eval()
    with torch.no_grad():
        expected = module(*inputs).numpy()
    file = build_package(module, inputs, tmp_path / "edit.pt2")
    before = file.stat().st_mtime_ns
    assert build_package(module, inputs, file).stat().st_mtime_ns == before, "a package that is there is kept"
    ports = tuple(TensorSpec(name, "float32", feeds[name].shape) for name in names)
    spec = GraphSpec("edit_global", ports, (TensorSpec("image_u8", "uint8", (2, 64, 64, 3)),))
    with AotiEngine(file, spec) as engine:
        given = {name: feeds[name] for name in names}
        first = engine.run(given)["image_u8"]
        assert np.abs(first.astype(int) - expected.astype(int)).max() <= 1
        kept = first.copy()
        engine.run(given | {"alpha": np.zeros(2, np.float32)})
        assert (first == kept).all(), "a later run does not touch an output"
        with pytest.raises(InputError, match="alpha"):
            engine.run(given | {"alpha": np.zeros(3, np.float32)})
    with pytest.raises(EngineError, match="closed"):
        engine.run(given)
