"""``python -m service``."""

from __future__ import annotations

import os
import socket
import sys

from service import tracing
from service.app import create_admin, create_app
from service.engine import Engine
from service.errors import ConfigurationError, ModelRefused
from service.logs import configure
from service.models.store import CARD, Card, ModelStore
from service.routes.pages import WEB
from service.serving import Config, Server
from service.settings import Settings


def main() -> int:
    """Serve until told to stop: 0. 1 where the port cannot be had, 2 where the configuration is wrong."""
    try:
        settings = Settings.from_env(os.environ)
        configure(settings.log)
        app = create_app(settings, tracing.from_environment(os.environ))
    except ConfigurationError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    engine: Engine = app.state.engine
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=2048)
        admin = _admin(engine, settings)
    except OSError as error:
        print(f"cannot listen: {error}; set STYLIZE_PORT or STYLIZE_ADMIN_PORT", file=sys.stderr)
        return 1
    server = Server(Config(app, settings.send_timeout_s), engine.drain, settings.drain_delay_s, engine.reload, admin)
    print(greeting(settings, listener.getsockname()[1]), flush=True)
    server.run(sockets=[listener])
    return 0


def _admin(engine: Engine, settings: Settings) -> tuple[Config, socket.socket] | None:
    """On loopback alone, and only where a port was given."""
    if settings.admin_port is None:
        return None
    listener = socket.create_server(("127.0.0.1", settings.admin_port))
    return Config(create_admin(engine), settings.send_timeout_s), listener


def greeting(settings: Settings, port: int) -> str:
    """Where to point a browser, and a command that works as it stands."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    url = f"http://{host}:{port}"
    return (
        f"Style transfer on {url}\n"
        f"  browser    {url}/\n"
        f"  reference  {url}/docs\n"
        f"  try        curl --data-binary @{WEB / 'example.jpg'} '{url}/stylize?style={_a_style(settings)}' "
        "-H 'Content-Type: image/jpeg' > out.jpg"
    )


def _a_style(settings: Settings) -> str:
    """A style of the store as its cards have it; the models themselves load later, and say what is wrong then."""
    favourite = "starry_night"
    try:
        folders = ModelStore(settings.model_store).folders()
        cards = [Card.model_validate_json((folder / CARD).read_bytes()) for folder in folders]
    except (ModelRefused, OSError, ValueError):
        return favourite
    styles = [style.name for card in cards for style in card.styles]
    return favourite if favourite in styles or not styles else styles[0]


if __name__ == "__main__":
    sys.exit(main())
