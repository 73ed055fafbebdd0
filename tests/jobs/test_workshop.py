"""The page's slow way in a real browser, with real workers: any painting, jobs followed, cancelled, there again."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.jobs.conftest import PAINTING, PATIENCE_S, Service
from tests.service.chromium import NEEDS_CHROMIUM, PATIENCE_MS, browser, complaints, opened
from tests.service.pictures import encoded, gradient

__all__ = ["browser"]
pytestmark = NEEDS_CHROMIUM
Serve = Callable[..., Service]
WAIT_MS = int(1000 * PATIENCE_S)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(gradient(64, 48)))
    return path


@pytest.fixture
def painting(tmp_path: Path) -> Path:
    path = tmp_path / "my painting.png"
    path.write_bytes(PAINTING)
    return path


@pytest.fixture
def service(serve: Serve) -> Service:
    return serve()


@pytest.fixture
def page(browser: Browser, service: Service) -> Iterator[Page]:
    with opened(browser, str(service.http.base_url)) as page:
        yield page


def order(page: Page, iterations: int) -> Locator:
    """Start a job; its card."""
    page.get_by_text("More", exact=True).click()
    page.get_by_role("spinbutton", name="Evaluations").fill(str(iterations))
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#order-status")).to_contain_text("Accepted", timeout=WAIT_MS)
    return page.locator(".job").first


def state(card: Locator, text: str | re.Pattern[str]) -> None:
    expect(card.locator(".state")).to_contain_text(text, timeout=WAIT_MS)


def test_any_painting_becomes_a_job_that_is_followed_to_its_result(
    page: Page, photo: Path, painting: Path, tmp_path: Path
) -> None:
    page.set_input_files("#file", photo)
    page.set_input_files("#painting-file", painting)
    expect(page.locator("#painting")).to_be_visible()
    card = order(page, 40)
    expect(card.locator(".title")).to_have_text("my painting, balanced")
    expect(card.locator(".curve")).to_be_visible(timeout=WAIT_MS)
    state(card, "Finished")
    expect(card.locator(".numbers")).to_contain_text("of 40")
    label = card.locator(".curve").get_attribute("aria-label")
    assert label
    first, now = (float(number) for number in re.findall(r"\d+\.\d+", label)[:2])
    assert 0 < now < first
    card.get_by_label(re.compile("Before and after")).press("End")
    expect(card.locator(".stage")).to_have_attribute("style", re.compile("--at: *100%"), timeout=PATIENCE_MS)
    with page.expect_download() as download:
        card.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "my-painting-balanced.jpg"
    with Image.open(download.value.path()) as result:
        assert result.size == (64, 48)
    assert complaints(page) == []
    card.get_by_role("button", name="Remove").click()
    page.reload()
    page.wait_for_selector(".card")
    expect(page.locator(".job")).to_have_count(0)


def test_a_job_is_there_after_a_reload_and_cancelled(page: Page, photo: Path) -> None:
    page.set_input_files("#file", photo)
    page.locator("#shipped").select_option("Red")
    card = order(page, 5000)
    state(card, "At work")
    expect(card.locator(".numbers")).to_contain_text("left", timeout=WAIT_MS)
    page.reload()
    card = page.locator(".job").first
    expect(card.locator(".title")).to_have_text("Red, balanced")
    expect(card.locator(".curve")).to_be_visible(timeout=WAIT_MS)
    expect(card.locator(".result")).to_have_attribute("src", re.compile("/preview"), timeout=WAIT_MS)
    card.get_by_role("button", name="Cancel").click()
    state(card, "Cancelled")
    expect(card.get_by_role("button", name="Cancel")).to_be_hidden()


def test_a_job_outlives_its_service_on_the_page_too(page: Page, service: Service, photo: Path) -> None:
    page.set_input_files("#file", photo)
    page.locator("#shipped").select_option("Red")
    card = order(page, 60)
    state(card, "At work")
    address = service.http.base_url
    service.kill()
    state(card, "does not answer")
    service.restart_at(address.port)
    state(card, "Finished")
    assert service.http.base_url == address


def test_its_picture_on_the_way_is_a_picture(page: Page, service: Service, photo: Path, painting: Path) -> None:
    page.set_input_files("#file", photo)
    page.set_input_files("#painting-file", painting)
    card = order(page, 5000)
    expect(card.locator(".result")).to_have_attribute("src", re.compile("/preview"), timeout=WAIT_MS)
    url = card.locator(".result").get_attribute("src")
    assert url
    with Image.open(io.BytesIO(service.http.get(url).content)) as shown:
        assert shown.size == (64, 48)
    card.get_by_role("button", name="Cancel").click()
    state(card, "Cancelled")


def test_what_cannot_be_ordered_is_said(page: Page, photo: Path, tmp_path: Path) -> None:
    status = page.locator("#order-status")
    page.get_by_role("button", name="Start").click()
    expect(status).to_contain_text("Choose a photo first", timeout=PATIENCE_MS)
    page.set_input_files("#file", photo)
    page.get_by_role("button", name="Start").click()
    expect(status).to_contain_text("Choose a painting first", timeout=PATIENCE_MS)
    (tmp_path / "notes.txt").write_text("no painting")
    page.set_input_files("#painting-file", tmp_path / "notes.txt")
    expect(status).to_contain_text("not a JPEG", timeout=PATIENCE_MS)
    page.locator("#shipped").select_option("Red")
    page.get_by_text("More", exact=True).click()
    page.get_by_role("spinbutton", name="Evaluations").fill("900000")
    page.get_by_role("button", name="Start").click()
    expect(status).to_contain_text("iterations: at most 5000", timeout=PATIENCE_MS)


@pytest.mark.parametrize("variables", [{"STYLIZE_GATYS_WORKERS": "0"}, {"STYLIZE_MAX_JOBS": "1"}], ids=str)
def test_a_service_that_takes_no_job_says_what_to_do(
    serve: Serve, browser: Browser, photo: Path, variables: dict[str, str]
) -> None:
    service = serve(**variables)
    if "STYLIZE_MAX_JOBS" in variables:
        service.wait(service.submit(iterations=5000)["id"], "running")
        service.submit(iterations=5000)
    with opened(browser, str(service.http.base_url)) as page:
        page.set_input_files("#file", photo)
        page.locator("#shipped").select_option("Red")
        page.get_by_role("button", name="Start").click()
        full = "Try again in" if "STYLIZE_MAX_JOBS" in variables else "STYLIZE_GATYS_WORKERS is 0"
        expect(page.locator("#order-status")).to_contain_text(full, timeout=PATIENCE_MS)
        page.get_by_label("Language").select_option("zh")
        page.get_by_role("button", name="开始").click()
        expect(page.locator("#order-status")).to_contain_text(re.compile("无法优化图片|队列已满"), timeout=PATIENCE_MS)
