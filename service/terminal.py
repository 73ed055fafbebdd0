"""What the commands share: exit statuses, the photos that were given and where their pictures go, a bar."""

from __future__ import annotations

import glob
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from service.images import AnyFormat

SUFFIXES: dict[str, AnyFormat] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".png": "png",
    ".webp": "webp",
    ".gif": "gif",
    ".mp4": "mp4",
}
DONE, SOME_FAILED, WRONG_USE, NO_SERVICE = range(4)
STOPPED = 130  # by Ctrl-C, as shells have it
BAR = 24


class WrongUse(Exception):
    """What the command line asks for cannot be done; the message says why."""


def plan(given: Sequence[str], output: Path | None) -> list[tuple[Path, Path | None]]:
    """Each photo and where its picture goes; None is beside it. Raises WrongUse."""
    several = len(given) != 1 or not Path(given[0]).is_file()
    photos = [photo for each in given for photo in _photos(each)]
    if not photos:
        raise WrongUse("no photo was given")
    if output is None:
        return [(photo, None) for photo in photos]
    if several or output.is_dir():
        if output.exists() and not output.is_dir():
            raise WrongUse(f"{output} is a file, but several photos need a folder")
        names = Counter(photo.stem for photo in photos)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise WrongUse(f"two photos are called {twice[0]}: they would overwrite each other in {output}")
        return [(photo, output / photo.stem) for photo in photos]
    if output.suffix.lower() not in SUFFIXES:
        raise WrongUse(f"{output} must end in {', '.join(SUFFIXES)}, or be a folder")
    return [(photos[0], output)]


def _photos(given: str) -> list[Path]:
    path = Path(given)
    if path.is_file():
        return [path]
    found = path.iterdir() if path.is_dir() else map(Path, glob.glob(given, recursive=True))
    photos = sorted(photo for photo in found if photo.suffix.lower() in SUFFIXES and photo.is_file())
    if not photos:
        raise WrongUse(f"{given}: no photo (JPEG, PNG, WebP, GIF or MP4) is there")
    return photos


def named_format(target: Path | None) -> AnyFormat | None:
    """What the name of a picture says that it is to be."""
    return SUFFIXES.get(target.suffix.lower()) if target else None


def write(content: bytes, format: AnyFormat, photo: Path, target: Path | None, label: str) -> Path:
    """Beside the photo its name carries the label, so that no photo is ever overwritten. Raises OSError."""
    suffix = ".jpg" if format == "jpeg" else f".{format}"
    if target is None:
        target = photo.with_name(f"{photo.stem}.{label}{suffix}")
    elif target.suffix.lower() not in SUFFIXES:
        target = target.with_name(target.name + suffix)
    if target.exists() and target.samefile(photo):
        raise OSError("the result would overwrite the photo: choose another output")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return target


def read(path: Path) -> bytes:
    """Raises WrongUse."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}") from error


def bar(share: float, text: str, end: str = "") -> None:
    """On a terminal alone."""
    if sys.stderr.isatty():
        filled = int(BAR * share)
        print(f"\r\033[K{'█' * filled}{'░' * (BAR - filled)} {text}", end=end, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line, over the bar."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}{text}", file=sys.stderr, flush=True)


def stop(status: int, message: str) -> int:
    say(f"stylize: {message}")
    return status
