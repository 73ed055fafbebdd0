"""Who may write: whoever is on this machine, or has the token."""

from __future__ import annotations

import ipaddress
import secrets
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import Request

from service.errors import Forbidden, Unauthorized


class Writers:
    """``token`` is that of STYLIZE_ADMIN_TOKEN, if there is one."""

    def __init__(self, token: SecretStr | None) -> None:
        self._token = token

    def check(self, request: Request) -> None:
        """Raises Unauthorized, and Forbidden where no token could help."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._token and scheme.lower() == "bearer":
            wanted = self._token.get_secret_value().encode()
            if not secrets.compare_digest(given.strip().encode(), wanted):
                raise Unauthorized("the bearer token is not the one of STYLIZE_ADMIN_TOKEN")
        elif not (_from_here(request) and _of_this_page(request)):
            if self._token:
                raise Unauthorized("writing from elsewhere needs Authorization: Bearer and the service's admin token")
            raise Forbidden("writing is open from the service's own machine alone: STYLIZE_ADMIN_TOKEN is not set")


def _from_here(request: Request) -> bool:
    """Whether the connection's other end is this machine. What a proxy here passes on is not: uvicorn sees to it."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _of_this_page(request: Request) -> bool:
    """A browser here also sends what other pages have it send, and says which page that was."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")
