"""What every volume does, a folder as well as a bucket of moto's server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from service.jobs.distributed.queue import DistributedQueue
from service.jobs.distributed.state import State
from service.jobs.distributed.volume import Volume, VolumeUnusable
from service.jobs.job import Limits
from tests.jobs.broker import RedisServer, redis, redis_server
from tests.jobs.test_queue import LOSS, order

__all__ = ["redis", "redis_server"]


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/volume"
    return str(request.getfixturevalue("bucket"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": host,
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # those of servers that are gone
    client = boto3.client("s3")
    client.create_bucket(Bucket="pictures")
    client.close()
    yield f"s3://pictures/of-{port}"
    server.stop()


def test_what_is_written_is_read_until_it_is_removed(url: str) -> None:
    volume, other = Volume(url), Volume(url)
    assert (volume.names("job"), volume.read("job", "a")) == ([], None)
    volume.write("job", "a", b"1")
    volume.write("job", "b", b"2" * 100_000)
    volume.write("other", "a", b"3")
    assert sorted(other.names("job")) == ["a", "b"]
    assert other.read("job", "b") == b"2" * 100_000
    volume.remove("job", ["a", "never there"])
    assert other.names("job") == ["b"]
    volume.remove_all("job")
    volume.remove_all("job")
    assert (other.names("job"), other.read("other", "a")) == ([], b"3")


def test_a_volume_is_known_by_its_mark(url: str, tmp_path: Path) -> None:
    mark = Volume(url).mark()
    assert Volume(url).is_marked(mark)
    assert not Volume(f"file://{tmp_path}/another").is_marked(mark)


def test_a_job_lives_on_it(url: str, redis: RedisServer) -> None:
    queue = DistributedQueue(State(redis.url), Volume(url), None, Limits(), lambda: "a store")
    queue.open()
    job, _ = queue.submit(order())
    lease = queue.claim()
    assert lease is not None
    assert queue.inputs(lease) == {"photo": b"photo", "painting-0": b"painting"}
    queue.report(lease, 1, LOSS, 0)
    for content in (b"first", b"second"):
        queue.show(lease, 5, content)
        queue.save_checkpoint(lease, content)
    assert (queue.preview(job.id), queue.checkpoint(lease)) == (b"second", b"second")
    queue.succeed(lease, b"result")
    assert queue.result(job.id) == b"result"
    assert sorted(name.split("-")[0] for name in Volume(url).names(job.id)) == ["preview", "result"]
    queue.close()


def test_a_volume_that_is_away_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    volume = Volume(f"file://{tmp_path}/file")
    with pytest.raises(VolumeUnusable):
        volume.write("job", "a", b"")


def test_a_bucket_that_does_not_answer_is_unusable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(VolumeUnusable):
        Volume(bucket + "/away").write("job", "a", b"")
