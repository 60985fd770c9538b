"""Shared by all tests: the root, an isolated home folder, TensorRT-RTX, and the rule for the marker `gpu`."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Exports and caches of the tests never touch the user's own."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("STYLECLIP_RT_HOME")
    os.environ["STYLECLIP_RT_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["STYLECLIP_RT_HOME"]
    else:
        os.environ["STYLECLIP_RT_HOME"] = before


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A block in which the files of a pack in the making go to a full disk: the error is the system's own.

    What the pack takes over is copied as ever, so that the disk is full half-way through.
    """
    full, genuine = Path("/dev/full"), Path.open
    if not full.exists():
        pytest.skip("this system has no /dev/full")

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        making = self.parent.name == "new" and self.parent.parent.name.startswith(".")
        return genuine(full if making and "w" in mode else self, mode, *arguments, **options)

    @contextmanager
    def block() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "open", opened)
            yield

    return block


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """Every file that git tracks, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    return [Path(name) for name in listed.stdout.split("\0") if name and (root / name).exists()]


@pytest.fixture(scope="session")
def kernels_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which the kernels of this machine are built, with its compiler; tests must not change it.

    Where the machine is not one for kernels, or has no compiler, the test is skipped and says so.
    """
    from styleclip_rt.engines import kernels, ort_kernels

    reason = kernels.unsupported() or ("" if kernels.compiler() else "no C++ compiler on this machine")
    if reason:
        pytest.skip(f"no kernels: {reason}")
    pytest.importorskip("onnxruntime", reason="the kernels are operators of ONNX Runtime")
    home = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STYLECLIP_RT_HOME", str(home))
        ort_kernels.build_kernels(lambda text: None)
    return home


@pytest.fixture
def with_kernels(kernels_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's home is one in which the kernels are built."""
    monkeypatch.setenv("STYLECLIP_RT_HOME", str(kernels_home))
    return kernels_home


@pytest.fixture(scope="session")
def rtx() -> Any:
    """TensorRT-RTX, found as the engines find it: it builds without a driver, TensorRT itself does not.

    Where the extra `dev` brings it, a library that is missing or cannot be imported is an error and not a skip.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("the extra dev brings TensorRT-RTX on linux x86_64 alone")
    from styleclip_rt.engines import nvinfer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvinfer, "MODULES", tuple(name for name in nvinfer.MODULES if "rtx" in name))
        nvinfer.library.cache_clear()
        library = nvinfer.library()
    nvinfer.library.cache_clear()
    assert nvinfer.is_rtx(library)
    return library


@pytest.fixture(scope="session")
def build_with_rtx(rtx: Any) -> Callable[[Mapping[str, bytes]], dict[str, int]]:
    """A function of {name: ONNX bytes} that builds each with TensorRT-RTX and gives {name: bytes of its smaller plan}.

    Once with the free batch, in a profile for any, and once with the batch fixed in the graph. Graphs that differ in
    names and weights alone, as those of two mappers, are built once in a session.
    """
    onnx = pytest.importorskip("onnx", reason="the batch is fixed with onnx, from the extra 'torch'")
    from styleclip_rt.engines.build import BuildOptions, plan_from_onnx

    weights = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    built: dict[tuple[Any, ...], int] = {}

    def structure(graph: Any) -> tuple[Any, ...]:
        order: dict[str, int] = {}

        def values(names: Iterable[str]) -> tuple[int, ...]:
            return tuple(order.setdefault(name, len(order)) for name in names)

        ports = tuple(port.type.SerializeToString() for port in (*graph.input, *graph.output))
        tensors = tuple(  # whole numbers are shapes and axes
            (t.data_type, *t.dims, b"" if t.data_type in weights else onnx.numpy_helper.to_array(t).tobytes())
            for t in graph.initializer
        )
        named = values(value.name for value in (*graph.input, *graph.initializer))
        nodes = tuple(
            (node.op_type, *(a.SerializeToString() for a in node.attribute), values(node.input), values(node.output))
            for node in graph.node
        )
        return named, ports, tensors, nodes, values(port.name for port in graph.output)

    def build(models: Mapping[str, bytes]) -> dict[str, int]:
        sizes = {}
        for name, data in models.items():
            model = onnx.load_from_string(data)
            key = structure(model.graph)
            if key not in built:
                free = [d for port in model.graph.input for d in port.type.tensor_type.shape.dim if d.dim_param]
                assert {d.dim_param for d in free} == {"N"}, name
                infos = (*model.graph.input, *model.graph.output, *model.graph.value_info)
                for dim in (dim for info in infos for dim in info.type.tensor_type.shape.dim if dim.dim_param == "N"):
                    dim.dim_value = 1
                both = (data, model.SerializeToString())
                built[key] = min(len(plan_from_onnx(rtx, each, BuildOptions((), max_batch=4))[0]) for each in both)
            sizes[name] = built[key]
        return sizes

    return build


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where no CUDA driver loads, and say so; several workers take the slow files first."""
    if hasattr(config, "workerinput"):  # set by pytest-xdist
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)
    if sys.platform == "win32" or _has_cuda_driver():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA driver (libcuda.so.1) on this machine"))


def _has_cuda_driver() -> bool:
    try:
        return ctypes.CDLL("libcuda.so.1").cuInit(0) == 0
    except OSError:
        return False
