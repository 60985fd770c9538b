"""Every container is read to the values that were written, as views of the file, and without torch being imported."""

from __future__ import annotations

import argparse
import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from styleclip_rt.engines.errors import PackError
from styleclip_rt.runtime.archives import Limits, Opaque, flat_arrays, read_source

torch = pytest.importorskip("torch", reason="the files of this test are written by the extra 'torch'")


def state():
    """Tensors of all kinds that checkpoints hold: types, views, strides, none and no dimensions."""
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return OrderedDict(
        float=torch.randn(3, 4),
        half=torch.randn(5).half(),
        bfloat=torch.randn(2, 6).bfloat16(),
        double=torch.randn(2).double(),
        long=torch.arange(4),
        bytes=torch.arange(7, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
        transposed=base.t(),
        part=base[1:3, 2:5],
        number=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )


def expected(tensor):
    tensor = tensor.detach()
    return tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def assert_same(arrays, tensors):
    assert arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        want = expected(tensor)
        assert arrays[name].dtype == want.dtype, name
        assert np.array_equal(arrays[name], want), name
        assert not arrays[name].flags.writeable, name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older stream"])
def test_torch(tmp_path, zipped):
    tensors = state()
    tree = {
        "g_ema": tensors,
        "opts": argparse.Namespace(size=1024, path="x", rates=[0.5, None]),
        "list": [torch.ones(2), (1, "two")],
        "set": {3},
        "numpy": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.float64(2.5),
        "size": torch.Size([1, 2]),
    }
    torch.save(tree, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    source = read_source(tmp_path / "x.pt")
    assert source.kind == "torch"
    assert source.bytes == (tmp_path / "x.pt").stat().st_size
    assert_same(flat_arrays(source.child("g_ema")), tensors)
    assert source.child("opts") == Opaque("argparse.Namespace", {"size": 1024, "path": "x", "rates": [0.5, None]})
    assert source.child("opts", "size") == 1024
    assert source.has("opts", "size")
    assert not source.has("opts", "width")
    assert source.tree["list"][1] == (1, "two")
    assert source.tree["set"] == (3,)
    assert source.tree["scalar"] == 2.5
    assert source.tree["size"] == (1, 2)
    assert np.array_equal(source.tree["numpy"], np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older stream"])
def test_arrays_are_views_of_the_file(tmp_path, zipped):
    """40 MB are read without 40 MB: what changes in the file afterwards is seen in the array."""
    path, before = tmp_path / "x.pt", np.float32(12345.5)
    tensor = torch.zeros(10_000_000)
    tensor[7] = float(before)
    torch.save({"w": tensor}, path, _use_new_zipfile_serialization=zipped)
    array = read_source(path, Limits(copied_bytes=100_000)).tree["w"]
    assert array[7] == before
    with path.open("r+b") as stream:
        stream.seek(path.read_bytes().index(before.tobytes()))
        stream.write(np.float32(54321.5).tobytes())
    assert array[7] == 54321.5


def test_shared_storages_stay_shared(tmp_path):
    base = torch.arange(10.0)
    torch.save([base, base[2:5], base.expand(1, 10)], tmp_path / "x.pt")
    first, part, row = read_source(tmp_path / "x.pt").tree
    assert np.shares_memory(first, part)
    assert np.shares_memory(first, row)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(tmp_path, protocol):
    """StyleCLIP's `S` and `S_mean_std`: lists of names and arrays; tensors in plain pickles as NVIDIA's have them."""
    names, arrays = ["conv", "é☂\n"], [np.arange(5.0), np.asfortranarray(np.ones((2, 3), "f4")), np.zeros((0, 2))]
    tree = [names, arrays, np.float32(3), {"t": torch.arange(3.0)}, -(2**70), 1.5, None, True, b"bytes\xff"]
    (tmp_path / "S").write_bytes(pickle.dumps(tree, protocol=protocol))
    source = read_source(tmp_path / "S")
    assert source.kind == "pickle"
    assert source.tree[0] == names
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(source.tree[1], arrays, strict=True))
    assert source.tree[2] == 3
    assert np.array_equal(source.tree[3]["t"], [0, 1, 2])
    assert source.tree[4:] == tree[4:]


def test_pickles_of_python_2(tmp_path):
    """Strings of bytes, and arrays whose data are such strings."""
    data = np.arange(3, dtype="<f4")
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = b"U" + bytes([data.nbytes]) + data.tobytes()
    (tmp_path / "x").write_bytes(head + b"(K\x01K\x03\x85" + kind + b"\x89" + raw + b"tb.")
    assert np.array_equal(read_source(tmp_path / "x").tree, data)


class Module(torch.nn.Module):
    """Parts, parameters, buffers and plain attributes."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.parts = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(2))
        self.resolution = 224

    def forward(self, x: torch.Tensor):
        return self.conv(x) * float(self.resolution)


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript(tmp_path, how):
    """As OpenAI's CLIP files: the tree of modules is read by attribute; no code is."""
    module = Module().half().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "script":
            script = torch.jit.script(module)
        else:
            script = torch.jit.trace(module.float(), torch.zeros(1, 3, 8, 8))
        torch.jit.save(script, tmp_path / "x.pt")
    source = read_source(tmp_path / "x.pt")
    assert source.kind == "torchscript"
    assert isinstance(source.tree, Opaque)
    assert_same(flat_arrays(source.tree), dict(module.state_dict()))
    if how == "script":
        assert source.child("resolution") == 224


def test_a_whole_module_of_torch(tmp_path):
    """`torch.save(module)`: classes of torch.nn become names with their state."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.PReLU())
    torch.save(module, tmp_path / "x.pt")
    source = read_source(tmp_path / "x.pt")
    assert source.tree.name == "torch.nn.modules.container.Sequential"
    assert_same(flat_arrays(source.tree), dict(module.state_dict()))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="comes with the extra 'torch'")
    tensors = {name: tensor.detach().contiguous() for name, tensor in state().items()}
    safetensors.save_file(tensors, tmp_path / "x", metadata={"made": "here"})
    source = read_source(tmp_path / "x")
    assert source.kind == "safetensors"
    assert source.metadata == {"made": "here"}
    assert_same(source.tree, tensors)


@pytest.mark.parametrize(
    "array",
    [np.random.default_rng(0).random((3, 4)), np.asfortranarray(np.ones((2, 5), "f4")), np.float32(2), np.zeros((0, 3)),
     np.arange(4, dtype=">i4"), np.array([True, False]), np.arange(5)],
    ids=["2-D", "Fortran order", "scalar", "empty", "big-endian", "bool", "1-D"],
)  # fmt: skip
def test_npy(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    source = read_source(tmp_path / "x.npy")
    assert source.kind == "npy"
    assert source.tree.dtype == np.asarray(array).dtype
    assert np.array_equal(source.tree, array)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed], ids=["stored", "deflated"])
def test_npz(tmp_path, write):
    write(tmp_path / "x.npz", a=np.ones((2, 3)), b=np.float32(2))
    source = read_source(tmp_path / "x.npz")
    assert source.kind == "npz"
    assert source.tree.keys() == {"a", "b"}
    assert np.array_equal(source.tree["a"], np.ones((2, 3)))
    assert source.tree["b"] == 2


def rewritten(path, change):
    """The zip archive with each part passed through `change(name, bytes)`; None drops it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: change(name, archive.read(name)) for name in archive.namelist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, data in parts.items():
            if data is not None:
                with archive.open(name, "w", force_zip64=True) as part:
                    part.write(data)
    path.write_bytes(out.getvalue())


def test_byte_order_of_the_archive_is_honoured(tmp_path):
    tensors = {"f": torch.randn(5), "b": torch.randn(4).bfloat16(), "l": torch.arange(3)}
    torch.save(tensors, tmp_path / "x.pt")
    sizes = {"0": 4, "1": 2, "2": 8}

    def swap(name, data):
        key = name.split("/")[-1]
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, f"u{sizes[key]}").byteswap().tobytes() if "/data/" in name else data

    rewritten(tmp_path / "x.pt", swap)
    assert_same(read_source(tmp_path / "x.pt").tree, tensors)


def test_zip64_and_other_root_folders(tmp_path):
    torch.save({"x": torch.arange(6.0)}, tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", lambda name, data: data)
    assert np.array_equal(read_source(tmp_path / "x.pt").tree["x"], np.arange(6))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "has 0 bytes"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n\n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x1f\x8b" + b"x" * 20, "gzip"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar archive.*save it again"),
        (b"GIF89a" + b"x" * 30, "none of the known kinds"),
    ],
    ids=["empty", "html", "html later", "lfs", "gzip", "tar", "other"],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, reason):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(PackError, match=rf"x\.pt: .*{reason}"):
        read_source(tmp_path / "x.pt")


def test_folders_missing_files_and_large_ones(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PackError, match=str(path)):
            read_source(path)
    (tmp_path / "x").write_bytes(b"12345")
    with pytest.raises(PackError, match="5 bytes; expected 1 to 4"):
        read_source(tmp_path / "x", Limits(file_bytes=4))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            "not read",
        ),
        (lambda: torch.ones(3, dtype=torch.complex64), "Complex.*dense tensors"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj(), "Complex.*dense tensors"),
        (lambda: torch.zeros(1).expand(1000), "does not fit its storage"),
        (lambda: torch.zeros(3, device="meta"), "not read .meta"),
    ],
    ids=["sparse", "quantised", "complex", "conjugated", "expanded", "meta"],
)
def test_tensors_that_are_not_read_are_named(tmp_path, tensor, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"x": tensor()}, tmp_path / "x.pt")
    with pytest.raises(PackError, match=reason):
        read_source(tmp_path / "x.pt")


def test_child_says_what_there_is(tmp_path):
    torch.save({"g": {}, "d": {}}, tmp_path / "x.pt")
    with pytest.raises(PackError, match=r"x\.pt has no 'g_ema'; it holds g, d"):
        read_source(tmp_path / "x.pt").child("g_ema")


def test_two_tensors_of_one_name_are_refused():
    with pytest.raises(PackError, match=r"two tensors are called 'a\.b'"):
        flat_arrays({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)})


def test_reading_needs_no_torch(tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pt")
    code = "import sys; from styleclip_rt.runtime.archives import read_source as r; "
    code += "print(r(sys.argv[1]).tree['x'].sum()); "
    code += "print(sorted({'torch', 'pickle', 'safetensors'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.pt")], capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines()[0] == "2.0", result.stderr
    assert "torch" not in result.stdout.splitlines()[1]
