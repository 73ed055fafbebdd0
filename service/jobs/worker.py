"""A worker: a process that does the jobs whose leases it is given, one at a time. The only one that imports torch.

``python -m service.jobs.worker DATA_DIR STORE THREADS RESULT_TTL_S``. A line ``<job id> <attempt>`` on stdin begins a
job; lines on stdout tell of it: ``told`` (watchers have something to read) and ``done`` (whatever became of it). The
end of stdin is the end of the service, and of this process.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.errors import Internal, OutOfMemory, RunDiverged, ServiceError
from service.images import Picture, decode, decode_mask, encode, open_photo
from service.jobs.job import Lease, Limits, Loss
from service.jobs.parameters import Parameters
from service.jobs.queue import EmbeddedQueue, JobQueue, LeaseLost
from service.models.store import feature_weights

if TYPE_CHECKING:
    from service.gatys.run import Checkpoint, Pixels, Progress
    from service.gatys.vgg import VGG

log = logging.getLogger(__name__)

NICE = 10  # the fast path goes first
REPORT_S, CHECKPOINT_S = 1.0, 3.0
FIRST_PREVIEW = 5  # evaluations; then at 10, 20, 40 …
PREVIEW_QUALITY = 85
MANY_PIXELS = 2**31  # our own files were measured when they came in


def main(arguments: Sequence[str]) -> int:
    """Work until stdin ends."""
    root, store = map(Path, arguments[:2])
    threads, limits = int(arguments[2]), Limits(result_ttl_s=float(arguments[3]))
    os.nice(NICE)
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    worker = Worker(EmbeddedQueue(root, limits, owner=False), store)
    _say("ready")
    while True:
        job_id, attempt = orders.get().split()
        worker.work(Lease(job_id, int(attempt)))
        _say("done")


class Worker:
    """Does jobs of a queue with the networks of a store."""

    def __init__(self, jobs: JobQueue, store: Path) -> None:
        self._jobs, self._store = jobs, store
        self._vgg: tuple[object, VGG] | None = None

    def work(self, lease: Lease) -> None:
        """Do the job. Never raises: what goes wrong becomes the job's error, and a lost lease ends it quietly."""
        from service.gatys.optimize import Diverged

        try:
            try:
                self._jobs.succeed(lease, self._paint(lease))
            except Diverged as error:
                self._jobs.fail(lease, RunDiverged(str(error)))
            except ServiceError as error:
                self._jobs.fail(lease, error)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
                    raise
                self._jobs.fail(lease, OutOfMemory("the optimisation does not fit: ask for a smaller max_side"))
        except LeaseLost:
            log.info("job %s is no longer ours", lease.job_id)
        except Exception:
            log.exception("a bug: job %s", lease.job_id)
            try:
                self._jobs.fail(lease, Internal("please report it, with the id of the job"))
            except LeaseLost:
                return

    def _paint(self, lease: Lease) -> bytes:
        from service.gatys.run import paint

        order = _Inputs.read(self._jobs.inputs(lease), self._jobs.parameters(lease))
        reporter = _Reporter(self._jobs, lease, order)
        painted = paint(
            self._network(order.parameters),
            order.photo.rgb,
            order.paintings,
            order.parameters,
            mask=order.mask,
            resume=_unpacked(self._jobs.checkpoint(lease)),
            observe=reporter.observe,
        )
        return encode(Picture(painted, order.photo.alpha), order.parameters.format, order.parameters.quality)

    def _network(self, parameters: Parameters) -> VGG:
        """The last job's network is kept. Raises Internal where its weights have left the store."""
        from service.gatys.run import load_vgg

        key = parameters.network, parameters.defaults.pooling, parameters.defaults.precision
        if self._vgg is None or self._vgg[0] != key:
            weights = feature_weights(self._store, parameters.network)
            if weights is None:
                raise Internal(f"the weights of {parameters.network} have left the store")
            self._vgg = key, load_vgg(weights, parameters)
        return self._vgg[1]


@dataclass(frozen=True)
class _Inputs:
    parameters: Parameters
    photo: Picture
    paintings: list[tuple[Pixels, float]]
    mask: Pixels | None

    @classmethod
    def read(cls, files: Mapping[str, bytes], parameters: Parameters) -> _Inputs:
        photo = _picture(files["photo"])
        paintings = [_picture(files[f"painting-{index}"]).rgb for index in range(len(parameters.style))]
        mask = None
        if "mask" in files:
            height, width = photo.rgb.shape[:2]
            mask = decode_mask(open_photo(files["mask"], MANY_PIXELS), (width, height))
        return cls(parameters, photo, list(zip(paintings, parameters.style.values(), strict=True)), mask)


class _Reporter:
    """Tells the queue how a run goes: losses every second, a picture at doubling steps, a checkpoint now and then.

    That the lease holds is asked at every evaluation: so fast does a cancellation arrive.
    """

    def __init__(self, jobs: JobQueue, lease: Lease, order: _Inputs) -> None:
        self._jobs, self._lease, self._order = jobs, lease, order
        self._begun: tuple[int, float] | None = None
        self._reported = -REPORT_S
        self._saved = time.monotonic()

    def observe(self, progress: Progress) -> None:
        """Raises LeaseLost."""
        now = time.monotonic()
        self._begun = self._begun or (progress.iteration - 1, now)
        self._jobs.check(self._lease)
        if now - self._reported >= REPORT_S or progress.iteration == progress.iterations:
            self._reported = now
            losses = progress.losses
            loss = Loss(losses.total, losses.content, losses.style, losses.tv)
            self._jobs.report(self._lease, progress.iteration, loss, self._eta_s(progress, now))
            _say("told")
        if _is_shown(progress.iteration):
            preview = encode(Picture(progress.pixels()), "jpeg", PREVIEW_QUALITY)
            self._jobs.show(self._lease, progress.iteration, preview)
            _say("told")
        if now - self._saved >= CHECKPOINT_S:
            self._saved = now
            self._jobs.save_checkpoint(self._lease, _packed(progress.checkpoint()))

    def _eta_s(self, progress: Progress, now: float) -> float:
        """At the pace so far; finer stages to come take longer than that."""
        assert self._begun is not None
        first, since = self._begun
        pace_s = (now - since) / max(1, progress.iteration - first - 1)
        return pace_s * (progress.iterations - progress.iteration)


def _is_shown(iteration: int) -> bool:
    times, rest = divmod(iteration, FIRST_PREVIEW)
    return rest == 0 and times > 0 and times & (times - 1) == 0


def _picture(content: bytes) -> Picture:
    photo = open_photo(content, MANY_PIXELS)
    return decode(photo, (photo.width, photo.height))


def _packed(checkpoint: Checkpoint) -> bytes:
    file = io.BytesIO()
    numbers = np.array([checkpoint.iteration, checkpoint.stage, checkpoint.stage_iteration])
    np.savez(file, numbers=numbers, picture=checkpoint.picture)
    return file.getvalue()


def _unpacked(content: bytes | None) -> Checkpoint | None:
    from service.gatys.run import Checkpoint

    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        iteration, stage, stage_iteration = (int(number) for number in saved["numbers"])
        return Checkpoint(iteration, stage, stage_iteration, saved["picture"])


def _listen(orders: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line)
    os._exit(0)  # the service has ended: its next one resumes from the checkpoint


def _say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
