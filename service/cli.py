"""``stylize photo.jpg -s starry_night:0.7,great_wave:0.3 -o out.png``: pictures, folders and patterns."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, get_args

from service import __version__, cli_gatys, cli_styles
from service.client import Client, ClientError, OnProgress, Order, Refused, Stylized, Unreachable
from service.colour import PreserveColor
from service.errors import ConfigurationError, ModelRefused
from service.images import AnyFormat
from service.local import Local
from service.terminal import (
    DONE,
    NO_SERVICE,
    SOME_FAILED,
    STOPPED,
    WRONG_USE,
    WrongUse,
    bar,
    named_format,
    plan,
    read,
    say,
    stop,
    write,
)

COMMANDS = {"gatys": cli_gatys.run, "style": cli_styles.run}
Fill = Callable[[Order, OnProgress], Stylized]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every picture was made. 1: some were not. 2: a wrong command line. 3: no server, or no models."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    try:
        if command:
            return COMMANDS[command](arguments[1:])
        options = _parser().parse_args(arguments)
        with ExitStack() as stack:
            service = stack.enter_context(Client(options.server)) if options.server else Local(options.store)
            if options.list:
                return _list(service)
            return _paint(service.fill, _plan(options), options)
    except WrongUse as error:
        return stop(WRONG_USE, f"{error}; see {' '.join(filter(None, ('stylize', command)))} --help")
    except (Unreachable, ModelRefused, ConfigurationError) as error:
        return stop(NO_SERVICE, str(error))
    except ClientError as error:
        return stop(SOME_FAILED, str(error))
    except KeyboardInterrupt:
        return stop(STOPPED, f"stopped{', and the job cancelled' * bool(command)}; what was finished is kept")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stylize",
        description="Paint photos in the style of a painting: with the models here, or on a server.",
        epilog="stylize gatys --help: any painting, by optimising the picture itself. stylize style --help: styles of "
        "one's own, on a server. "
        "exit status: 0 every picture was made, 1 some were not, 2 a wrong command line, 3 no server or models",
    )
    add: Any = parser.add_argument
    add(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="a JPEG, PNG, WebP, GIF or MP4 file, a folder of them, or a pattern ('*.jpg')",
    )
    add("-s", "--style", metavar="MIX", help="a style, or a mix: starry_night:0.7,great_wave:0.3")
    add(
        "--style-image", type=Path, metavar="FILE", help="any painting's style, in one pass; a mix names it style_image"
    )
    add("--style-fine", metavar="MIX", help="whose strokes, with -s or --style-coarse for the palette")
    add("--style-coarse", metavar="MIX", help="whose palette, with -s or --style-fine for the strokes")
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
    """Raises WrongUse."""
    if not (options.style or options.style_image or options.masks or (options.style_fine and options.style_coarse)):
        raise WrongUse("no style: add -s STYLE (--list names them)")
    return plan(options.photos, options.output)


def _paint(fill: Fill, work: list[tuple[Path, Path | None]], options: argparse.Namespace) -> int:
    files = options.mask, options.masks, options.style_image
    mask, masks, painting = (read(path) if path else None for path in files)
    failed = 0
    for done, (photo, target) in enumerate(work):
        show = partial(_progress, done, len(work), photo.name, options.quiet)
        show(0.0)
        named = named_format(target) if len(work) == 1 else None
        try:
            order = Order(
                photo.read_bytes(),
                style=options.style,
                style_fine=options.style_fine,
                style_coarse=options.style_coarse,
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
                style_image=painting,
            )
            made = fill(order, show)
            names = _style_names(made.style, options.style_image)
            path = write(made.content, made.format, photo, target, "-".join(names))
        except (Refused, OSError) as error:
            failed += 1
            say(f"{photo}: {error}")
        else:
            if not options.quiet:
                say(str(path))
    _progress(len(work), len(work), "", options.quiet, 0.0)
    if failed:
        say(f"{failed} of {len(work)} could not be made")
    return SOME_FAILED if failed else DONE


def _style_names(applied: str, painting: Path | None) -> list[str]:
    """What a result is called after: a painting's file stands for its style."""
    items = [item.rpartition("=")[2] for item in re.split("; |,", applied)]
    names = [next(part for part in item.split(":") if not part.isdigit()) for item in items]
    return [painting.stem if painting and name == "style_image" else name for name in names]


def _progress(done: int, total: int, name: str, quiet: bool, share: float) -> None:
    """``share`` is how much of the next picture is done: a large one has tiles to tell of."""
    if not quiet and (total > 1 or share):
        bar((done + share) / total, f"{done}/{total} {name}", end="\n" if done == total else "")


if __name__ == "__main__":
    sys.exit(main())
