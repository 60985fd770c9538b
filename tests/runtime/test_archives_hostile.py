"""Pickles that try to run code, in each place of each container, are refused and run nothing."""

from __future__ import annotations

import contextlib
import pickle

import pytest

from styleclip_rt.runtime.archives import read_source

from .pickles import GOOD, PLACES, called, code, refused, short_bytes, stack_called, text, touch

FUNCTION = b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n"
NAMESPACE = b"cargparse\nNamespace\n"
OBJECT = b"cbuiltins\nobject\n"
RECONSTRUCT = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n"
PERSISTENT = ("torch_utils.persistence", "_reconstruct_persistent_obj")

# Each leaves the marker if anything of it is run; those of LIVE do so in Python's own unpickler.
LIVE = {
    "os.system": lambda m: called("os", "system", touch(m)),
    "posix.system": lambda m: called("posix", "system", touch(m)),
    "builtins.exec": lambda m: called("builtins", "exec", code(m)),
    "builtins.eval": lambda m: called("builtins", "eval", code(m)),
    "python 2 name": lambda m: b"c__builtin__\nexec\n(" + code(m) + b"tR.",
    "stack global": lambda m: stack_called("builtins", "exec", code(m)),
    "dotted name": lambda m: (
        stack_called("pickle", "sys.modules.__class__", b"")[:-3] + b"0" + called("os", "system", touch(m))[2:]
    ),
    "inst": lambda m: b"(" + text(f"touch {m}") + b"ios\nsystem\n.",
    "obj": lambda m: b"(cos\nsystem\n" + text(f"touch {m}") + b"o.",
    "subprocess.call": lambda m: called("subprocess", "call", b"]" + text("touch") + b"a" + text(str(m)) + b"a"),
    "inside a list": lambda m: b"\x80\x04](" + called("os", "system", touch(m))[2:-1] + b"e.",
    "as a key": lambda m: b"\x80\x04}(" + called("os", "system", touch(m))[2:-1] + b"K\x01u.",
    "in the memo": lambda m: called("os", "system", touch(m))[:-1] + b"\x940h\x00.",
    "thrown away": lambda m: called("os", "system", touch(m))[:-1] + b"0N.",
    "after a good value": lambda m: b"\x80\x04}" + called("os", "system", touch(m))[2:-1] + b"0.",
    "nested pickle": lambda m: called("_pickle", "loads", short_bytes(called("os", "system", touch(m)))),
    "apply": lambda m: called("functools", "partial", b"cbuiltins\nexec\n", code(m))[:-1] + b")R.",
    "state of a dict": lambda m: b"\x80\x04}" + b"cos\nsystem\n" + b"(" + touch(m) + b"tR}b.",
    "getattr": lambda m: b"\x80\x04cbuiltins\ngetattr\n(cos\nsystem\n" + text("__call__") + b"tR(" + touch(m) + b"tR.",
    "attrgetter": lambda m: (
        called("operator", "attrgetter", text("system"))[:-1]
        + b"(cos\n__dict__\n0"
        + b"cbuiltins\n__import__\n("
        + text("os")
        + b"tRtR("
        + touch(m)
        + b"tR."
    ),
    "reconstructor": lambda m: (
        called("copyreg", "_reconstructor", OBJECT, OBJECT, b"N")[:-1] + b"0" + called("os", "system", touch(m))[2:]
    ),
}
DEAD = {
    "newobj": lambda m: b"\x80\x04cos\nsystem\n(" + touch(m) + b"t\x81.",
    "newobj_ex": lambda m: b"\x80\x04csubprocess\nPopen\n(]" + text("touch") + b"a" + text(str(m)) + b"at}\x92.",
    "newobj_ex with names": lambda m: b"\x80\x04cargparse\nNamespace\n)}" + text("x") + code(m) + b"s\x92.",
    "build on a function": lambda m: FUNCTION + b"}" + text("__code__") + code(m) + b"sb.",
    "build with slots": lambda m: FUNCTION + b"N}" + text("__code__") + code(m) + b"s\x86b.",
    "build on a class": lambda m: b"\x80\x04ccollections\nOrderedDict\n}" + text("__reduce__") + b"K\x01sb.",
    "build on a number": lambda m: b"\x80\x04K\x01}b.",
    "build on a list": lambda m: b"\x80\x04]}" + text("__class__") + b"K\x01sb.",
    "call of a string": lambda m: b"\x80\x04" + code(m) + b")R.",
    "call of an object": lambda m: b"\x80\x04cargparse\nNamespace\n)\x81)R.",
    "arguments that are no tuple": lambda m: b"\x80\x04ccollections\nOrderedDict\n]R.",
    "namespace with arguments": lambda m: b"\x80\x04cargparse\nNamespace\n(K\x01tR.",
    "module of torch with arguments": lambda m: called("torch.nn.modules.module", "Module", code(m)),
    "storage class called": lambda m: called("torch", "FloatStorage", b"K\x05"),
    "name that is no string": lambda m: b"\x80\x04K\x01K\x02\x93.",
    "dotted name behind a known one": lambda m: stack_called("argparse", "Namespace.__init__.__globals__", b""),
    "dotted module": lambda m: stack_called("torch._utils.os", "system", touch(m)),
    "known name with a line break": lambda m: stack_called("argparse\nos", "system", touch(m)),
    "extension code 1": lambda m: b"\x80\x02\x82\x01.",
    "extension code 2": lambda m: b"\x80\x02\x83\x01\x00.",
    "extension code 4": lambda m: b"\x80\x02\x84\x01\x00\x00\x00.",
    "out-of-band buffer": lambda m: b"\x80\x05\x97.",
    "persistent text": lambda m: b"Pos.system\n.",
    "persistent string": lambda m: b"\x80\x02" + text("storage") + b"Q.",
    "persistent code": lambda m: b"\x80\x02(" + text("storage") + b"cos\nsystem\n" + 2 * text("0") + b"K\x01tQ.",
    "persistent module": lambda m: b"\x80\x02(" + text("module") + NAMESPACE + text("f") + code(m) + b"tQ.",
    "encode with another codec": lambda m: called("_codecs", "encode", text("x"), text("rot13")),
    "copyreg.add_extension": lambda m: called("copyreg", "add_extension", text("os"), text("system"), b"K\x01"),
    "reconstructor of a function": lambda m: called("copyreg", "_reconstructor", b"cos\nsystem\n", OBJECT, b"N"),
    "reconstructor with a state": lambda m: called(
        "copyreg", "_reconstructor", b"cargparse\nNamespace\n", b"cbuiltins\ndict\n", b"}"
    ),
    "torch.load": lambda m: called("torch", "load", text(str(m))),
    "torch.hub": lambda m: called("torch.hub", "load", text("x")),
    "numpy.load": lambda m: called("numpy", "load", text(str(m))),
    "array of objects": lambda m: (
        RECONSTRUCT
        + b"(cnumpy\nndarray\n(K\x00tC\x01btR(K\x01(K\x01t"
        + called("numpy", "dtype", text("O"), b"K\x00K\x01")[2:-1]
        + b"\x89]("
        + code(m)
        + b"etb."
    ),
    "array of another class": lambda m: RECONSTRUCT + b"(cnumpy\nmatrix\n(K\x00tC\x01btR.",
    "from_type with another function": lambda m: called(
        "torch._tensor", "_rebuild_from_type_v2", b"cargparse\nNamespace\n", b"ctorch\nTensor\n", b")", b"}"
    ),
    "persistent object without a class": lambda m: called(*PERSISTENT, b"}"),
    "nested file in a nested file": lambda m: called(
        "torch.storage", "_load_from_bytes", b"C\x80" + (b"\x80\x02" + GOOD * 10)[:128]
    ),
}


@pytest.mark.parametrize("attack", LIVE)
def test_the_attacks_are_live(tmp_path, attack):
    """Python's own unpickler runs each of these: the tests below do not defend against nothing."""
    with contextlib.suppress(Exception):  # some fail after they ran
        pickle.loads(LIVE[attack](tmp_path / "marker"))  # noqa: S301 - that it runs is the point
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("place", PLACES)
def test_attacks_are_refused_in_every_place(tmp_path, place):
    marker = tmp_path / "marker"
    for name, attack in {**LIVE, **DEAD}.items():
        refused(tmp_path / "x.pt", PLACES[place](attack(marker)))
        assert not marker.exists(), name


@pytest.mark.parametrize("attack", ["os.system", "builtins.exec", "inst", "attrgetter"])
def test_the_message_names_what_was_refused(tmp_path, attack):
    message = refused(tmp_path / "x.pt", LIVE[attack](tmp_path / "m"))
    assert "refused" in message
    assert any(name in message for name in ("os.system", "builtins.exec", "operator.attrgetter"))


def test_source_text_of_nvidia_is_dropped_unread(tmp_path):
    """The text in a persistent object is data: the object is read, the text is neither run nor kept."""
    marker = tmp_path / "marker"
    meta = (
        b"}("
        + text("type")
        + text("class")
        + text("class_name")
        + text("Generator")
        + text("module_src")
        + code(marker)
    )
    meta += text("state") + b"}" + text("z_dim") + b"K\x05s" + b"u"
    (tmp_path / "x.pkl").write_bytes(called("torch_utils.persistence", "_reconstruct_persistent_obj", meta))
    source = read_source(tmp_path / "x.pkl")
    assert (source.kind, source.tree.name, source.tree.state) == ("nvidia", "Generator", {"z_dim": 5})
    assert not marker.exists()
