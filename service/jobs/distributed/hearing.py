"""Whether a worker still hears of tickets.

Where Celery loses Redis again before it has heard that it did, it may say that it is connected and take nothing any
more (celery/celery#8030, #8091, #10205). So a worker goes by what can be seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from service.errors import NotReady
from service.jobs.distributed.tickets import Tickets

log = logging.getLogger(__name__)

LISTENED_S = 2.0  # from one look to the next
DEAF_S = 20.0  # a ticket reaches an idle worker within milliseconds


class Hearing:
    """Looks on from a thread of its own, once it was begun: a worker is ``deaf`` where tickets wait and it is ``idle``,
    and yet ``taken``, the number of those it was handed, has stayed the same for DEAF_S. Then ``end`` is called."""

    def __init__(
        self, tickets: Tickets, idle: Callable[[], bool], taken: Callable[[], int], end: Callable[[], None]
    ) -> None:
        self._tickets, self._idle, self._taken, self._end = tickets, idle, taken, end
        self.deaf = False

    def begin(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        known, since = self._taken(), time.monotonic()
        while not self.deaf:
            time.sleep(LISTENED_S)
            taken = self._taken()
            if taken != known or not self._idle() or not self._tickets_wait():
                known, since = taken, time.monotonic()
            self.deaf = time.monotonic() - since > DEAF_S
        log.error("tickets wait and none has come for %g s: this worker hears of none, and ends", DEAF_S)
        self._end()

    def _tickets_wait(self) -> bool:
        try:
            return self._tickets.waiting() > 0
        except NotReady:
            return False  # nothing can be heard
