"""The volume that web processes and workers share: a folder for every job, on whatever fsspec reaches.

A file is named in the state only once it is written, under a name that no other attempt has: so nobody reads half of
one, whatever the volume promises.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Collection

import fsspec

from service.errors import translating


class VolumeUnusable(OSError):
    """The volume cannot be read or written; the message says why."""


class Volume:
    """``url`` as fsspec has it, as ``file:///srv/stylize`` or ``s3://bucket/folder``. Raises ValueError where fsspec
    cannot do with it, and ImportError where the library for it is missing."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        if "file" in self._fs.protocol:
            self._fs.auto_mkdir = True
        self.url = url

    def write(self, job_id: str, name: str, content: bytes) -> None:
        """Raises VolumeUnusable."""
        with translating({Exception: _unusable}), self._fs.open(self._path(job_id, name), "wb") as file:
            file.write(content)
            file.flush()
            try:
                os.fsync(file.fileno())
            except (AttributeError, io.UnsupportedOperation):
                return  # nothing of this machine's: closing it is what makes it last

    def read(self, job_id: str, name: str) -> bytes | None:
        """None where there is no such file. Raises VolumeUnusable."""
        with translating({Exception: _unusable}):
            try:
                content: bytes = self._fs.cat_file(self._path(job_id, name))
            except FileNotFoundError:
                return None
            return content

    def names(self, job_id: str) -> list[str]:
        """The job's files. Raises VolumeUnusable."""
        with translating({Exception: _unusable}):
            try:
                return [path.rsplit("/", 1)[-1] for path in self._fs.ls(self._path(job_id), detail=False)]
            except FileNotFoundError:
                return []

    def remove(self, job_id: str, names: Collection[str]) -> None:
        """Raises VolumeUnusable."""
        with translating({Exception: _unusable}):
            for name in names:
                try:
                    self._fs.rm_file(self._path(job_id, name))
                except FileNotFoundError:
                    continue

    def remove_all(self, job_id: str) -> None:
        """Raises VolumeUnusable."""
        with translating({Exception: _unusable}):
            try:
                self._fs.rm(self._path(job_id), recursive=True)
            except FileNotFoundError:
                return

    def mark(self) -> str:
        """Leave a mark by which the volume is known; what it says. Raises VolumeUnusable."""
        mark = secrets.token_hex(8)
        self.write(".volume", mark, b"")
        return mark

    def is_marked(self, mark: str) -> bool:
        """Whether it is the volume with that mark. Raises VolumeUnusable."""
        return self.read(".volume", mark) is not None

    def _path(self, *parts: str) -> str:
        return "/".join([self._root, *parts])


def _unusable(error: Exception) -> Exception:
    return VolumeUnusable(f"{type(error).__name__}: {error}")
