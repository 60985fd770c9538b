"""Built plans of this machine: a cache that only ever gives back what this user's own process put in.

TensorRT's plans, AOTInductor's packages and the compiled kernels of `kernels` are kept here, all called plans.
Deserialising a plan is running native code. So a plan comes from nowhere but this folder (mode 0700, of this user),
stands under an HMAC with a key that never leaves it (mode 0600), and the bytes that were authenticated are the bytes
that are used. What does not fit in every field of its key is built again. A pack or a bundle never carries one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import EngineError

MAX_BYTES = 8 << 30
"""Plans beyond this total are dropped, the longest unused first."""
_MAGIC = b"styleclip-rt/plan\x001\n"
_KEY_BYTES = 32
_MAC_BYTES = hashlib.sha256().digest_size
_MAX_HEADER = 1 << 16
Key = Mapping[str, Any]
"""What a plan depends on: card, SM, driver, library, hash of the graph and its weights, profiles. JSON values."""


def default_folder() -> Path:
    """`$STYLECLIP_RT_HOME/plans`, else `$XDG_CACHE_HOME/styleclip-rt/plans`, else `~/.cache/styleclip-rt/plans`."""
    own = os.environ.get("STYLECLIP_RT_HOME")
    if own:
        return Path(own).expanduser() / "plans"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "styleclip-rt" / "plans"


class Refused(EngineError):
    """This plan was built here before and found wrong; the reason is kept so that it is not built at every start."""


class PlanCache:
    """The plans in one folder. Threads and processes may share it: each plan is built once."""

    def __init__(self, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Make the folder if it is not there.

        Raises:
            EngineError: it belongs to somebody else, or others may write into it.
        """
        self.folder = folder or default_folder()
        self.max_bytes = max_bytes
        _private_folder(self.folder)
        self._secret = _secret(self.folder / "key")

    def get_or_build(self, key: Key, build: Callable[[], bytes]) -> bytes:
        """The plan of `key`: from the cache where it stands there intact, else from `build`, and kept.

        A process that comes second waits for the first and takes its plan. When `build` raises, or the process dies,
        nothing is kept; when it raises `Refused`, the reason is, and is raised again next time.
        """
        found = self.get(key)
        if found is not None:
            return found
        with self._lock(key):
            found = self.get(key)  # another process may have built it meanwhile
            if found is not None:
                return found
            self._sweep(key)
            try:
                plan = build()
            except Refused as error:
                self.put(key, b"", refused=str(error))
                raise
            try:
                self.put(key, plan)
            except OSError as error:  # a full disk costs the next start, not this one
                warnings.warn(f"the plan is not kept in {self.folder}: {error}", stacklevel=2)
        self._prune(keep=self.path(key))
        return plan

    def get(self, key: Key) -> bytes | None:
        """The plan of `key`, authenticated; None if there is none, or it is not exactly what was put.

        Raises:
            Refused: it was built before and found wrong.
        """
        try:
            data = _read_own(self.path(key))
        except OSError:
            return None
        header, plan = self._open(data)
        if header is None or header.get("key") != _plain(key):
            return None
        if header.get("refused"):
            raise Refused(f"{header['refused']} (as found before; remove {self.path(key)} to build it again)")
        with suppress(OSError):
            os.utime(self.path(key))  # what is used is kept longest
        return plan

    def put(self, key: Key, plan: bytes, refused: str = "") -> None:
        """Keep `plan`: it appears whole, under its name, or not at all."""
        import tempfile  # with `secrets` ten milliseconds, which one who only looks a plan up does not need

        header = json.dumps({"key": _plain(key), "refused": refused}, sort_keys=True).encode()
        body = len(header).to_bytes(4, "little") + header + plan
        mac = hmac.digest(self._secret, body, "sha256")
        descriptor, name = tempfile.mkstemp(prefix=f".{self._digest(key)}.", suffix=".tmp", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it with mode 0600
                file.writelines((_MAGIC, mac, body))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path(key))
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def path(self, key: Key) -> Path:
        """Where the plan of `key` stands, if it does."""
        return self.folder / f"{self._digest(key)}.plan"

    def _open(self, data: bytes) -> tuple[dict[str, Any] | None, bytes]:
        """Header and plan of a file's bytes; (None, b"") unless they carry this cache's own mark."""
        start = len(_MAGIC) + _MAC_BYTES
        mac, body = data[len(_MAGIC) : start], data[start:]
        if not data.startswith(_MAGIC) or not hmac.compare_digest(mac, hmac.digest(self._secret, body, "sha256")):
            return None, b""
        size = int.from_bytes(body[:4], "little")
        if size > _MAX_HEADER:
            return None, b""
        return json.loads(body[4 : 4 + size]), body[4 + size :]

    @contextmanager
    def _lock(self, key: Key) -> Iterator[None]:
        """Held by one thread of one process at a time; the system frees it when its holder dies."""
        descriptor = os.open(self.folder / f"{self._digest(key)}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock_file(descriptor)
            yield
        finally:
            os.close(descriptor)

    def _sweep(self, key: Key) -> None:
        """Drop what a build of this plan that was killed has left; called under its lock."""
        for left in self.folder.glob(f".{self._digest(key)}.*.tmp"):
            with suppress(OSError):
                left.unlink()

    def _prune(self, keep: Path) -> None:
        """Drop the longest unused plans beyond `max_bytes`, never `keep`."""
        rows = []
        for path in self.folder.glob("*.plan"):
            with suppress(OSError):
                found = path.stat()
                rows.append((found.st_mtime, found.st_size, path))
        total = sum(size for _, size, _ in rows)
        for _, size, path in sorted(rows):
            if total <= self.max_bytes:
                return
            if path != keep:
                total -= size
                with suppress(OSError):
                    path.unlink()

    @staticmethod
    def _digest(key: Key) -> str:
        return hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()[:32]


def _plain(key: Key) -> Any:
    """The key as JSON gives it back, so that tuples and lists compare equal."""
    return json.loads(json.dumps(dict(key)))


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise EngineError(
            f"the plan cache {folder} cannot be made ({error.strerror or error}); "
            "set STYLECLIP_RT_HOME to a folder of yours."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or not _only_mine(found):
        raise EngineError(
            f"the plan cache {folder} must be a folder of yours that nobody else may enter: its plans are native code. "
            f"Check who made it, empty it, and run: chmod 700 {folder}"
        )


def _only_mine(found: os.stat_result) -> bool:
    """Owned by this user, and nothing granted to others; Windows keeps a profile's folders private by itself."""
    return sys.platform == "win32" or (found.st_uid == os.geteuid() and not found.st_mode & 0o077)


def _secret(path: Path) -> bytes:
    """The key of the HMAC, made at random on first use. Linked into place: of two processes one wins, both use it."""
    if not path.exists():
        import secrets
        import tempfile

        descriptor, name = tempfile.mkstemp(prefix=".key.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            with suppress(FileExistsError):
                os.link(name, path)
        finally:
            os.unlink(name)
    try:
        key = _read_own(path)
    except OSError as error:
        raise EngineError(
            f"the key of the plan cache cannot be read ({error}); remove {path} and try again."
        ) from error
    if len(key) != _KEY_BYTES:
        raise EngineError(f"the key of the plan cache has {len(key)} bytes, expected {_KEY_BYTES}; remove {path}.")
    return key


def _read_own(path: Path) -> bytes:
    """Bytes of a regular file that is this user's alone; PermissionError otherwise, a symbolic link included."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or not _only_mine(found):
            raise PermissionError(f"{path} may be written or read by others")
        return file.read()


def _lock_file(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
