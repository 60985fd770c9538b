"""AOTInductor packages: the export's graph, an authenticated cache, an engine that keeps the contract, and C++."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="AOTInductor needs the extra 'torch'")
pytest.importorskip("onnxscript", reason="the graph that is compared needs the extra 'torch'")

from click.testing import CliRunner  # noqa: E402

from styleclip_rt.benchmarks import aoti  # noqa: E402
from styleclip_rt.benchmarks.aoti import AotiEngine, Replay, export_graph, fixed_spec, package_key  # noqa: E402
from styleclip_rt.benchmarks.network import Network, NetworkSpec, load_network, make_inputs  # noqa: E402
from styleclip_rt.benchmarks.prepare import prepare  # noqa: E402
from styleclip_rt.benchmarks.subjects import SubjectSpec, make_subject  # noqa: E402
from styleclip_rt.benchmarks.workload import FEEDS, TYPED, Workload  # noqa: E402
from styleclip_rt.engines.errors import BundleError, EngineError, EngineUnavailable, InputError  # noqa: E402
from styleclip_rt.engines.ort import OrtEngine  # noqa: E402
from styleclip_rt.engines.plan_cache import PlanCache  # noqa: E402
from styleclip_rt.engines.spec import GraphSpec, TensorSpec  # noqa: E402
from styleclip_rt.export.recipe import Recipe, save  # noqa: E402
from styleclip_rt.export.weights import WeightFile  # noqa: E402

SPEC = NetworkSpec(size=32, width="sixteenth")
BATCH = 2
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="AOTInductor and the C++ program need g++")
PORTS = (TensorSpec("x", "float32", (1, 4)),)


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(SPEC)


@pytest.fixture(scope="module")
def feeds(network: Network) -> dict[str, np.ndarray]:
    return make_inputs(network, BATCH, seed=5)


@pytest.fixture(scope="module")
def engines(network: Network, feeds: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function of a graph's name: (ONNX Runtime on the exported file, the package's engine, its package)."""
    folder, made = tmp_path_factory.mktemp("graphs"), {}

    def make(name: str) -> tuple[OrtEngine, AotiEngine, bytes]:
        if name not in made:
            graph = export_graph(network, name)
            inputs = tuple(torch.from_numpy(feeds[port.name]) for port in graph.inputs)
            package = aoti.package_of(graph.module, inputs)
            with closing(WeightFile(folder / f"{name}.bin")) as weights:
                recipe = Recipe(network, weights, slider=False)  # type: ignore[arg-type]  # all that it reads is there
                factory = recipe.factory
                parts = {part.name: part for part in (factory.style(), factory.synthesize(), factory.direction())}
                save(recipe.maker.model(getattr(factory, name)(), parts), folder / f"{name}.onnx")
            ours = AotiEngine(package, fixed_spec(graph, BATCH))
            made[name] = OrtEngine(folder / f"{name}.onnx", threads=1), ours, package
        return made[name]

    return make


def exported(module: Any, *inputs: Any) -> Any:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs)


# The key and the cache ------------------------------------------------------------------------------------------------


def test_a_key_is_another_for_all_that_code_depends_on() -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(4, 4), torch.zeros(1, 4)
    program = exported(linear, x)
    same = package_key(exported(linear, x), (x,))
    assert same == package_key(program, (x,))
    assert json.loads(json.dumps(same)) == same, "a key is JSON"
    with torch.no_grad():
        linear.weight[0, 0] += 1
    wide = torch.zeros(2, 4)
    others = [
        package_key(exported(linear, x), (x,)),
        package_key(exported(torch.nn.Sequential(linear, torch.nn.ReLU()), x), (x,)),
        package_key(exported(linear, wide), (wide,)),
        package_key(program, (x,), max_autotune=True),
    ]
    texts = {json.dumps(key, sort_keys=True) for key in (same, *others)}
    assert len(texts) == 5
    assert torch.__version__ in texts.pop()


def test_packages_are_compiled_once_and_a_changed_file_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(aoti, "compile_package", lambda program, tuned: compiled.append(tuned) or b"package")
    cache, module, x = PlanCache(tmp_path / "plans"), torch.nn.Linear(4, 4), (torch.zeros(1, 4),)
    assert [aoti.package_of(module, x, cache) for _ in range(2)] == [b"package"] * 2
    assert len(compiled) == 1
    (file,) = (tmp_path / "plans").glob("*.plan")
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert aoti.package_of(module, x, cache) == b"package", "bytes that somebody else wrote are never given back"
    assert len(compiled) == 2


def test_a_compiler_that_fails_is_one_line_and_leaves_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object, **named: object) -> str:
        raise RuntimeError("no C++ compiler\nmore lines")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    cache = PlanCache(tmp_path / "plans")
    with pytest.raises(EngineError, match=r"cannot compile the graph: no C\+\+ compiler$"):
        aoti.package_of(torch.nn.Linear(2, 2), (torch.zeros(1, 2),), cache)
    assert list((tmp_path / "plans").glob("*.plan")) == []


# The engine -----------------------------------------------------------------------------------------------------------


def test_a_damaged_package_is_an_error() -> None:
    with pytest.raises(EngineError, match="cannot load the package of 'linear'"):
        AotiEngine(b"not a package", GraphSpec("linear", PORTS, PORTS))


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EngineUnavailable, match="use device='cpu'"):
        AotiEngine(b"", GraphSpec("none", (), ()), device="cuda")


class SlowDoubling:
    """A recorded graph on the CPU: reads its input buffer, waits, writes its output buffer."""

    def __init__(self, source: Any, target: Any) -> None:
        self.source, self.target, self.inside, self.most = source, target, 0, 0

    def replay(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.005)
        self.target.copy_(self.source * 2)
        self.inside -= 1


def test_threads_that_share_recorded_buffers_each_get_their_own_result(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def replayed(package: bytes, inputs: Any) -> Replay:
        out = torch.zeros(1, 4)
        graphs.append(SlowDoubling(inputs[0], out))
        return Replay(graphs[0], inputs, out)

    monkeypatch.setattr(aoti, "load_package", replayed)
    with AotiEngine(b"", GraphSpec("doubling", PORTS, (TensorSpec("y", "float32", (1, 4)),))) as engine:
        start = threading.Barrier(6)

        def run(value: int) -> list[np.ndarray]:
            start.wait(20)
            return [engine.run({"x": np.full((1, 4), value, np.float32)})["y"] for _ in range(8)]

        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(run, range(6)))
    for value, found in enumerate(results):
        np.testing.assert_array_equal(np.concatenate(found), np.full((8, 4), 2 * value, np.float32))
    assert graphs[0].most == 1


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["synthesize", "synthesize_u8", "edit_global"])
def test_a_package_agrees_with_the_exported_onnx_file(engines: Any, feeds: dict[str, np.ndarray], name: str) -> None:
    reference, ours, _ = engines(name)
    given = {port.name: feeds[port.name] for port in ours.spec.inputs}
    (out,) = (port.name for port in ours.spec.outputs)
    wanted, found = reference.run(given)[out], ours.run(given)[out]
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert wanted.std() > 0.05
    if out == "image_u8":
        assert np.abs(found.astype(int) - wanted).max() <= 1
        return
    assert np.abs(found - wanted).max() <= 1e-4


@pytest.mark.slow
@needs_compiler
def test_a_package_keeps_the_engine_contract(engines: Any, feeds: dict[str, np.ndarray]) -> None:
    """Checked feeds, fresh outputs, several threads, and nothing after it is closed."""
    _, _, package = engines("synthesize")
    spec = engines("synthesize")[1].spec
    s = feeds["s"]
    with AotiEngine(package, spec) as engine:
        first = engine.run({"s": s})["image"]
        kept = first.copy()
        other = engine.run({"s": s[::-1].copy()})["image"]
        np.testing.assert_array_equal(first, kept, "a later run does not touch an output")
        with ThreadPoolExecutor(4) as pool:
            runs = pool.map(lambda i: engine.run({"s": s if i % 2 else s[::-1].copy()})["image"], range(12))
            for i, image in enumerate(runs):
                np.testing.assert_array_equal(image, kept if i % 2 else other)
        with pytest.raises(InputError, match="'s'"):
            engine.run({"s": s[:1]})
    with pytest.raises(EngineError, match="closed"):
        engine.run({"s": s})


# The bench ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_compiler
def test_the_bench_s_subject_takes_the_same_package_and_draws_the_reference(
    engines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines("edit_global")
    monkeypatch.setattr(aoti, "compile_package", lambda *_: pytest.fail("the package is in the cache"))
    workload = prepare(tmp_path / "work", SPEC, BATCH)
    subject = make_subject(SubjectSpec("AOTInductor", "aoti", "edit", technique=("folded",)), workload)
    subject.feed(BATCH)
    wanted = workload.expected("edit")
    assert wanted is not None
    assert np.abs(subject.picture().astype(int) - wanted).max() <= 1


def test_the_float16_form_is_read_from_the_workload(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "typed.json"
    names = [layer.name for layer in network.generator.style_layers]
    file.write_text(json.dumps({"islands": names[2:], "scales": {"const": 2.0}}))
    typed = export_graph(network, "synthesize_u8", "fp16", file).module.generator.typed
    assert typed.islands == frozenset(names[2:])
    assert typed.scale("const") == 2.0
    file.write_text("{}")
    with pytest.raises(BundleError, match="is damaged"):
        export_graph(network, "synthesize_u8", "fp16", file)


@pytest.mark.slow
def test_prepare_writes_the_float16_form(tmp_path: Path) -> None:
    workload: Workload = prepare(tmp_path / "work", SPEC, BATCH, ("fp32", "fp16"))
    assert not workload.notes
    record = json.loads((workload.path / TYPED).read_text())
    assert set(record) == {"islands", "scales"}
    graph = export_graph(load_network(SPEC), "synthesize_u8", "fp16", workload.path / TYPED)
    (s,) = (torch.from_numpy(workload.feeds("synthesize", 1)[name]) for name in FEEDS["synthesize"])
    wanted = OrtEngine(workload.file("fp16:synthesize_u8"), threads=1).run({"s": s.numpy()})["image_u8"]
    with torch.no_grad():
        found = graph.module(s).numpy()
    assert np.abs(found.astype(int) - wanted).max() <= 3, "the same types in the same places"


# C++ ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program, built with the command of docs/engines.md."""
    if COMPILER is None:
        pytest.skip("the C++ program needs g++")
    text = (root / "docs/engines.md").read_text(encoding="utf-8")
    command = text.split("<!-- no-run: needs a C++ compiler -->\n```bash\n")[1].split("```")[0]
    folder = tmp_path_factory.mktemp("program")
    lines = command.replace("\\\n", " ").splitlines()
    torch_folder = str(Path(torch.__file__).parent)
    build = next(line for line in lines if line.startswith("g++")).replace("$TORCH", torch_folder)
    done = subprocess.run(
        shlex.split(build.replace("-o aoti_run", f"-o {folder / 'aoti_run'}")),
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "aoti_run"


@pytest.mark.slow
@needs_compiler
def test_a_c_plus_plus_program_draws_the_same_picture(
    program: Path, engines: Any, feeds: dict[str, np.ndarray], tmp_path: Path
) -> None:
    _, ours, package = engines("synthesize")
    (tmp_path / "synthesize.pt2").write_bytes(package)
    feeds["s"].astype("<f4").tofile(tmp_path / "s.f32")
    shape = ",".join(map(str, feeds["s"].shape))

    def run(*arguments: str) -> Any:
        return subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = run("synthesize.pt2", "image.raw", "cpu", f"s.f32:{shape}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"float [{BATCH}, 3, 32, 32]\n"
    found = np.fromfile(tmp_path / "image.raw", "<f4").reshape(BATCH, 3, 32, 32)
    np.testing.assert_allclose(found, ours.run({"s": feeds["s"]})["image"], atol=1e-6)
    for arguments, code, message in (
        (("synthesize.pt2",), 2, "usage: aoti_run"),
        (("synthesize.pt2", "b.raw", "cpu", "s.f32"), 2, "has no shape"),
        (("synthesize.pt2", "b.raw", "cpu", "s.f32:1,x"), 2, "is no list of whole numbers"),
        (("synthesize.pt2", "b.raw", "cpu", "s.f32:1,7"), 2, "does not have 28 bytes"),
        (("absent.pt2", "b.raw", "cpu", f"s.f32:{shape}"), 1, "error: "),
    ):
        refused = run(*arguments)
        assert refused.returncode == code, refused.stderr
        assert message in refused.stderr
    assert not (tmp_path / "b.raw").exists()


@pytest.mark.slow
@needs_compiler
def test_the_command_writes_a_package_that_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aoti, "compile_package", lambda program, tuned: b"package")
    monkeypatch.setattr(aoti, "PlanCache", lambda: PlanCache(tmp_path / "plans"))
    done = CliRunner().invoke(aoti.main, ["--out", str(tmp_path / "a.pt2"), "--batch", "3"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.pt2").read_bytes() == b"package"
    assert "synthesize: s float32 [3, " in done.stdout
    assert "-> image float32 [3, 3, 64, 64]" in done.stdout
    refused = CliRunner().invoke(aoti.main, ["--out", str(tmp_path / "none" / "a.pt2")])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt2", "plans"]
