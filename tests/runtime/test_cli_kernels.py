"""`styleclip-rt kernels`, and what another command says that builds them at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from styleclip_rt.engines import kernels, ort_kernels
from styleclip_rt.engines.errors import EngineError, MissingDependency
from styleclip_rt.runtime.cli import cli
from styleclip_rt.runtime.cli_kernels import make_beside

LIBRARY = kernels.Library(kernels.Made("c++ (c++ 12.2)", "1.31.1"), b"library", Path("/home/me/x.plan"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["kernels", *arguments])


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch):
    """Says how the next build ends: an error, or whether it is new; the calls are kept."""

    def ends(end: bool | Exception) -> list[bool]:
        calls: list[bool] = []

        def stand_in(say, rebuild=False):
            calls.append(rebuild)
            if isinstance(end, Exception):
                raise end
            if end:
                say("compiling the kernels with c++, once on this machine")
            return LIBRARY, end

        monkeypatch.setattr(ort_kernels, "build_kernels", stand_in)
        return calls

    return ends


def test_it_says_what_was_built_with_what_and_where(build) -> None:
    calls = build(True)
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout == "kernels: built in 0.0 s, compiled with c++ (c++ 12.2), /home/me/x.plan\n"
    assert result.stderr == "compiling the kernels with c++, once on this machine\n"
    build(False)
    assert run().stdout == "kernels: there, compiled with c++ (c++ 12.2), /home/me/x.plan\n"
    assert calls == [False]


def test_json_is_all_that_stdout_holds(build) -> None:
    calls = build(True)
    record = json.loads(run("--json", "--rebuild").stdout)
    assert record.pop("seconds") >= 0
    assert record == {
        "built": True,
        "path": "/home/me/x.plan",
        "bytes": 7,
        "compiler": "c++ (c++ 12.2)",
        "onnxruntime": "1.31.1",
    }
    assert calls == [True]
    build(False)
    assert json.loads(run("--json").stdout)["seconds"] is None


@pytest.mark.parametrize(
    ("error", "code"), [(MissingDependency("no compiler"), 7), (EngineError("it\nfailed"), EngineError.exit_code)]
)
def test_an_error_is_one_line_with_its_exit_code(build, error, code) -> None:
    build(error)
    result = run()
    assert result.exit_code == code
    assert result.stderr == f"error: {' '.join(str(error).split())}\n"
    assert result.stdout == ""


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "fault", lambda: kernels.NOT_BUILT)
    monkeypatch.setattr(kernels, "compiler", lambda: ["c++"])


@pytest.mark.usefixtures("not_built")
def test_beside_another_command_a_failure_is_a_warning(build, capsys: pytest.CaptureFixture[str]) -> None:
    build(EngineError("the compiler c++ failed (exit code 1): it says nothing"))
    make_beside()
    assert capsys.readouterr() == (
        "",
        "warning: no kernels for this machine: the compiler c++ failed (exit code 1): it says nothing\n",
    )
    build(True)
    make_beside()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("kernels: built in ")


@pytest.mark.usefixtures("not_built")
@pytest.mark.parametrize(
    ("name", "answer"),
    [("fault", ""), ("fault", "this CPU has no avx2, which its library needs"), ("compiler", [])],
    ids=["they are there", "no machine for them", "no compiler"],
)
def test_beside_another_command_nothing_is_said_where_there_is_nothing_to_do(
    build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, answer: object
) -> None:
    calls = build(True)
    monkeypatch.setattr(kernels, name, lambda: answer)
    make_beside()
    assert capsys.readouterr() == ("", "")
    assert calls == []


def test_the_real_one_is_found_again_and_listed(with_kernels: Path) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert not record["built"]
    assert Path(record["path"]).parent == with_kernels / "plans"
    rows = json.loads(CliRunner().invoke(cli, ["info", "--json"]).stdout)["engines"]
    assert next(row for row in rows if row["name"] == "onnxruntime-kernels")["usable"]
