"""Celery, as the web tier uses it: tickets go out, and are counted."""

from __future__ import annotations

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import ChannelError, OperationalError

from service.errors import NotReady, Translation, translating

QUEUE = "stylize"
TASK = "stylize.work"
AWAY_S = 5.0
MISSING = "404"  # of AMQP, and of what imitates it as a string: there is no such queue


def celery_app(broker_url: str) -> Celery:
    """What both ends agree on."""
    app = Celery("stylize", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_timeout=AWAY_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # for ever: jobs wait for their broker
        broker_transport_options={"socket_timeout": AWAY_S, "socket_connect_timeout": AWAY_S},
    )
    return app


class Tickets:
    """Raises ValueError where the URL is none of a broker."""

    def __init__(self, broker_url: str) -> None:
        self._app = celery_app(broker_url)

    def issue(self, count: int) -> None:
        """Raises NotReady where the broker is away."""
        with translating(AWAY):
            for _ in range(count):
                self._app.send_task(TASK, retry=True, retry_policy={"max_retries": 1, "interval_start": 0})

    def waiting(self) -> int:
        """Tickets that nobody took. Raises NotReady where the broker is away."""
        with translating(AWAY), self._app.connection_for_write() as connection:
            try:
                return int(connection.default_channel.queue_declare(QUEUE, passive=True).message_count)
            except ChannelError as error:
                if str(error.reply_code) != MISSING:
                    raise
                return 0  # nobody ever issued one

    def close(self) -> None:
        self._app.close()


def _away(error: Exception) -> Exception:
    return NotReady([f"the jobs' broker cannot be reached: {error}"], AWAY_S)


AWAY: Translation = {OperationalError: _away, AMQPError: _away, OSError: _away}
