"""The shipped models on a GPU. Without one nothing here is tested."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from bench.work import jpeg, shipped
from service.errors import OutOfMemory
from service.models.catalog import WHOLE_PIXELS, served
from service.models.session import Gpu, Session, cuda_works
from service.models.store import StoredModel
from tests.service.live import live

pytestmark = pytest.mark.skipif(not cuda_works(), reason="NOT TESTED: this ONNX Runtime has no CUDA that works")

ROOT = Path(__file__).parents[2]
NAMES = ("multistyle", "fast")
SMALL_BYTES = 256 * 2**20  # of a GPU's memory: enough for small pictures alone


@pytest.fixture(scope="module", params=NAMES)
def stored(request: pytest.FixtureRequest) -> StoredModel:
    return shipped(request.param)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Photos, not noise: (N, H, W, 3)."""
    from PIL import Image

    files = itertools.cycle(sorted((ROOT / "tests" / "photos").glob("*.jpg")))
    found = [Image.open(path).convert("RGB").resize((width, height)) for path in itertools.islice(files, count)]
    return np.stack([np.asarray(picture) for picture in found])


def rows_of(stored: StoredModel, count: int) -> np.ndarray:
    return np.stack(list(itertools.islice(itertools.cycle(stored.vectors.values()), count)))


@pytest.mark.parametrize("size", [(40, 40), (65, 47), (512, 384)])
def test_cuda_comes_within_one_of_the_cpu(stored: StoredModel, size: tuple[int, int]) -> None:
    images, rows = pictures(2, *size), rows_of(stored, 2)
    cpu, cuda = (Session(stored, provider, 2).run(images, rows).astype(int) for provider in ("cpu", "cuda"))
    assert np.abs(cpu - cuda).max() <= 1


def test_a_batch_comes_within_one_of_its_pictures_alone(stored: StoredModel) -> None:
    session = Session(stored, "cuda", 1)
    images, rows = pictures(8, 256, 200), rows_of(stored, 8)
    together = session.run(images, rows).astype(int)
    alone = np.concatenate([session.run(images[i : i + 1], rows[i : i + 1]) for i in range(len(images))])
    assert np.abs(together - alone).max() <= 1


def test_what_is_painted_beside_others_is_what_it_is_alone(stored: StoredModel) -> None:
    model = served(stored, "cuda", 8, Gpu(lanes=8), lanes=True)
    sizes = [(512, 512), (300, 200), (384, 512), (480, 640)] * 4
    assert model.lanes_first
    assert all(height * width <= model.lane_pixels for height, width in sizes)
    images, rows = [pictures(1, *size) for size in sizes], rows_of(stored, len(sizes))
    alone = [model.begin()(image, row[None]) for image, row in zip(images, rows, strict=True)]
    with ThreadPoolExecutor(8) as lanes:
        beside = lanes.map(lambda image, row: model.begin(lane=True)(image, row[None]), images, rows)
        for one, other in zip(alone, beside, strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_less_precise_pictures_are_not_to_be_told_apart(stored: StoredModel, precision: str) -> None:
    if precision == "fp16" and not stored.fp16:
        pytest.skip("NOT TESTED: the model has no graph of fp16")
    chosen = stored.halved() if precision == "fp16" else stored
    images, rows = pictures(3, 512, 384), rows_of(stored, 3)
    exact = Session(stored, "cuda", 1).run(images, rows).astype(int)
    found = Session(chosen, "cuda", 1, Gpu(precision=precision)).run(images, rows)  # type: ignore[arg-type]
    difference = np.abs(exact - found)
    assert difference.mean() <= 0.5
    assert np.quantile(difference, 0.999) <= 8


def test_large_pictures_go_in_tiles(stored: StoredModel) -> None:
    images, rows = pictures(1, 1500, 1600), rows_of(stored, 1)
    assert images[0, :, :, 0].size > WHOLE_PIXELS
    cpu, cuda = (served(stored, provider, 4).begin()(images, rows).astype(int) for provider in ("cpu", "cuda"))
    assert np.abs(cpu - cuda).max() <= 1


def test_cuda_s_memory_can_be_bounded_and_its_end_is_told() -> None:
    stored = shipped()
    session = Session(stored, "cuda", 1, Gpu(SMALL_BYTES))
    row = rows_of(stored, 1)
    session.warm()
    with pytest.raises(OutOfMemory):
        session.run(np.zeros((1, 2048, 2048, 3), np.uint8), row)
    assert session.run(np.zeros((1, 64, 64, 3), np.uint8), row).shape == (1, 64, 64, 3)


def test_a_run_that_is_stopped_ends_early_and_the_next_is_whole() -> None:
    stored = shipped()
    model = served(stored, "cuda", 1)
    images, rows = pictures(8, 512, 512), rows_of(stored, 8)
    expected = model.begin()(images, rows)
    run = model.begin()
    run.stop()
    with pytest.raises(Exception, match=r"(?i)terminat"):
        run(images, rows)
    assert np.array_equal(model.begin()(images, rows), expected)


def test_a_run_on_its_way_is_stopped_at_once() -> None:
    stored = shipped()
    model = served(stored, "cuda", 1)
    images, rows = pictures(16, 1024, 1024), rows_of(stored, 16)
    model.begin()(images, rows)
    started = time.perf_counter()
    model.begin()(images, rows)
    whole_s = time.perf_counter() - started
    run = model.begin()
    stopper = threading.Timer(whole_s / 10, run.stop)
    started = time.perf_counter()
    stopper.start()
    try:
        run(images, rows)
        how = "ended as a whole"
    except Exception as error:
        how = f"was stopped: {type(error).__name__}"
    stopped_s = time.perf_counter() - started
    print(f"\na run takes {whole_s:.3f} s; stopped after a tenth of it {how}, {stopped_s:.3f} s after its start")
    assert stopped_s < whole_s + 0.5


@pytest.fixture(scope="module")
def small_gpu() -> Iterator[str]:
    """A service with little of a GPU's memory."""
    with live(STYLIZE_PROVIDER="cuda", STYLIZE_GPU_MEM_LIMIT_BYTES=str(SMALL_BYTES), STYLIZE_GATYS_WORKERS="0") as ours:
        yield ours.url


def test_a_picture_that_does_not_fit_is_507_and_the_next_is_painted(small_gpu: str) -> None:
    def ask(side: int) -> int:
        headers, query = {"Content-Type": "image/jpeg"}, "model=multistyle&style=kiss&max_side=2048"
        return httpx.post(
            f"{small_gpu}/stylize?{query}", content=jpeg(side, side), headers=headers, timeout=60
        ).status_code

    assert [ask(1400), ask(128), ask(1400), ask(128)] == [507, 200, 507, 200]
