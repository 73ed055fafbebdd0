import os
from pathlib import Path

import numpy as np
import pytest

from service.errors import ConfigurationError, ModelRefused
from service.models.session import Session, check_provider, cpu_quota
from service.models.store import ModelStore
from tests.service.toy import VECTORS, classic_graph, toy_stylized, write_classic, write_conditional


def test_rows_of_one_run_have_each_their_own_style(tmp_path: Path) -> None:
    session = Session(ModelStore(tmp_path).load(write_conditional(tmp_path)), "cpu", 1)
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    rows = [VECTORS["red"], VECTORS["negative"]]
    outputs = session.run(np.stack([image, image]), np.array(rows, np.float32))
    assert np.array_equal(outputs, [toy_stylized(image, row) for row in rows])
    assert session.provider == "cpu"


def test_a_network_with_foreign_names_runs_unchanged(tmp_path: Path) -> None:
    folder = write_classic(tmp_path, "foreign", "x", classic_graph("pixels:0", "out"), "pixels:0", "out")
    session = Session(ModelStore(tmp_path).load(folder), "cpu", 1)
    image = np.full((1, 3, 2, 3), 10, np.uint8)
    assert (session.run(image, np.empty((1, 0), np.float32)) == 245).all()


def test_a_graph_that_is_not_what_its_card_says_is_refused(tmp_path: Path) -> None:
    folder = write_classic(tmp_path, "wrong", "x", classic_graph("pixels", "stylized"))
    with pytest.raises(ModelRefused, match="the graph's inputs are not its card's"):
        Session(ModelStore(tmp_path).load(folder), "cpu", 1)


def test_a_graph_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    folder = write_classic(tmp_path, "broken", "x", b"not an onnx file")
    with pytest.raises(ModelRefused, match="broken@1: ONNX Runtime"):
        Session(ModelStore(tmp_path).load(folder), "cpu", 1)


def test_cuda_demanded_and_missing_is_a_configuration_error() -> None:
    import onnxruntime  # type: ignore[import-untyped]

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    with pytest.raises(ConfigurationError, match="STYLIZE_PROVIDER"):
        check_provider("cuda")


def test_telemetry_is_off() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "100000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, "0::/a/b\n", 1),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/\n", None),
    ],
)
def test_threads_follow_the_cgroup_quota(tmp_path: Path, files: dict[str, str], own: str, expected: int | None) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "own").write_text(own)
    assert cpu_quota(tmp_path, tmp_path / "own") == (expected or len(os.sched_getaffinity(0)))
