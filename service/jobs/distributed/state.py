"""The state of jobs in Redis: one Lua script, whose every command happens whole or not at all, by Redis' own clock."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from service.errors import NotReady

log = logging.getLogger(__name__)

PREFIX = "{stylize}"  # the braces keep all keys on one node of a cluster
TIMEOUT_S = 5.0
FOREVER_S = math.inf
RETRY_S, LONGEST_PAUSE_S = 0.5, 4.0
BUG = "BUG"  # of the script: nothing that waiting would mend
REFUSALS = {"NOTFOUND", "LEASELOST", "OTHERORDER", "OTHERSTORE", "FULL"}


Reply = Any  # a string, or a list of them: what the command of the script gives


class Refused(Exception):
    """The answer is no; ``reason`` is one of REFUSALS, and ``rest`` what it says beside."""

    def __init__(self, reason: str, rest: list[str]) -> None:
        super().__init__(reason)
        self.reason, self.rest = reason, rest


class State:
    """``patience_s`` is for how long a call waits for a Redis that is away: short where a client waits, for ever in a
    worker, which can do nothing without it. ``clock`` is for tests, in place of Redis' own.

    Raises ValueError where the URL is none of Redis'.
    """

    def __init__(self, url: str, patience_s: float = 1.0, clock: Callable[[], float] | None = None) -> None:
        self._redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # this class has a patience of its own
        )
        self._script = self._redis.register_script((Path(__file__).parent / "state.lua").read_text())
        self._patience_s, self._clock = patience_s, clock

    def call(self, command: str, **ask: object) -> Reply:
        """What the command of ``state.lua`` gives. Raises Refused, and NotReady where Redis stays away or cannot
        write."""
        arguments = [command, json.dumps(ask)] + ([repr(self._clock())] if self._clock else [])
        return self._patiently(lambda: self._script([PREFIX], arguments))

    def run_id(self) -> str:
        """Another one after every start of Redis. Raises NotReady."""
        return str(self._patiently(lambda: self._redis.info("server"))["run_id"])

    def weaknesses(self) -> list[str]:
        """How this Redis could lose jobs. Raises NotReady."""
        found = []
        if not self._patiently(lambda: self._redis.info("persistence"))["aof_enabled"]:
            found.append("Redis keeps no append-only file: what it is killed with is lost; set appendonly yes")
        policy = self._patiently(lambda: self._redis.info("memory")).get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            found.append(f"Redis may evict jobs when it is full; set maxmemory-policy noeviction in place of {policy}")
        return found

    def listen(self, told: Callable[[str, str], None], closing: threading.Event) -> None:
        """Tell of each job that something happens to, and of what, until ``closing``; an empty id stands for all of
        them, after Redis was away."""
        pause_s = RETRY_S
        while not closing.is_set():
            try:
                with self._redis.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
                    channel.subscribe(f"{PREFIX}:told")
                    told("", "")
                    pause_s = RETRY_S
                    while not closing.is_set():
                        if message := channel.get_message(timeout=1.0):
                            told(*message["data"].split())
            except (RedisError, OSError, ValueError) as error:  # the last of a connection that ``close`` has closed
                if not closing.is_set():
                    log.warning("nobody tells of jobs: %s", error)
                closing.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def close(self) -> None:
        self._redis.close()

    def _patiently(self, ask: Callable[[], Reply]) -> Reply:
        give_up, pause_s = time.monotonic() + self._patience_s, RETRY_S
        while True:
            try:
                return ask()
            except RedisError as error:
                reason, *rest = str(error).split() or [""]
                if isinstance(error, ResponseError) and reason in REFUSALS:
                    raise Refused(reason, rest) from error
                if reason == BUG:
                    raise
                if time.monotonic() >= give_up:
                    raise NotReady([f"the jobs' Redis cannot be used: {error}"], RETRY_S) from error
                log.warning("the jobs' Redis cannot be used, and is waited for: %s", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
