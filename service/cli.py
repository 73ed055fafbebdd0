"""``stylize photo.jpg -s starry_night:0.7,great_wave:0.3 -o out.png``: pictures, folders and patterns."""

from __future__ import annotations

import argparse
import glob
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, get_args

from service import __version__
from service.client import Client, ClientError, OnProgress, Order, Refused, Stylized, Unreachable
from service.colour import PreserveColor
from service.errors import ConfigurationError, ModelRefused
from service.images import AnyFormat
from service.local import Local

SUFFIXES: dict[str, AnyFormat] = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp", ".gif": "gif"}
DONE, SOME_FAILED, WRONG_USE, NO_SERVICE = range(4)
BAR = 24

Fill = Callable[[Order, OnProgress], Stylized]


class WrongUse(Exception):
    """What the command line asks for cannot be done; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every picture was made. 1: some were not. 2: a wrong command line. 3: no server, or no models."""
    options = _parser().parse_args(arguments)
    try:
        with ExitStack() as stack:
            service = stack.enter_context(Client(options.server)) if options.server else Local(options.store)
            if options.list:
                return _list(service)
            return _paint(service.fill, _plan(options), options)
    except WrongUse as error:
        return _stop(WRONG_USE, f"{error}; see stylize --help")
    except (Unreachable, ModelRefused, ConfigurationError) as error:
        return _stop(NO_SERVICE, str(error))
    except ClientError as error:
        return _stop(SOME_FAILED, str(error))
    except KeyboardInterrupt:
        return _stop(130, "stopped; what was finished is kept")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stylize",
        description="Paint photos in the style of a painting: with the models here, or on a server.",
        epilog="exit status: 0 every picture was made, 1 some were not, 2 a wrong command line, 3 no server or models",
    )
    add: Any = parser.add_argument
    add(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="a JPEG, PNG, WebP or GIF file, a folder of them, or a pattern ('*.jpg')",
    )
    add("-s", "--style", metavar="MIX", help="a style, or a mix: starry_night:0.7,great_wave:0.3")
    add("-o", "--output", type=Path, help="a file for one photo, a folder for several; default: beside each photo")
    add("-l", "--list", action="store_true", help="list the styles and stop")
    add("--strength", type=float, help="0 gives the photo back, 1 is the full style (default 1)")
    add("--preserve-color", choices=get_args(PreserveColor), help="luminance or histogram: keep the photo's colours")
    add("--stroke", type=float, help="1 to 16: strokes so many times as large (default: as in a preview of 1024 px)")
    add("--max-side", type=int, help="longest side of the result, in pixels; never enlarges (default 2048)")
    add("--mask", type=Path, help="a greyscale picture: white is painted, black stays photo")
    add("--masks", type=Path, help="an indexed PNG: a style for each palette index")
    add("--mask-styles", metavar="MIX", help="with --masks, instead of --style: 1:starry_night,2:great_wave")
    add("--model", help="a model by name (default: the first that has the styles)")
    add("--format", choices=get_args(AnyFormat), help="default: what the output's name says, else the photo's own")
    add("--quality", type=int, help="1 to 100, for JPEG and WebP (default 90)")
    add("--server", metavar="URL", help="use this server instead of the models here")
    store = Path(__file__).parent.parent / "model_store"
    add("--store", type=Path, default=store, help="folder of models, without a server (default: %(default)s)")
    add("-q", "--quiet", action="store_true", help="no progress bar; errors only")
    add("--version", action="version", version=__version__)
    return parser


def _list(service: Client | Local) -> int:
    for style in service.styles():
        print(f"{style.name:<20} {style.title}, {style.artist}, {style.year}")
    return DONE


def _plan(options: argparse.Namespace) -> list[tuple[Path, Path | None]]:
    """Each photo and where its picture goes; None is beside it. Raises WrongUse."""
    if not (options.style or options.masks):
        raise WrongUse("no style: add -s STYLE (--list names them)")
    several = len(options.photos) != 1 or not Path(options.photos[0]).is_file()
    photos = [photo for given in options.photos for photo in _photos(given)]
    if not photos:
        raise WrongUse("no photo was given")
    output: Path | None = options.output
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
        raise WrongUse(f"{given}: no photo (JPEG, PNG, WebP or GIF) is there")
    return photos


def _paint(fill: Fill, plan: list[tuple[Path, Path | None]], options: argparse.Namespace) -> int:
    mask, masks = (_read(path) if path else None for path in (options.mask, options.masks))
    failed = 0
    for done, (photo, target) in enumerate(plan):
        show = partial(_progress, done, len(plan), photo.name, options.quiet)
        show(0.0)
        named = SUFFIXES.get(target.suffix.lower()) if target and len(plan) == 1 else None
        try:
            order = Order(
                photo.read_bytes(),
                style=options.style,
                strength=options.strength,
                preserve_color=options.preserve_color,
                stroke=options.stroke,
                max_side=options.max_side,
                model=options.model,
                format=options.format or named,
                quality=options.quality,
                mask=mask,
                masks=masks,
                mask_styles=options.mask_styles,
            )
            path = _write(fill(order, show), photo, target)
        except (Refused, OSError) as error:
            failed += 1
            _say(f"{photo}: {error}")
        else:
            if not options.quiet:
                _say(str(path))
    _progress(len(plan), len(plan), "", options.quiet, 0.0)
    if failed:
        _say(f"{failed} of {len(plan)} could not be made")
    return SOME_FAILED if failed else DONE


def _write(result: Stylized, photo: Path, target: Path | None) -> Path:
    """Beside the photo its name carries the style's, so that no photo is ever overwritten."""
    suffix = ".jpg" if result.format == "jpeg" else f".{result.format}"
    if target is None:
        target = photo.with_name(f"{photo.stem}.{'-'.join(_style_names(result.style))}{suffix}")
    elif target.suffix.lower() not in SUFFIXES:
        target = target.with_name(target.name + suffix)
    if target.exists() and target.samefile(photo):
        raise OSError("the result would overwrite the photo: choose another output")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(result.content)
    return target


def _style_names(applied: str) -> list[str]:
    return [next(part for part in item.split(":") if not part.isdigit()) for item in applied.split(",")]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}") from error


def _progress(done: int, total: int, name: str, quiet: bool, share: float) -> None:
    """``share`` is how much of the next picture is done: a large one has tiles to tell of."""
    if quiet or not sys.stderr.isatty() or (total == 1 and not share):
        return
    filled = int(BAR * (done + share) / total)
    end = "\n" if done == total else ""
    print(f"\r\033[K{'█' * filled}{'░' * (BAR - filled)} {done}/{total} {name}", end=end, file=sys.stderr, flush=True)


def _say(text: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}{text}", file=sys.stderr, flush=True)


def _stop(status: int, message: str) -> int:
    print(f"stylize: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
