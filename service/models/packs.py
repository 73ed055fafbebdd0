"""A style to take away and to bring in: a small zip of its vector, its papers and its preview, for one network."""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidFields, NameTaken, Offence, ServiceError, StylesUnavailable, Translation, translating
from service.images import decode, open_photo
from service.models.store import Name, Sha256, StyleEntry, StyleName, Vector, read_vector

log = logging.getLogger(__name__)

PAPERS, VECTOR, PREVIEW = "style.json", "vector.npy", "preview.jpg"
MAX_BYTES = 2**20  # of a pack, and of all that is in it
MAX_PREVIEW_PIXELS = 2**20
LARGEST = 100.0  # of a vector's numbers: those of trained styles are below 10
SUFFIX, PENDING = ".zip", ".job"


class Papers(BaseModel):
    """``style.json``. ``network`` is the ``Card.network_sha256`` of that whose style it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: int = Field(1, alias="schema", ge=1, le=1)
    name: StyleName
    title: str = Field(max_length=200)
    artist: str = Field(max_length=200)
    year: str = Field(max_length=200)
    credit: str = Field(max_length=1000)
    painting_sha256: Sha256
    painting_side_px: int | None = Field(None, ge=1)
    model: Name
    network: Sha256


@dataclass(frozen=True)
class Pack:
    """A style (D,) with its papers and a JPEG of it at work."""

    papers: Papers
    vector: Vector
    preview: bytes

    @property
    def name(self) -> str:
        return self.papers.name

    @property
    def entry(self) -> StyleEntry:
        """As a card has it."""
        told = self.papers.model_dump(exclude={"schema_", "model", "network"})
        return StyleEntry(**told, preview=f"previews/{self.name}.jpg")

    def zipped(self) -> bytes:
        """The same bytes for the same style, always."""
        vector = io.BytesIO()
        np.save(vector, self.vector)
        papers = json.dumps(self.papers.model_dump(by_alias=True), indent=1, sort_keys=True).encode()
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in ((PAPERS, papers), (VECTOR, vector.getvalue()), (PREVIEW, self.preview)):
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
        return file.getvalue()

    @classmethod
    def unzipped(cls, content: bytes, dimensions: Mapping[str, int]) -> Pack:
        """``dimensions`` maps every network that it may be for, by its sha256, to the length of its vectors.

        Raises InvalidFields saying what is wrong with it, whatever it is.
        """
        with translating(_REFUSED):
            files = _members(content)
            papers = Papers.model_validate_json(files[PAPERS])
            if papers.network not in dimensions:
                raise ValueError(f"it is for a {papers.model} that is not served here ({papers.network[:12]}…)")
            vector = read_vector(files[VECTOR], dimensions[papers.network])
            if np.abs(vector).max() > LARGEST:
                raise ValueError(f"a number of its vector is beyond {LARGEST:g}: no trained style's is")
            _check_preview(files[PREVIEW])
            return cls(papers, vector, files[PREVIEW])


def _members(content: bytes) -> dict[str, bytes]:
    """The three files of a pack, and nothing else. Nothing is unpacked that says, or turns out, to be large."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError("it is no zip archive, or its end is missing")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = archive.infolist()
        if sorted(member.filename for member in found) != sorted((PAPERS, VECTOR, PREVIEW)):
            raise ValueError(f"it must hold {PAPERS}, {VECTOR} and {PREVIEW}, once each, and nothing else")
        if sum(member.file_size for member in found) > MAX_BYTES:
            raise ValueError(f"what is in it has more than {MAX_BYTES} bytes")
        return {member.filename: archive.read(member) for member in found}


def _check_preview(content: bytes) -> None:
    try:
        preview = open_photo(content, MAX_PREVIEW_PIXELS)
        decode(preview, (preview.width, preview.height))
    except ServiceError as error:
        raise ValueError(f"{PREVIEW}: {error.detail}") from error
    if preview.format != "jpeg":
        raise ValueError(f"{PREVIEW} is not a JPEG")


def _refused(error: Exception) -> Exception:
    if isinstance(error, ValidationError):
        reason = "; ".join(f"{PAPERS}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    else:
        reason = str(error)
    return InvalidFields([Offence("pack", reason or "it cannot be read")])


# Whatever zipfile and numpy raise of bytes that are not theirs.
_MALFORMED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, RuntimeError, KeyError)
_REFUSED: Translation = dict.fromkeys(_MALFORMED, _refused)


class PackFolder:
    """Styles of one's own, kept as packs in a folder: read by every service that shares it. Beside them lie the names
    that are taken already, each with the id of the job that makes its style."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def stamp(self) -> int:
        """Another one whenever something in the folder came or went; 0 where there is none yet."""
        try:
            return self._folder.stat().st_mtime_ns
        except OSError:
            return 0

    def packs(self, dimensions: Mapping[str, int]) -> list[Pack]:
        """Those that fit a network, as ``Pack.unzipped`` has it; of the others the log tells."""
        found = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                pack = Pack.unzipped(path.read_bytes(), dimensions)
            except (ServiceError, OSError) as error:
                log.warning("the style in %s is left out: %s", path, error)
                continue
            if pack.name == path.stem:
                found.append(pack)
        return found

    def add(self, pack: Pack) -> None:
        """Whole or not at all. Raises NameTaken, StylesUnavailable."""
        self._create(pack.name + SUFFIX, pack.zipped())

    def remove(self, name: str) -> bool:
        """Whether it was there. Raises StylesUnavailable."""
        return self._unlink(name + SUFFIX)

    def reserve(self, name: str) -> None:
        """Before its job is there. Raises NameTaken, StylesUnavailable."""
        if (self._folder / (name + SUFFIX)).exists():
            raise _taken(name)
        self._create(name + PENDING, b"")

    def assign(self, name: str, job_id: str) -> None:
        """The job that makes the style of a reserved name. Raises StylesUnavailable."""
        with translating({OSError: self._unusable}):
            (self._folder / (name + PENDING)).write_text(job_id)

    def release(self, name: str) -> None:
        self._unlink(name + PENDING)

    def pending(self) -> dict[str, str]:
        """The ids of jobs by the names of the styles that they make."""
        return {path.stem: path.read_text() for path in self._folder.glob(f"*{PENDING}")}

    def _create(self, name: str, content: bytes) -> None:
        with translating({FileExistsError: lambda error: _taken(Path(name).stem), OSError: self._unusable}):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.link(file.name, self._folder / name)

    def _unlink(self, name: str) -> bool:
        with translating({OSError: self._unusable}):
            try:
                (self._folder / name).unlink()
            except FileNotFoundError:
                return False
            return True

    def _unusable(self, error: Exception) -> Exception:
        return StylesUnavailable(f"the folder {self._folder} cannot be used: {error}")


def _taken(name: str) -> NameTaken:
    return NameTaken(f"the name {name} is taken: choose another, or delete that style first")
