"""The page in a real browser: the time from a photo's drop to its first picture; and the pictures of it in docs/.

Needs Chromium (``apt-get install chromium``) and Playwright (the extra ``dev``).
"""

from __future__ import annotations

import io
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from bench.processes import Running, running
from bench.servers import ours
from bench.work import PHOTO, STYLE, jpeg
from tests.service.chromium import CHROMIUM, FLAGS, PATIENCE_MS

SIZE = (4000, 3000)  # 12 megapixels
NETWORKS = ("fast", "multistyle")
GOAL_S = 1.5
NOISE = 4.0  # of a camera: without it a JPEG is smaller, and decoded faster, than photos are
PHOTOS = PHOTO.parent
DESK, PHONE = ViewportSize(width=1280, height=860), ViewportSize(width=390, height=844)
SETTLE_MS = 1500
JOB_MS = 300_000
HAND = """() => {
    const hand = Object.assign(document.createElement("input"), { type: "file", id: "hand", ariaLabel: "hand" });
    document.body.append(hand);
}"""  # it holds the file that is dropped
DROP = """async () => {
    const [result, status] = ["result", "status"].map((id) => document.getElementById(id));
    const transfer = new DataTransfer();
    transfer.items.add(document.getElementById("hand").files[0]);
    const began = performance.now();
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    while (!status.textContent.includes(" · ")) await new Promise(requestAnimationFrame);
    await result.decode();
    await new Promise(requestAnimationFrame);
    return (performance.now() - began) / 1000;
}"""


def measure_page(rounds: int) -> str:
    """A Markdown section: each round loads the page anew and drops a photo of 12 megapixels on it."""
    photo = large_photo()
    lines = [
        "## The page",
        "",
        f"From the drop of a photo of {SIZE[0]} x {SIZE[1]} pixels ({len(photo) / 1e6:.1f} MB) to its first picture on "
        f"the screen: headless Chromium on the server's own machine, {rounds} rounds. The goal is {GOAL_S:g} s.",
        "",
        "| network | median | worst |",
        "|---|---|---|",
    ]
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file, running(ours(), jpeg(64, 64)) as service:
        file.write(photo)
        file.flush()
        for network in NETWORKS:
            times_s = [first_picture_s(service, Path(file.name), network) for _ in range(rounds)]
            lines.append(f"| {network} | {statistics.median(times_s):.2f} s | {max(times_s):.2f} s |")
    return "\n".join(lines)


def large_photo() -> bytes:
    """A JPEG of SIZE, with a camera's noise."""
    with Image.open(PHOTO) as photo:
        pixels = np.asarray(photo.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS), np.float32)
    noisy = pixels + np.random.default_rng(0).normal(0, NOISE, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def first_picture_s(service: Running, photo: Path, network: str) -> float:
    """Seconds from the drop to the picture, in a browser that was never there before."""
    with browsing(service) as page:
        page.locator("#model").select_option(network)
        page.evaluate(HAND)
        page.set_input_files("#hand", photo)
        return float(page.evaluate(DROP))


@contextmanager
def browsing(service: Running, **options: Any) -> Iterator[Page]:  # noqa: ANN401
    """The page with its gallery there. ``options`` are a browser context's."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE_MS)
        page = browser.new_context(viewport=DESK, **options).new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"http://127.0.0.1:{service.port}")
        page.wait_for_selector(".card")
        yield page
        browser.close()


def take_pictures(folder: Path) -> str:
    """Five states of the page as ``page-….jpg`` in a folder; a Markdown section that shows them."""
    with tempfile.TemporaryDirectory() as data:
        at_work = ours(STYLIZE_GATYS_WORKERS="1", STYLIZE_DATA_DIR=data)
        with running(at_work, jpeg(64, 64)) as service:
            for name, take in STATES.items():
                with browsing(service, **({"color_scheme": "dark"} if name == "dark" else {})) as page:
                    take(page)
                    page.wait_for_timeout(SETTLE_MS)
                    save(page.screenshot(), folder / f"page-{name}.jpg")
    return "\n".join(f"![The page: {name}](page-{name}.jpg)" for name in STATES)


def save(screenshot: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(screenshot)) as image:
        image.convert("RGB").save(path, "JPEG", quality=80, optimize=True, progressive=True)


def done(page: Page) -> None:
    """The picture is there, and the larger one after it."""
    expect(page.locator("#status")).to_contain_text(" · ", timeout=PATIENCE_MS)
    page.wait_for_timeout(SETTLE_MS)
    expect(page.locator("#stage")).not_to_have_attribute("aria-busy", "true", timeout=PATIENCE_MS)


def choose(page: Page, *styles: str) -> None:
    for box in page.locator(".card input").all():
        box.set_checked(box.input_value() in styles, force=True)


def mixed(page: Page) -> None:
    choose(page, STYLE, "great_wave")
    page.set_input_files("#file", PHOTOS / "neuschwanstein.jpg")
    page.get_by_label("Weight of The Starry Night").fill("80")
    done(page)
    page.locator("#handle").fill("35")


def brushed(page: Page) -> None:
    choose(page, "kiss")
    page.set_input_files("#file", PHOTOS / "kingfisher.jpg")
    done(page)
    page.get_by_role("button", name="Paint only a part").click()
    page.get_by_label("Size").first.fill("30")
    box = page.locator("#mask").bounding_box()
    assert box
    places = [(0.42, 0.25), (0.5, 0.35), (0.45, 0.55), (0.4, 0.75)]
    for index, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=5)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(SETTLE_MS)
    done(page)
    page.evaluate("() => scrollTo(0, 0)")


def empty_and_dark(page: Page) -> None:
    page.wait_for_load_state("networkidle")


def chinese_on_a_phone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    page.get_by_label("Language").select_option("zh")
    choose(page, "great_wave")
    page.set_input_files("#file", PHOTOS / "horses.jpg")
    done(page)


def workshop(page: Page) -> None:
    choose(page, STYLE)
    page.set_input_files("#file", PHOTOS / "kingfisher.jpg")
    done(page)
    page.locator("#shipped").select_option("cafe_terrace")
    page.get_by_role("button", name="Start").click()
    expect(page.locator(".job .numbers")).to_contain_text(re.compile("Evaluation [3-9][0-9]"), timeout=JOB_MS)
    page.evaluate("() => document.querySelector('.workshop').scrollIntoView()")


STATES: Mapping[str, Callable[[Page], None]] = {
    "mix": mixed,
    "brush": brushed,
    "dark": empty_and_dark,
    "phone": chinese_on_a_phone,
    "painting": workshop,
}
