"""The page, used in a real browser (Debian's Chromium, driven by Playwright) against a real server.

Skipped, and counted as skipped, where there is no Chromium: ``apt-get install chromium``.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.service.pictures import encoded, gradient
from tests.service.test_process import serving, wait_until_ready
from tests.service.toy import VECTORS, toy_stylized, write_store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium, to test the page"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
]
PATIENCE_MS = 60_000
PHOTO = gradient(600, 400)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store, data = write_store(tmp_path_factory.mktemp("store")), tmp_path_factory.mktemp("data")
    with serving(STYLIZE_MODEL_STORE=str(store), STYLIZE_DATA_DIR=str(data)) as (url, _):
        wait_until_ready(url)
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page with its styles there. Whatever it throws, and whatever it loads from elsewhere, fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True, locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    thrown: list[object] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: thrown.append(error))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.wait_for_selector(".card")
    yield page
    context.close()
    assert not thrown
    assert all(address.startswith((url, "data:", "blob:")) for address in asked)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(PHOTO))
    return path


def only(page: Page, style: str) -> None:
    """Choose this style and no other."""
    for card in page.locator(".card").all():
        card.locator("input").set_checked(card.locator("input").input_value() == style, force=True)


def said(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.locator("#status")).to_contain_text(text, timeout=PATIENCE_MS)


def saved(page: Page, tmp_path: Path) -> np.ndarray:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download full size").click()
    download.value.save_as(tmp_path / "saved.png")
    return np.asarray(Image.open(tmp_path / "saved.png"))


def test_a_photo_becomes_a_picture_and_is_saved_at_full_size(page: Page, photo: Path, tmp_path: Path) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    said(page, re.compile(r"^Red · "))
    assert np.array_equal(saved(page, tmp_path), toy_stylized(PHOTO, VECTORS["red"]))
    said(page, re.compile("600 . 400"))


def test_weights_are_percent_and_strength_is_applied(page: Page, photo: Path, tmp_path: Path) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    page.locator(".card [value=green]").check(force=True)
    page.get_by_label("Weight of Green").fill("50")
    page.get_by_label("Weight of Red").fill("100")
    said(page, "Green 33 %")
    page.get_by_label("Strength").fill("50")
    mixed = PHOTO + (np.array([80 * 2 / 3, 80 / 3, 0]) * 0.5)
    assert np.abs(saved(page, tmp_path) - mixed).max() <= 1
    page.get_by_label("Strength").fill("0")
    assert np.array_equal(saved(page, tmp_path), PHOTO)


def test_colours_are_kept_where_asked(page: Page, photo: Path, tmp_path: Path) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    page.get_by_label("the photo's", exact=True).check()
    kept = saved(page, tmp_path).astype(int)
    assert np.abs((kept - kept.mean(axis=-1, keepdims=True)) - (PHOTO - PHOTO.mean(axis=-1, keepdims=True))).max() < 3
    assert (kept > PHOTO).all()


@pytest.mark.parametrize("way", ["pointer", "keyboard"])
def test_only_what_was_brushed_is_painted(page: Page, photo: Path, tmp_path: Path, way: str) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    said(page, "Red")
    page.get_by_role("button", name="Brush").click()
    if way == "pointer":
        box = page.locator("#mask").bounding_box()
        assert box
        page.locator("#mask").scroll_into_view_if_needed()
        page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2, steps=4)
        page.mouse.up()
    else:
        page.locator("#mask").press("Space")
    result, painted = saved(page, tmp_path), toy_stylized(PHOTO, VECTORS["red"])
    assert np.array_equal(result[200, 300], painted[200, 300])
    assert np.array_equal(result[:100], PHOTO[:100])
    page.get_by_role("button", name="Whole picture").click()
    assert np.array_equal(saved(page, tmp_path), painted)


def test_a_poster_is_a_job_and_saved_in_its_size(page: Page, tmp_path: Path) -> None:
    large = gradient(2200, 2000)
    (tmp_path / "large.png").write_bytes(encoded(large))
    page.set_input_files("#file", tmp_path / "large.png")
    only(page, "red")
    said(page, re.compile(r"^Red · "))
    with page.expect_response(lambda response: response.status == 202):
        result = saved(page, tmp_path)
    assert result.shape == large.shape
    assert np.abs(result.astype(int) - toy_stylized(large, VECTORS["red"])).mean() < 3
    said(page, re.compile("2200 . 2000"))


def test_before_and_after_are_compared_by_the_keyboard(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    said(page, " · ")
    page.get_by_label(re.compile("Before and after")).press("End")
    expect(page.locator("#stage")).to_have_attribute("style", re.compile("--at: *100%"), timeout=PATIENCE_MS)


def test_it_speaks_chinese_and_remembers(page: Page) -> None:
    page.get_by_label("Language").select_option("zh")
    expect(page.get_by_text("选择照片")).to_be_visible()
    page.reload()
    expect(page.get_by_text("选择照片")).to_be_visible()
    assert page.evaluate("() => document.documentElement.lang") == "zh-Hans"


def test_what_goes_wrong_is_said_in_words(page: Page, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a photo")
    page.set_input_files("#file", tmp_path / "notes.txt")
    said(page, "not a JPEG")
    (tmp_path / "broken.png").write_bytes(encoded(PHOTO)[:500])
    page.set_input_files("#file", tmp_path / "broken.png")
    said(page, "cannot open")
    page.get_by_role("button", name="Camera").click()
    said(page, "The camera may not be used")
    page.set_input_files("#file", photo)
    said(page, " · ")
    page.route("**/stylize", lambda route: route.abort())
    page.get_by_label("Strength").fill("70")
    said(page, "does not answer")
    page.unroute("**/stylize")
    page.get_by_role("button", name="Try again").click()
    said(page, " · ")


def test_sliding_leaves_one_request_standing(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    said(page, " · ")
    answered: list[int] = []
    page.on("response", lambda response: answered.append(response.status) if "/stylize" in response.url else None)
    page.evaluate(
        """() => {
            const slider = document.querySelector("#strength");
            for (let value = 0; value <= 100; value += 5) {
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
            }
        }"""
    )
    page.wait_for_timeout(3000)
    assert len(answered) <= 4
    assert set(answered) <= {200}
    said(page, " · ")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_a_narrow_screen(page: Page, photo: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#file", photo)
    said(page, " · ")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    said(page, " · ")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas")].filter((element) =>
            !(element.ariaLabel || element.textContent.trim() ||
                [...element.labels ?? []].some((label) => label.textContent.trim()))
        ).map((element) => element.id)"""
    )
    assert nameless == []


def test_the_page_weighs_less_than_300_kb_without_pictures() -> None:
    web = Path(__file__).parent.parent.parent / "service" / "web"
    assert sum(path.stat().st_size for path in web.iterdir() if path.suffix != ".jpg") < 300_000
