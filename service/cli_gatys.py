"""``stylize gatys photo.jpg -p painting.jpg``: any painting, optimised by a server and followed as it goes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

from service.client import Client, GatysOrder, Optimized, Refused, Unreachable
from service.colour import PreserveColor
from service.images import Format
from service.jobs.job import Event
from service.jobs.parameters import Init, NetworkName, Optimizer, PresetName
from service.terminal import (
    DONE,
    SOME_FAILED,
    WrongUse,
    bar,
    named_format,
    plan,
    read,
    say,
    write,
)

SERVER = "http://127.0.0.1:8000"
FIELDS = (
    "style", "style_image_weights", "preset", "content_weight", "style_weight", "tv_weight", "init", "optimizer",
    "iterations", "network", "max_side", "preserve_color", "quality", "seed",
)  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """The status of ``service.cli.main``, which answers for what this raises. Ctrl-C cancels the job that goes on."""
    options = _parser().parse_args(arguments)
    if (not options.painting) == (options.style is None):
        raise WrongUse("either a painting, -p FILE, or a style whose painting the server ships, -s STYLE")
    with Client(options.server) as client:
        return _optimize(client, plan(options.photos, options.output), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stylize gatys",
        description="Optimise a photo until it looks like any painting (Gatys et al. 2015): minutes, on a server.",
        epilog="exit status: as of stylize. What is not given is the preset's.",
    )
    add: Any = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="a JPEG, PNG or WebP file, a folder of them, or a pattern")
    add("-p", "--painting", type=Path, action="append", default=[], help="the painting: an image file; or several")
    add("--style-image-weights", metavar="W,W", help="how much each painting counts (default: all alike)")
    add("-s", "--style", metavar="MIX", help="instead: styles whose paintings the server ships")
    add("-o", "--output", type=Path, help="a file for one photo, a folder for several; default: beside each photo")
    add("--preset", choices=get_args(PresetName), help="default: balanced")
    add("--content-weight", type=float, help="how much of the photo stays")
    add("--style-weight", type=float, help="how much the painting counts")
    add("--tv-weight", type=float, help="how smooth it is")
    add("--init", choices=get_args(Init), help="what to begin with")
    add("--optimizer", choices=get_args(Optimizer))
    add("--iterations", type=int, help="evaluations, at most")
    add("--network", choices=get_args(NetworkName), help="whose features are compared (default vgg16)")
    add("--max-side", type=int, help="longest side of the result, in pixels (default 512)")
    add("--preserve-color", choices=get_args(PreserveColor), help="luminance or histogram: keep the photo's colours")
    add("--mask", type=Path, help="a greyscale picture: white is painted, black stays photo")
    add("--seed", type=int, help="makes two runs on one machine equal")
    add("--format", choices=get_args(Format), help="default: what the output's name says, else the photo's own")
    add("--quality", type=int, help="1 to 100, for JPEG and WebP (default 90)")
    add("--server", metavar="URL", default=SERVER, help="default: %(default)s, where make serve listens")
    add("-q", "--quiet", action="store_true", help="no progress; errors only")
    return parser


def _optimize(client: Client, work: Sequence[tuple[Path, Path | None]], options: argparse.Namespace) -> int:
    paintings, mask = tuple(read(path) for path in options.painting), read(options.mask) if options.mask else None
    label = "-".join(path.stem for path in options.painting) or options.style.replace(":", "-").replace(",", "-")
    fields = {name: getattr(options, name) for name in FIELDS}
    failed = 0
    for photo, target in work:
        named = cast(Format | None, named_format(target) if len(work) == 1 else None)  # gif: the server says that not
        try:
            format = options.format or named
            order = GatysOrder(photo.read_bytes(), style_image=paintings, mask=mask, format=format, **fields)
            made = _followed(client, order, photo.name, options.quiet)
            path = write(made.content, made.format, photo, target, label)
        except (Refused, OSError) as error:
            failed += 1
            say(f"{photo}: {error}")
        else:
            if not options.quiet:
                say(str(path))
    if failed:
        say(f"{failed} of {len(work)} could not be made")
    return SOME_FAILED if failed else DONE


def _followed(client: Client, order: GatysOrder, name: str, quiet: bool) -> Optimized:
    """Raises KeyboardInterrupt once the job is cancelled."""
    job = client.submit(order)
    if not quiet:
        bar(0, f"{name}: number {job.position} in the queue" if job.position else name)
    with attended(client, job.id):
        return client.wait(job, partial(told, name) if not quiet else lambda event: None)


@contextmanager
def attended(client: Client, job_id: str) -> Iterator[None]:
    """A job is waited for in the block: Ctrl-C cancels it, and where its server is lost that is said of it."""
    try:
        yield
    except KeyboardInterrupt:
        client.cancel(job_id)
        raise
    except Unreachable as error:
        raise Unreachable(f"{error}. Job {job_id} goes on, or will, where it is") from error


def told(name: str, event: Event) -> None:
    """Shows how a job goes."""
    if event.type == "progress":
        at = event.data
        loss = f", loss {at['loss']['total']:.3g}" if at["loss"] else ""
        bar(at["progress"], f"{at['iteration']}/{at['iterations']}{loss}, about {at['eta_s']:.0f} s left  {name}")
