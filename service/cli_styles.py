"""``stylize style add painting.jpg --name irises``: styles of one's own, on a server."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from service.cli_gatys import SERVER, attended, told
from service.client import Client, StyleOrder
from service.terminal import DONE, WrongUse, read, say

TOKEN = "STYLIZE_ADMIN_TOKEN"  # the service's own variable, which its operators have at hand


def run(arguments: Sequence[str]) -> int:
    """The status of ``service.cli.main``, which answers for what this raises. Ctrl-C cancels the job that goes on."""
    options = _parser().parse_args(arguments)
    token = os.environ.get(TOKEN)
    with Client(options.server, headers={"Authorization": f"Bearer {token}"} if token else None) as client:
        options.act(client, options)
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stylize style",
        description="Styles of one's own on a server: made of a painting, taken away as packs, brought in, deleted.",
        epilog=f"On a server elsewhere it needs its token in {TOKEN}. exit status: as of stylize.",
    )
    commands = parser.add_subparsers(required=True, metavar="act")

    def command(name: str, act: Any, help_: str, **argument: Any) -> Any:  # noqa: ANN401
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(act=act)
        sub.add_argument("what", **argument)
        sub.add_argument(
            "--server", metavar="URL", default=SERVER, help="default: %(default)s, where make serve listens"
        )
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress; errors only")
        return sub

    name: Any = {"metavar": "NAME", "help": "the style's name"}
    add = command("add", _add, "Make a style of a painting.", type=Path, metavar="PAINTING", help="an image file")
    add.add_argument("--name", required=True, help="what requests call it: a-z, 0-9 and _")
    for field in ("title", "artist", "year"):
        add.add_argument(f"--{field}")
    add.add_argument("--credit", help="source and licence of the reproduction")
    add.add_argument("--steps", type=int, help="of training (default 200)")
    add.add_argument("--model", help="the network that it is for (default: the server's choice)")
    pack = command("pack", _pack, "Take a style away, as a file.", **name)
    pack.add_argument("-o", "--output", type=Path, help="default: NAME.zip")
    command("install", _install, "Bring a pack in.", type=Path, metavar="PACK", help="a file that `pack` wrote")
    command("remove", _remove, "Delete a style of one's own.", **name)
    return parser


def _add(client: Client, options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("title", "artist", "year", "credit", "steps", "model")}
    job = client.submit_style(StyleOrder(read(options.what), options.name, **given))
    with attended(client, job.id):
        style = client.style_of(job, partial(told, options.what.name) if not options.quiet else lambda event: None)
    _say(f"{style.name} is there, in {', '.join(style.models)}", options)


def _pack(client: Client, options: argparse.Namespace) -> None:
    path = options.output or Path(f"{options.what}.zip")
    content = client.pack(options.what)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise WrongUse(f"{path} cannot be written: {error}") from error
    _say(str(path), options)


def _install(client: Client, options: argparse.Namespace) -> None:
    _say(f"{client.install(read(options.what)).name} is there", options)


def _remove(client: Client, options: argparse.Namespace) -> None:
    client.remove_style(options.what)
    _say(f"{options.what} is gone", options)


def _say(text: str, options: argparse.Namespace) -> None:
    if not options.quiet:
        say(text)
