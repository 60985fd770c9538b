"""What `pack import` is asked to do: the request, and the jobs that it comes to, checked before a file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ....engines.errors import InputError
from ..pack import Pack
from ..pack_format import NAME

OPTION_OF = {"w-samples": "statistics"}
COMPUTE = "compute"


@dataclass(frozen=True)
class Request:
    """What to import, and where to; every file is optional.

    clip: a file, or a name of open_clip's published weights ("ViT-B-32/openai"). clip_architecture:
    open_clip's name where the file does not tell. inverter_kind: "e4e" or "psp" where the file does not tell. mappers:
    name -> file. statistics: a file, "compute" or "compute:N". sigma: a key of `statistics.CONVENTIONS`. base: a pack
    to add to. licences: component -> text. allow_other_generator: take mappers and encoders that were trained with
    another generator than the pack's.
    """

    out: Path
    generator: Path | None = None
    clip: str | None = None
    clip_architecture: str | None = None
    inverter: Path | None = None
    inverter_kind: str | None = None
    identity: Path | None = None
    mappers: Mapping[str, Path] = field(default_factory=dict)
    directions: Path | None = None
    statistics: str | None = None
    w_samples: Path | None = None
    sigma: str | None = None
    base: str | None = None
    name: str | None = None
    alignment: str | None = None
    licences: Mapping[str, str] = field(default_factory=dict)
    allow_other_generator: bool = False


@dataclass(frozen=True)
class Job:
    """One thing to import: the option that named it, its file (None: nothing to read), and the mapper's name."""

    option: str
    path: Path | None
    name: str = ""

    @property
    def kind(self) -> str:
        """The key of MODULES."""
        return OPTION_OF.get(self.option, self.option)

    @property
    def size(self) -> int:
        """Bytes of its file; 0 without one."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else 0


def jobs_of(request: Request) -> list[Job]:
    """What there is to do, in order; InputError where nothing is named or a file is missing."""
    jobs = [Job(option, path) for option in ("generator",) if (path := request.generator)]
    if request.clip:
        jobs.append(Job("clip", Path(request.clip) if Path(request.clip).is_file() else None))
    jobs += [Job("inverter", request.inverter)] if request.inverter else []
    jobs += [Job("identity", request.identity)] if request.identity else []
    jobs += [Job("mapper", path, name) for name, path in request.mappers.items()]
    jobs += [Job("directions", request.directions)] if request.directions else []
    if request.statistics and request.w_samples:
        raise InputError("--statistics and --w-samples were both given; the statistics come from one of them")
    if request.statistics:
        computed = request.statistics.split(":")[0] == COMPUTE and not Path(request.statistics).exists()
        jobs.append(Job("statistics", None if computed else Path(request.statistics)))
    jobs += [Job("w-samples", request.w_samples)] if request.w_samples else []
    if not jobs:
        raise InputError("nothing to import; give --generator, --clip, --inverter, --mapper or another file")
    for job in jobs:
        if job.path is not None and not job.path.is_file():
            raise InputError(f"--{job.option}: there is no file {job.path}")
    return jobs


def pack_name(request: Request, base: Pack | None) -> str:
    """The name of the pack: as asked, else the base's, else that of the folder; InputError where it cannot be one."""
    name = request.name or (base.name if base else request.out.absolute().name.lower())
    if not NAME.fullmatch(name):
        raise InputError(f"pack name {name!r} may hold only a-z, 0-9, '-' and '_'; give another with --name")
    return name


def sample_count(text: str) -> int:
    """N of "compute:N"; StyleCLIP's 100,000 for "compute". InputError for anything else."""
    _, _, count = text.partition(":")
    if not count:
        return 100_000
    if not count.isdecimal() or not 2 <= int(count) <= 10_000_000:
        raise InputError(f"--statistics {text!r}; expected a file, compute, or compute:N with N from 2 to 10000000")
    return int(count)
