from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.fetch import TORCHVISION_MEAN, TORCHVISION_STD, WrongWeights, download, fetch_vgg19, from_torchvision
from service.gatys.vgg import CHANNELS, CONVOLUTIONS, VGG
from service.models.store import ModelStore, file_sha256

CONTENT = bytes(range(256)) * 4000


class Cutting(http.server.BaseHTTPRequestHandler):
    """Sends at most so many bytes of what it announced, then cuts the connection; knows Range."""

    at_most: int
    ranges: list[str | None]
    content: bytes

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.ranges.append(asked)
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        rest = self.content[int(found[1]) if found else 0 :]
        self.send_response(206 if found else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.at_most])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def cutting(content: bytes, at_most: int) -> Iterator[tuple[str, list[str | None]]]:
    ranges: list[str | None] = []
    handler = type("Handler", (Cutting,), {"content": content, "at_most": at_most, "ranges": ranges})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/weights", ranges
        finally:
            server.shutdown()
            thread.join()


def test_a_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(CONTENT[:1000])  # of an earlier day
    with cutting(CONTENT, at_most=400_000) as (address, ranges):
        download(address, path)
    assert path.read_bytes() == CONTENT
    assert ranges == ["bytes=1000-", "bytes=401000-", "bytes=801000-"]


def test_a_download_that_gets_nowhere_ends(tmp_path: Path) -> None:
    with cutting(CONTENT, at_most=0) as (address, _), pytest.raises(ConnectionError, match="goes on from"):
        download(address, tmp_path / "weights")


def torchvision_like() -> nn.Sequential:
    """VGG19's features as torchvision builds them."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    channels = 3
    for count, width in zip(CONVOLUTIONS["vgg19"], CHANNELS, strict=True):
        for _ in range(count):
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight)
            layers += [convolution, nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def reference() -> nn.Sequential:
    return torchvision_like()


def test_torchvisions_preprocessing_is_folded_into_the_first_convolution(reference: nn.Sequential) -> None:
    weights = {f"features.{name}": value for name, value in reference.state_dict().items()}
    vgg = VGG("vgg19")
    vgg.convolutions.load_state_dict(from_torchvision(weights, "vgg19"))
    picture = torch.rand(1, 3, 48, 64)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (TORCHVISION_MEAN, TORCHVISION_STD))
    with torch.no_grad():
        expected = reference[:4]((picture - mean) / std)
        found = vgg(picture, ["relu1_2"])["relu1_2"]
        deep = vgg(picture, ["relu5_4"])["relu5_4"]
        deep_expected = reference[:-1]((picture - mean) / std)
    inside = (..., slice(2, -2), slice(2, -2))  # zero padding is not quite the same pixel
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-3, atol=1e-3)
    assert F.cosine_similarity(deep.flatten(), deep_expected.flatten(), dim=0) > 0.999


def test_vgg19_is_fetched_over_a_bad_line_or_not_at_all(reference: nn.Sequential, tmp_path: Path) -> None:
    file = tmp_path / "vgg19.pth"
    torch.save({f"features.{name}": value for name, value in reference.state_dict().items()}, file)
    store = tmp_path / "store"
    with cutting(file.read_bytes(), at_most=30_000_000) as (address, ranges):
        with pytest.raises(WrongWeights, match=file_sha256(file)):
            fetch_vgg19(address, store)
        assert list((store / "vgg19").iterdir()) == []
        card = fetch_vgg19(address, store, file_sha256(file))
    assert len(ranges) > 2
    assert [path.name for path in store.iterdir()] == ["vgg19"]
    assert ModelStore(store).load(store / "vgg19" / "1").card == card
