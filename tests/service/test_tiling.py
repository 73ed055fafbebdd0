"""Large pictures: tiles without seams, and jobs for what takes too long to wait for. The networks are the shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.models.catalog import WHOLE_PIXELS, ServedModel, served
from service.models.store import ModelStore
from service.models.style import Mix
from service.models.tiling import STRIDE, THUMBNAIL_SIDE, TiledNetwork, halo_of, spans
from tests.service.conftest import ClientFactory
from tests.service.pictures import encoded, gradient, pixels
from tests.service.test_stylize import post, problem
from tests.service.toy import VECTORS, toy_stylized

STORE = Path(__file__).parents[2] / "model_store"
CORE = 64  # px of a tile, in these tests


@pytest.fixture(scope="module")
def multistyle() -> ServedModel:
    return served(ModelStore(STORE).load(STORE / "multistyle" / "2"), "cpu", 2)


@pytest.fixture(scope="module")
def tiled(multistyle: ServedModel) -> TiledNetwork:
    assert multistyle.tiled is not None
    return multistyle.tiled


def noise(width: int, height: int) -> np.ndarray:
    """Blocks of colour with noise on them: something at every scale."""
    rng = np.random.default_rng(width)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(blocks + rng.normal(0, 20, blocks.shape), 0, 255).astype(np.uint8)


def row_of(model: ServedModel, style: str) -> np.ndarray:
    row: np.ndarray = model.rows([Mix({style: 1.0})], 1.0)[0]
    return row


@pytest.mark.parametrize("length", [1, 90, 911, 912, 913, 8192])
def test_cores_cover_a_side_once_and_have_a_halo(length: int) -> None:
    found = spans(length, 1024, 56)
    assert [span.core_start for span in found] == [0, *(span.core_stop for span in found[:-1])]
    assert found[-1].core_stop == length
    for span in found:
        assert span.start == 0 or span.core_start - span.start == 56
        assert span.stop == length or span.stop - span.core_stop == 56
        assert span.start % STRIDE == 0
        assert span.stop - span.start <= 1024


@pytest.mark.parametrize("size", [(301, 233), (90, 400)])
def test_tiles_are_the_whole_picture_to_the_bit(
    multistyle: ServedModel, tiled: TiledNetwork, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    image, row = noise(*size), row_of(multistyle, "starry_night")
    whole = tiled.run(image, row)
    assert np.abs(whole.astype(int) - multistyle.begin()(image[None], row[None])[0]).max() <= 1
    monkeypatch.setattr("service.models.tiling.TILE_SIDE", 2 * tiled._halo + CORE)
    assert tiled.tiles(size) > 1
    done: list[None] = []
    cut = tiled.run(image, row, observe=lambda: done.append(None))
    assert np.array_equal(cut, whole)
    assert len(done) == tiled.tiles(size)


def test_a_halo_of_much_less_than_the_radius_would_leave_seams(
    multistyle: ServedModel, tiled: TiledNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, row = noise(300, 120), row_of(multistyle, "starry_night")
    whole = tiled.run(image, row)
    monkeypatch.setattr(tiled, "_halo", halo_of(24))
    monkeypatch.setattr("service.models.tiling.TILE_SIDE", 2 * tiled._halo + CORE)
    cut = tiled.run(image, row)
    assert np.abs(cut.astype(int) - whole).max() > 4


def test_statistics_come_from_a_thumbnail(multistyle: ServedModel, tiled: TiledNetwork) -> None:
    """A preview and its large version are told apart by detail, not by colour."""
    small = noise(512, 384).repeat(1, 0)
    large = small.repeat(4, 0).repeat(4, 1)
    assert max(large.shape) > THUMBNAIL_SIDE
    row = row_of(multistyle, "great_wave")
    result = tiled.run(large, row)
    preview = multistyle.begin()(small[None], row[None])[0]
    assert np.abs(result.mean((0, 1)) - preview.mean((0, 1))).max() < 25


def test_a_large_picture_goes_in_tiles_and_comes_out_the_same(start: ClientFactory) -> None:
    photo = gradient(2000, 1100)
    assert WHOLE_PIXELS < 2000 * 1100
    for strength in (0.5, 1):
        found = pixels(post(start(), encoded(photo), strength=strength, stroke=1, max_side=2000).content)
        wanted = np.rint(photo + strength * (toy_stylized(photo, VECTORS["red"]).astype(np.float32) - photo))
        assert np.abs(found - wanted).max() <= 1


def test_what_cannot_be_a_job_is_refused_with_a_side_that_works(start: ClientFactory, tmp_path: Path) -> None:
    none = start(sync_max_pixels=900, gatys_workers=0, data_dir=tmp_path / "none")
    detail = problem(post(none, max_side=60), 413, "too_many_pixels")["detail"]
    assert "STYLIZE_GATYS_WORKERS" in detail
    side = int(detail.split("max_side of ")[1].split()[0])
    assert post(none, max_side=side).status_code == 200
    some = start(sync_max_pixels=900, data_dir=tmp_path / "some")
    assert "no graphs for tiles" in problem(post(some, style="ink", max_side=60), 413, "too_many_pixels")["detail"]
