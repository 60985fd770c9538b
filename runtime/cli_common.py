"""What the commands share: options, value lists, the lazy group, and errors as one line with an exit code."""

from __future__ import annotations

import errno
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ..engines.errors import MissingDependency, StyleclipError

if TYPE_CHECKING:
    from ..engines.build import GraphProgress
    from .editor import Editor

F = TypeVar("F", bound=Callable[..., Any])

# Modules that come with the extra `torch`.
TORCH_EXTRA = {"torch", "torchvision", "onnx", "onnxscript", "onnx_ir", "open_clip", "safetensors", "tqdm"}
MAX_VALUES = 41


class CliError(click.ClickException):
    """A StyleclipError at the command line: one line on stderr, its own exit code, no traceback."""

    def __init__(self, error: StyleclipError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click sets it the same way

    def show(self, file: Any = None) -> None:
        """Print `error: ...` to stderr."""
        click.echo(f"error: {self.message}", err=True)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called; their names and summaries are known before.

    commands: name -> (module:attribute, summary). Some of them need torch, which a base install lacks.
    """

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; MissingDependency names the extra if torch is what it lacks."""
        if cmd_name not in self.lazy:
            return None
        module, attribute = self.lazy[cmd_name][0].split(":")
        try:
            return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]
        except ImportError as error:
            raise missing(error) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Command names, without importing one."""
        names = [CompletionItem(n, help=s) for n, (_, s) in self.lazy.items() if n.startswith(incomplete)]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors of this project become one line and an exit code, Ctrl-C exit code 130."""
        try:
            return super().invoke(ctx)
        except StyleclipError as error:
            raise CliError(error) from error
        except ImportError as error:
            raise CliError(missing(error)) from error
        except OSError as error:
            raise CliError(unwritten(error)) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


def unwritten(error: OSError) -> StyleclipError:
    """The error of this project for a disk that takes nothing more; re-raises what is none of that.

    Packs, bundles and pictures are put in place whole, so that nothing half-written is left behind.
    """
    advice = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EROFS: "name another folder",
              errno.EACCES: "name another folder", errno.EFBIG: "name another folder"}  # fmt: skip
    if error.errno not in advice:
        raise error
    where = f" {error.filename}" if error.filename else ""
    return StyleclipError(
        f"the result cannot be written{where}: {error.strerror}; {advice[error.errno]} and run the command again"
    )


def missing(error: ImportError) -> StyleclipError:
    """The error of this project for a library that is not installed; re-raises what is no missing extra."""
    library = (error.name or "").split(".")[0]
    if library not in TORCH_EXTRA:
        raise error
    return MissingDependency(
        f'this command needs {library}, which is not installed; install it with `pip install "styleclip-rt[torch]"`'
    )


class Values(click.ParamType):
    """Numbers: one (3), a list (1,2,3), a range with both ends (-3..6), a range with a step (-3..6:1.5); or a word."""

    name = "values"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of floats and words; usage error for anything else."""
        if not isinstance(value, str):
            return value
        try:
            found = tuple(item for part in value.split(",") for item in self._part(part.strip()))
        except ValueError as error:
            words = "".join(f", or {word}" for word in self.words)
            self.fail(f"{value!r}: {error}; expected a number, a list 1,2,3 or a range -3..6:1.5{words}", param, ctx)
        if len(found) > MAX_VALUES:
            self.fail(f"{value!r} has {len(found)} values; at most {MAX_VALUES}", param, ctx)
        return found

    def _part(self, part: str) -> Sequence[float | str]:
        if part in self.words:
            return (part,)
        if ".." not in part:
            return (finite(part),)
        ends, _, step = part.partition(":")
        low, _, high = ends.partition("..")
        return span(finite(low), finite(high), finite(step) if step else None)


def span(low: float, high: float, step: float | None = None) -> list[float]:
    """low to high inclusive. Without a step: whole numbers where there are 2 to 13, otherwise seven values."""
    if not low < high or (step is not None and step <= 0):
        raise ValueError("a range runs from the smaller to the larger number, by a step above 0")
    if step is None:
        whole = low == int(low) and high == int(high) and high - low <= 12
        step = 1.0 if whole else (high - low) / 6
    count = int((high - low) / step + 1e-6) + 1
    if count > MAX_VALUES:
        raise ValueError(f"a range of {count} values, at most {MAX_VALUES}")
    return [round(low + i * step, 6) for i in range(count)]


def finite(text: str) -> float:
    """A finite number, else ValueError."""
    value = float(text)
    if not abs(value) < 1e6:
        raise ValueError("not a finite number")
    return value


def bundle_options(command: F) -> F:
    """--bundle, --device and --engine."""
    for option in (
        click.option(
            "--engine",
            metavar="NAME",
            help="onnxruntime, openvino, tensorrt ... (`info` lists them). Default: the best.",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option("--bundle", metavar="DIR|NAME", help="Bundle. Default: the newest export, else the shipped one."),
    ):
        command = option(command)
    return command


def complete_prompt(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the bundle's prompts, for the shell's completion."""
    from .store import prompts_of

    return _complete(ctx, incomplete, prompts_of)


def complete_direction(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the bundle's directions, for the shell's completion."""
    from .store import directions_of

    return _complete(ctx, incomplete, directions_of)


def _complete(ctx: click.Context, incomplete: str, names_of: Callable[[Path], Iterable[str]]) -> list[CompletionItem]:
    from .store import find_bundle

    try:
        names = names_of(find_bundle(ctx.params.get("bundle")).path)
    except StyleclipError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else, to stdout."
)


def open_editor(bundle: str | None, device: str, engine: str | None) -> Editor:
    """Open the bundle, and say on stderr which one it is when the user named none."""
    from .editor import Editor

    editor = Editor.open(bundle, device=device, engine=engine, progress=build_progress())
    if bundle is None and editor.origin is not None:
        click.echo(f"bundle: {editor.origin}", err=True)
    return editor


def build_progress() -> GraphProgress:
    """What a command tells of TensorRT's builds, which take minutes: a line that replaces itself, on stderr.

    Where stderr is no terminal it is one line when a build begins and one when it has ended.
    """
    from ..engines.build import FINISHED

    terminal, begun = sys.stderr.isatty(), dict[str, float]()

    def progress(graph: str, phase: str, done: int, total: int) -> bool:
        now, is_new = time.monotonic(), graph not in begun
        seconds = now - begun.setdefault(graph, now)
        if phase == FINISHED:
            del begun[graph]
            ended = f"TensorRT: {graph}, {seconds:.0f} s"
            click.echo("\r\x1b[K" if terminal else ended, err=True, nl=not terminal)
        elif terminal:
            step = f"{phase} {done}/{total}, {seconds:.0f} s"
            click.echo(f"\r\x1b[K{f'TensorRT builds {graph}: {step}'[:110]}", err=True, nl=False)
        elif is_new:
            click.echo(f"TensorRT builds a plan of {graph}, once on this machine; it can take minutes", err=True)
        return True

    return progress


def engine_record(editor: Editor) -> dict[str, str]:
    """What runs the graphs, where, and why there, for the JSON of a command and for `print_notes`."""
    bundle = editor.bundle
    return {"name": bundle.backend, "device": bundle.device, "reason": bundle.device_reason}


def print_notes(record: dict[str, Any]) -> None:
    """The engine of a command's record, then its notes, on stderr; with --json they stand in the JSON instead."""
    engine = record["engine"]
    click.echo(f"engine: {engine['name']} on {engine['device']}; {engine['reason']}", err=True)
    for note in record.get("notes", ()):
        click.echo(f"note: {note}", err=True)


def print_json(record: dict[str, Any]) -> None:
    """One JSON object to stdout."""
    click.echo(json.dumps(record, indent=2, ensure_ascii=not _utf8(), allow_nan=False))


def _utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
