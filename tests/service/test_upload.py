"""What all requests together hold of their bodies."""

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import ClientGone, MalformedUpload, Saturated, TooManyBytes, UploadTooSlow
from service.routes.upload import Uploads, received


def request(*chunks: bytes, content_type: str = "image/png", then: Message | None = None) -> Request:
    """A body in pieces; after them comes its end, or ``then``, and nothing more."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append(then or {"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    headers = [(b"content-type", content_type.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers, "query_string": b""}, receive)


def test_bytes_are_held_until_the_request_is_answered() -> None:
    uploads = Uploads(100, 60, 100)

    async def scene() -> None:
        async with received(request(b"x" * 60), uploads) as upload:
            assert (len(upload.image), uploads.held_bytes) == (60, 60)
            async with received(request(b"x" * 40), uploads):
                assert uploads.held_bytes == 100
            with pytest.raises(Saturated):
                async with received(request(b"x" * 30, b"x" * 11), uploads):
                    pass
            assert uploads.held_bytes == 60

    asyncio.run(scene())
    assert uploads.held_bytes == 0


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (request(b"x" * 60, b"x" * 60), TooManyBytes),
        (request(b"x" * 60, then={"type": "http.disconnect"}), ClientGone),
        (request(b"x" * 60, then={"type": "http.request", "body": b"x", "more_body": True}), UploadTooSlow),
        (request(b"--b\r\n", content_type="multipart/form-data; boundary=b"), MalformedUpload),
    ],
)
def test_whatever_becomes_of_an_upload_nothing_of_it_stays_held(sent: Request, error: type[Exception]) -> None:
    uploads = Uploads(100, 0.05, 1000)

    async def scene() -> None:
        with pytest.raises(error):
            async with received(sent, uploads):
                pass

    asyncio.run(scene())
    assert uploads.held_bytes == 0


def test_who_is_refused_is_told_how_long_the_others_have_been_held(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("service.routes.upload.time.monotonic", lambda: now[0])
    uploads = Uploads(100, 60, 100)
    with uploads.held() as first, uploads.held() as second:
        first.take(60)
        now[0] += 8
        second.take(20)
        with pytest.raises(Saturated) as refused:
            uploads.check(21)
        assert refused.value.retry_after_s == 6  # 60 bytes for 8 s, 20 for none
    uploads.check(100)
