"""What an import would do, found without converting or writing anything."""

from __future__ import annotations

from typing import Any

from ...archives import read_source
from ..needs import lacking
from ..pack import load_pack
from .importer import recognised
from .licences import licence_of
from .request import Job, Request, jobs_of, pack_name


def preview(request: Request) -> dict[str, Any]:
    """Every file with its format and SHA-256, the components that the pack would have, and what export would make.

    Raises the errors of `import_pack` that show without converting: files that are missing, unreadable or not what
    their option says.
    """
    base = load_pack(request.base) if request.base else None
    files = [_file(job, request) for job in jobs_of(request)]
    components = list(dict.fromkeys([*(base.components if base else ()), *_components(request)]))
    missing = lacking(components, [name.removeprefix("mapper/") for name in components if name.startswith("mapper/")])
    return {
        "out": str(request.out),
        "name": pack_name(request, base),
        "files": files,
        "components": components,
        "graphs": [graph for graph, parts in missing.items() if not parts],
        "missing": {graph: parts for graph, parts in missing.items() if parts},
    }


def _file(job: Job, request: Request) -> dict[str, Any]:
    row: dict[str, Any] = {"option": job.option, "name": job.name or None, "file": None, "bytes": 0, "sha256": ""}
    if job.path is None:
        asked = request.clip if job.kind == "clip" else request.statistics
        return {**row, "format": str(asked), "licence": "unknown"}
    source = read_source(job.path)
    form = recognised(job, source)
    component = f"mapper/{job.name}" if job.kind == "mapper" else job.kind
    licence = licence_of(component, "", source.sha256, request.licences)
    return {
        **row,
        "file": str(job.path),
        "bytes": source.bytes,
        "sha256": source.sha256,
        "format": form,
        "licence": licence,
    }


def _components(request: Request) -> list[str]:
    from .mappers import component_name

    names = []
    for job in jobs_of(request):
        names += [f"mapper/{component_name(job.name)}"] if job.kind == "mapper" else [job.kind]
        names += ["tokenizer"] if job.kind == "clip" else []
    return names
