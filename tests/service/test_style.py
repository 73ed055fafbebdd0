import numpy as np
import pytest

from service.models.style import Mix, blend, rows_for

VECTORS = {"photo": np.zeros(2, np.float32), "a": np.array([1, 0], np.float32), "b": np.array([0, 1], np.float32)}


def test_weights_are_normalised() -> None:
    assert Mix.parse("a:1,b:3").weights == {"a": 0.25, "b": 0.75}
    assert str(Mix.parse("a:1, b:3")) == "a:0.25,b:0.75"
    assert str(Mix.parse("a:7")) == "a"
    assert Mix.parse("a,b").weights == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    "text", ["", "a:", "a:-1", "a:0", "a:nan", "a:inf", "a:1,a:2", "A", "../a", "a:1:2", "a,,b", "a:x"]
)
def test_a_malformed_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"weight|name"):
        Mix.parse(text)


def test_rows_are_as_few_as_the_strength_needs() -> None:
    mix = Mix.parse("a:1,b:1")
    assert len(rows_for(VECTORS, [mix], 0)) == 0
    assert rows_for(VECTORS, [mix], 1).tolist() == [[0.5, 0.5]]
    assert rows_for(VECTORS, [mix], 0.5).tolist() == [[0.25, 0.25], [0, 0]]
    assert rows_for(VECTORS, [mix, Mix.parse("a")], 0.5).tolist() == [[0.25, 0.25], [0.5, 0], [0, 0]]
    assert rows_for({}, [mix], 0.5).shape == (1, 0)


def test_strength_is_exact_at_both_ends_and_follows_the_formula_between() -> None:
    rng = np.random.default_rng(0)
    photo, stylized, identity = rng.integers(0, 256, (3, 5, 7, 3), np.uint8)
    assert np.array_equal(blend(photo, np.empty((0, 5, 7, 3), np.uint8), 0), photo)
    assert np.array_equal(blend(photo, stylized[None], 1), stylized)
    x, t, p = (array.astype(np.float64) for array in (photo, stylized, identity))
    conditional = blend(photo, np.stack([stylized, identity]), 0.3)
    assert np.abs(conditional - np.clip(t + 0.7 * (x - p), 0, 255)).max() <= 0.51
    assert np.abs(blend(photo, stylized[None], 0.3) - (x + 0.3 * (t - x))).max() <= 0.51
