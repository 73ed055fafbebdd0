"""The page, used in a real browser (Debian's Chromium, driven by Playwright) against a real server.

Skipped, and counted as skipped, where there is no Chromium: ``apt-get install chromium``.
"""

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from service.models.store import ModelStore
from tests.service.chromium import NEEDS_CHROMIUM, PATIENCE_MS, browser, complaints, opened
from tests.service.clips import clip, played
from tests.service.live import live
from tests.service.pictures import encoded, gradient
from tests.service.test_animations import animation
from tests.service.test_process import serving, wait_until_ready
from tests.service.toy import VECTORS, toy_stylized, write_conditional, write_store

__all__ = ["browser"]
pytestmark = NEEDS_CHROMIUM
PHOTO = gradient(600, 400)
ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests" / "photos"
Theme = Literal["light", "dark"]
HAND_OVER = """([way, place, bytes]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", { type: "image/png" }));
    const event = way === "pasted"
        ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true })
        : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
    document.querySelector(place).dispatchEvent(event);
}"""  # as a user's hand does it
CORNERS = """(selector) => {
    const image = document.querySelector(selector), canvas = document.createElement("canvas");
    const [width, height] = [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const at = (x, y) => [...context.getImageData(x, y, 1, 1).data].slice(0, 3);
    return [at(3, 3), at(width - 4, 3), at(3, height - 4), at(width - 4, height - 4)];
}"""
OVERHEAR = """(field) => {
    window.heard = [];
    const append = FormData.prototype.append;
    FormData.prototype.append = function (name, ...value) {
        if (name === field) window.heard.push(value[0]);
        append.call(this, name, ...value);
    };
}"""  # what is sent in a field: a browser does not show bodies with files in them


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store, data = write_store(tmp_path_factory.mktemp("store")), tmp_path_factory.mktemp("data")
    write_conditional(store, "fast")
    with serving(STYLIZE_MODEL_STORE=str(store), STYLIZE_DATA_DIR=str(data)) as (url, _):
        wait_until_ready(url)
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, url) as page:
        yield page


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
    page.get_by_label("photo's", exact=True).check()
    kept = saved(page, tmp_path).astype(int)
    assert np.abs((kept - kept.mean(axis=-1, keepdims=True)) - (PHOTO - PHOTO.mean(axis=-1, keepdims=True))).max() < 3
    assert (kept > PHOTO).all()


@pytest.mark.parametrize("way", ["pointer", "keyboard"])
def test_only_what_was_brushed_is_painted(page: Page, photo: Path, tmp_path: Path, way: str) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    said(page, "Red")
    page.get_by_role("button", name="Paint only a part").click()
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


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_what_moves_is_shown_still_and_saved_moving(page: Page, tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").write_bytes(clip((96, 64)) if kind == "mp4" else animation("gif"))
    page.set_input_files("#file", tmp_path / f"a.{kind}")
    only(page, "red")
    said(page, re.compile(r"^Red · "))
    expect(page.locator("#photo-note")).to_contain_text("This moves")
    with page.expect_download(timeout=PATIENCE_MS) as download:
        page.get_by_role("button", name="Download full size").click()
    assert download.value.suggested_filename == f"red.{kind}"
    download.value.save_as(tmp_path / "saved")
    content = (tmp_path / "saved").read_bytes()
    if kind == "mp4":
        said(page, "plays here")
        expect(page.locator("#film")).to_have_js_property("readyState", 4, timeout=PATIENCE_MS)
        frames, times_s = played(content)
        assert times_s == played(clip((96, 64)))[1]
        assert np.abs(frames[0].astype(int) - toy_stylized(gradient(96, 64), VECTORS["red"])).mean() < 4
    else:
        assert Image.open(tmp_path / "saved").n_frames == 3  # type: ignore[attr-defined]


def test_nothing_jumps_when_the_larger_picture_comes(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(gradient(1200, 900)))
    page.set_input_files("#file", tmp_path / "photo.png")
    said(page, " · ")
    box = page.locator("#stage").bounding_box()
    assert box
    assert box["width"] / box["height"] == pytest.approx(4 / 3, rel=0.01)
    width = "() => document.querySelector('#result').naturalWidth"
    assert page.evaluate(width) == 448
    while page.evaluate(width) == 448:
        page.wait_for_timeout(50)
    assert page.locator("#stage").bounding_box() == box


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


def test_every_shipped_style_has_a_chinese_title() -> None:
    strings = (ROOT / "service" / "web" / "strings.js").read_text()
    names = {style.name for model in ModelStore(ROOT / "model_store").networks() for style in model.card.styles}
    assert names
    assert {name for name in names if f"style_{name}:" not in strings} == set()


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


@pytest.mark.parametrize("way", ["pasted", "dropped"])
def test_a_photo_is_pasted_or_dropped(page: Page, photo: Path, way: str) -> None:
    page.evaluate(HAND_OVER, [way, "#stage", list(photo.read_bytes())])
    said(page, " · ")


def test_a_painting_that_is_dropped_on_its_place_is_no_photo(page: Page, photo: Path) -> None:
    page.evaluate(HAND_OVER, ["dropped", "#painting-drop", list(photo.read_bytes())])
    expect(page.locator("#painting")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#stage")).to_be_hidden()


def test_a_photo_is_taken_with_the_camera(browser: Browser, url: str) -> None:
    with opened(browser, url, permissions=["camera"]) as page:
        page.get_by_role("button", name="Camera").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible(timeout=PATIENCE_MS)
        page.wait_for_timeout(500)  # the first frames
        assert complaints(page) == []
        dialog.get_by_role("button", name="Take the photo").click()
        said(page, " · ")


def test_a_photo_is_upright_as_its_camera_says(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    upright = gradient(1200, 1800)
    turned = np.rot90(upright)
    (tmp_path / "turned.jpg").write_bytes(encoded(turned, "JPEG", quality=95, exif=exif))
    page.set_input_files("#file", tmp_path / "turned.jpg")
    said(page, " · ")
    shown = np.array(page.evaluate(CORNERS, "#before"))
    small = upright[[5, 5, -6, -6], [5, -6, 5, -6]]
    assert np.abs(shown - small).max() < 12, shown


def test_the_fast_network_can_be_chosen_where_there_is_one(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    only(page, "red")
    said(page, "Red")
    with page.expect_response("**/stylize") as answer:
        page.get_by_label("Network").select_option("fast")
    assert answer.value.headers["x-model"] == "fast@1"
    page.locator(".card [value=ink]").check(force=True)  # which it has not
    only(page, "ink")
    expect(page.get_by_label("Network")).to_have_value("")
    said(page, "Ink")


def test_the_palette_can_be_another_styles(page: Page, photo: Path, tmp_path: Path) -> None:
    page.set_input_files("#file", photo)
    only(page, "green")
    page.get_by_label("Palette of").select_option("negative")
    said(page, "Green, in the colours of Negative")
    assert np.array_equal(saved(page, tmp_path), toy_stylized(PHOTO, [0, 80, 0, 1]))
    with page.expect_response("**/stylize") as answer:
        page.get_by_label("Palette of").select_option("")
    assert answer.value.headers["x-style"] == "green"


def test_a_painting_of_ones_own_is_a_style_like_the_others(page: Page, photo: Path, tmp_path: Path) -> None:
    painting = tmp_path / "blue night.png"
    painting.write_bytes(encoded(np.full((60, 50, 3), (10, 20, 30), np.uint8)))
    page.set_input_files("#file", photo)
    only(page, "red")
    said(page, re.compile("^Red · "))
    page.set_input_files("#own-file", painting)
    said(page, re.compile("^Your painting · "))
    assert np.abs(saved(page, tmp_path) - toy_stylized(PHOTO, [10, 20, 30, 0]).astype(int)).max() <= 2
    page.locator(".card [value=red]").check(force=True)
    said(page, "Your painting 50 % + Red 50 %")
    assert np.abs(saved(page, tmp_path) - toy_stylized(PHOTO, [45, 10, 15, 0]).astype(int)).max() <= 2
    only(page, "red")
    page.get_by_label("Palette of").select_option("Your painting")
    said(page, "Red, in the colours of Your painting")
    page.set_input_files("#own-file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"})
    expect(page.locator("#own-status")).to_contain_text("not a JPEG")


def test_the_network_is_taught_a_painting_which_stays_until_it_is_deleted(
    browser: Browser, photo: Path, tmp_path: Path
) -> None:
    variables = {"STYLIZE_DATA_DIR": str(tmp_path / "data")}
    with live(**variables) as service, opened(browser, service.url) as page:
        page.set_input_files("#file", photo)
        page.set_input_files("#own-file", PHOTOS / "coffee.jpg")
        said(page, re.compile("^Your painting · "))
        page.evaluate(
            """() => {
                const append = FormData.prototype.append;
                FormData.prototype.append = function (name, ...value) {
                    if (name === "title") append.call(this, "steps", "3");
                    append.call(this, name, ...value);
                };
            }"""
        )  # enough for a test
        page.get_by_label("Keep it, as").fill("")
        page.get_by_role("button", name="Teach the network").click()
        expect(page.locator("#own-status")).to_contain_text("Give it a name")
        page.get_by_label("Keep it, as").fill("Morning Coffee")
        page.get_by_role("button", name="Teach the network").click()
        expect(page.locator("#own-status")).to_contain_text("bottom of the page", timeout=PATIENCE_MS)
        expect(page.locator(".job .title")).to_have_text("Morning Coffee: a style of your own")
        expect(page.locator(".job .result")).to_have_attribute("src", re.compile("^data:"))  # the painting, at first
        expect(page.locator(".job .state")).to_have_text("Finished.", timeout=3 * PATIENCE_MS)  # it is niced
        said(page, re.compile("^Morning Coffee · "))  # in the place of its painting
        assert httpx.get(f"{service.url}/styles/morning_coffee").json()["own"]
        assert complaints(page) == []
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete Morning Coffee").click()
        expect(page.locator(".card [value=morning_coffee]")).to_have_count(0, timeout=PATIENCE_MS)
        assert httpx.get(f"{service.url}/styles/morning_coffee").status_code == 404


def test_strokes_take_the_same_part_of_every_size(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(encoded(gradient(1536, 1024)))
    page.set_input_files("#file", tmp_path / "photo.png")
    said(page, " · ")
    page.evaluate(OVERHEAR, "stroke")
    page.get_by_label("huge").check()
    page.wait_for_timeout(3000)
    said(page, " · ")
    saved(page, tmp_path)
    assert page.evaluate("() => window.heard") == [1.75, 4, 6]  # for 448, 1024 and 1536 px


def test_a_photo_too_large_to_send_is_painted_from_a_copy_and_said_before(page: Page, tmp_path: Path) -> None:
    huge = Image.linear_gradient("L").resize((16384, 12288))  # 201 megapixels
    huge.save(tmp_path / "huge.jpg", quality=50)
    sent: list[int] = []
    page.on("requestfinished", lambda request: sent.append(request.sizes()["requestBodySize"]))
    page.set_input_files("#file", tmp_path / "huge.jpg")
    said(page, " · ")
    expect(page.locator("#photo-note")).to_contain_text("201 megapixels", timeout=PATIENCE_MS)
    assert saved(page, tmp_path).shape[:2] == (1536, 2048)
    said(page, re.compile("2048 . 1536 pixels. The server does not paint this photo any larger"))
    assert max(sent) < 1_000_000


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_state(browser: Browser, url: str, photo: Path, theme: Theme) -> None:
    with opened(browser, url, color_scheme=theme, reduced_motion="reduce") as page:
        assert complaints(page) == []
        page.set_input_files("#file", photo)
        only(page, "red")
        page.locator(".card [value=green]").check(force=True)
        said(page, "%")
        assert complaints(page) == []
        page.get_by_role("button", name="Paint only a part").click()
        page.get_by_text("More", exact=True).click()
        assert complaints(page) == []
        page.get_by_role("button", name="Start").click()  # without a painting
        page.route("**/stylize", lambda route: route.abort())
        page.get_by_label("Strength").fill("10")
        said(page, "does not answer")
        assert complaints(page) == []
        page.get_by_label("Language").select_option("zh")
        page.set_viewport_size({"width": 390, "height": 800})
        assert complaints(page) == []
        assert page.evaluate("() => getComputedStyle(document.querySelector('#result')).transitionDuration") == "0s"


def test_all_of_it_is_done_by_the_keyboard_alone(page: Page, photo: Path) -> None:
    page.locator("#file").focus()  # a browser's own dialog follows, which no script can open
    page.set_input_files("#file", photo)
    said(page, " · ")
    reached = []
    page.locator("#language").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("() => { const at = document.activeElement; return at.id || at.name || at.value; }")
        )
        if reached[-1] == "start":
            break
        if reached[-1] in ("foreign", "green"):  # one that is chosen, and another
            page.keyboard.press("Space")
    wanted = [
        "handle",
        "download",
        "brush",
        "another",
        "green",
        "strength",
        "stroke",
        "color",
        "palette",
        "model",
        "painting-file",
    ]
    assert [name for name in reached if name in wanted] == wanted
    said(page, "Green")
    page.keyboard.press("Enter")
    expect(page.locator("#order-status")).to_contain_text("Choose a painting first", timeout=PATIENCE_MS)


def test_a_style_that_is_gone_is_said_and_the_gallery_is_drawn_anew(
    browser: Browser, photo: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    write_conditional(store)
    with (
        live(STYLIZE_MODEL_STORE=str(store), STYLIZE_DATA_DIR=str(tmp_path / "data")) as service,
        opened(browser, service.url) as page,
    ):
        expect(page.locator("#own")).to_be_hidden()  # there is no encoder
        page.set_input_files("#file", photo)
        only(page, "red")
        page.locator(".card [value=green]").check(force=True)
        said(page, "%")
        shutil.rmtree(store)
        write_conditional(store, vectors={name: VECTORS[name] for name in ("photo", "green", "negative")})
        service.process.send_signal(signal.SIGHUP)
        page.wait_for_timeout(300)
        while any(style["name"] == "red" for style in httpx.get(f"{service.url}/styles").json()["styles"]):
            page.wait_for_timeout(50)
        page.get_by_label("Strength").fill("60")
        expect(page.locator("#gallery-status")).to_contain_text("No longer there: Red", timeout=PATIENCE_MS)
        expect(page.locator(".card")).to_have_count(2)
        said(page, re.compile("^Green · "))


def test_a_server_that_goes_while_one_slides_is_said_and_found_again(
    browser: Browser, photo: Path, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store")
    variables = {"STYLIZE_MODEL_STORE": str(store), "STYLIZE_DATA_DIR": str(tmp_path / "data")}
    with live(**variables) as service, opened(browser, service.url) as page:
        page.set_input_files("#file", photo)
        said(page, " · ")
        service.process.kill()
        service.process.wait()
        for value in range(10, 60, 10):
            page.get_by_label("Strength").fill(str(value))
        said(page, "does not answer")
        with live(**variables, STYLIZE_PORT=str(service.address[1])):
            page.get_by_role("button", name="Try again").click()
            said(page, " · ")


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
    web = ROOT / "service" / "web"
    assert sum(path.stat().st_size for path in web.iterdir() if path.suffix != ".jpg") < 300_000
