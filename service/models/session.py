"""ONNX Runtime: which provider, how many threads, how much memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: the Linux wheels report home otherwise
import onnxruntime as ort  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors  # type: ignore[import-untyped]

from service.errors import ConfigurationError, ModelRefused, OutOfMemory, Translation, translating
from service.models.store import StoredModel, TensorSpec

log = logging.getLogger(__name__)

OnnxRuntimeProvider = Literal["cuda", "cpu"]
Provider = Literal["cuda", "cpu", "openvino"]
ProviderChoice = Literal["auto", "cuda", "cpu", "openvino"]  # what is asked for
Precision = Literal["fp32", "tf32", "fp16"]
EXECUTION_PROVIDERS: dict[OnnxRuntimeProvider, str] = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
PROVIDER_OPTIONS: dict[OnnxRuntimeProvider, dict[str, str]] = {
    # The exhaustive search is 5 to 15 % faster, but the first picture of a new shape takes five times as long and more;
    # the arena grows by what is asked, not by doubling: as fast, in less memory (python -m bench gpu, on an H100).
    "cuda": {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"},
    "cpu": {},
}
SETTLE_SIDE = 64  # pixels
WARM_SIDES: dict[Provider, tuple[int, ...]] = {  # pixels
    "cuda": (SETTLE_SIDE, 256, 512, 1024),
    "cpu": (SETTLE_SIDE,),
    "openvino": (SETTLE_SIDE,),
}
IDENTITY = (  # a graph of one node, y = x
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}

Images = npt.NDArray[np.uint8]  # (N, H, W, 3) sRGB
RunOptions = ort.RunOptions
OrtSession = ort.InferenceSession
StyleRows = npt.NDArray[np.float32]  # (N, D); D is 0 for a classic network
Feed = Mapping[str, Images | StyleRows]


@dataclass(frozen=True)
class Gpu:
    """How networks run where they run on a GPU: the most of its memory that each may take, how precisely, and how many
    small runs beside each other.

    ``tf32`` rounds what convolutions multiply to 10 bits of mantissa, ``fp16`` is for graphs that do so themselves.
    """

    mem_limit_bytes: int | None = None
    precision: Precision = "fp32"
    lanes: int = 8

    @property
    def options(self) -> dict[str, str]:
        """Of ONNX Runtime's provider, which takes TF32 if it is not told otherwise."""
        limit = {} if self.mem_limit_bytes is None else {"gpu_mem_limit": str(self.mem_limit_bytes)}
        return PROVIDER_OPTIONS["cuda"] | {"use_tf32": str(int(self.precision != "fp32"))} | limit


DEFAULT_GPU = Gpu()


class Session:
    """One network, loaded. Thread-safe, as ONNX Runtime is.

    Raises ModelRefused where the graph cannot be loaded or is not what its card says, ConfigurationError where
    ``cuda`` is demanded and not to be had.
    """

    def __init__(
        self,
        model: StoredModel,
        provider: ProviderChoice,
        threads: int,
        gpu: Gpu = DEFAULT_GPU,
    ) -> None:
        self._card = model.card
        self.label = model.card.label
        self._session = open_session(self.label, model.graph, provider, threads, gpu)
        self.provider: Provider = _provider_of(self._session)
        if provider == "cuda" and self.provider != "cuda":
            raise ConfigurationError("STYLIZE_PROVIDER=cuda, but ONNX Runtime gave this session the CPU")
        _check(model, self._session.get_inputs(), self._session.get_outputs())

    def run(self, images: Images, rows: StyleRows, options: ort.RunOptions | None = None) -> Images:
        """Stylise (N, H, W, 3) with one style vector a row, (N, D). Raises OutOfMemory."""
        feed: dict[str, Images | StyleRows] = {self._card.inputs[0].name: images}
        if self._card.kind == "conditional":
            feed[self._card.inputs[1].name] = rows
        stylized: Images = run_session(self._session, feed, options)
        return stylized

    def warm(self) -> None:
        """Run each of WARM_SIDES once: on a GPU the first run of a size plans it. Memory may end before they do."""
        row = np.zeros((1, self._card.dimension), np.float32)
        for side in WARM_SIDES[self.provider]:
            try:
                self.run(np.zeros((1, side, side, 3), np.uint8), row)
            except OutOfMemory:
                log.warning("%s: a picture of %d x %d pixels does not fit into the memory left", self.label, side, side)
                break

    def settle(self) -> None:
        """One small run. Before the first request: what is done once is then done. After the last one for a while:
        the memory that large pictures took goes back to the system, on a CPU. A GPU's is kept.

        Giving it back after every run instead costs 0.1 CPU-seconds a megapixel in page faults; keeping it for good
        costs 430 MB for every megapixel of the largest picture ever met (half-width network, measured).
        """
        rows = np.zeros((1, self._card.dimension), np.float32)
        self.run(np.zeros((1, SETTLE_SIDE, SETTLE_SIDE, 3), np.uint8), rows, shrinking(self.provider))


def open_session(
    label: str,
    graph: bytes,
    provider: ProviderChoice,
    threads: int,
    gpu: Gpu = DEFAULT_GPU,
) -> ort.InferenceSession:
    """A session of an ONNX file's bytes, set as all of ours are. Raises ModelRefused."""
    if provider == "openvino":
        from service.models.openvino import OpenVinoSession  # an extra

        with translating({Exception: lambda error: ModelRefused(label, f"OpenVINO: {error}")}):
            return OpenVinoSession(graph, threads)
    with translating({Exception: lambda error: ModelRefused(label, f"ONNX Runtime: {error}")}):
        return ort.InferenceSession(graph, _options(threads), providers=_wanted(provider, gpu))


def run_session(session: ort.InferenceSession, feed: Feed, options: ort.RunOptions | None = None) -> npt.NDArray[Any]:
    """A session's one output. Raises OutOfMemory."""
    with translating(_RUNNING):
        (output,) = session.run(None, feed, options)
    return np.asarray(output)


def shrinking(provider: Provider) -> ort.RunOptions:
    """For a run after which the memory that earlier ones took goes back to the system."""
    options = ort.RunOptions()
    if provider == "cpu":
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def trim() -> None:
    """Gives freed memory that the C library keeps back to the system: 20 of 258 MB, once the shipped models are loaded
    (measured). Only glibc has it to give."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def check_provider(provider: ProviderChoice) -> None:
    """Raises ConfigurationError where CUDA is demanded and not to be had, or an OpenVINO that is not installed."""
    if provider == "openvino" and importlib.util.find_spec("openvino") is None:
        raise ConfigurationError("STYLIZE_PROVIDER=openvino, but it is not installed: pip install '.[openvino]'")
    if provider == "cuda" and EXECUTION_PROVIDERS["cuda"] not in ort.get_available_providers():
        raise ConfigurationError(
            "STYLIZE_PROVIDER=cuda, but this ONNX Runtime has no CUDA: install onnxruntime-gpu, or set auto or cpu"
        )
    if provider == "cuda" and not cuda_works():
        raise ConfigurationError(
            "STYLIZE_PROVIDER=cuda, but ONNX Runtime cannot use it here, and has said why: this process needs a GPU and"
            " its driver, or auto or cpu"
        )


def cpu_quota(cgroup_root: Path = Path("/sys/fs/cgroup"), own_cgroup: Path = Path("/proc/self/cgroup")) -> int:
    """How many CPUs this process may really use: the smaller of its affinity and its cgroup's quota, rounded up.

    The host's core count is what a container must not go by: threads beyond the quota are only throttled.
    """
    quotas = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for folder in _cgroup_folders(cgroup_root, own_cgroup):
        quota = _quota_v2(folder) or _quota_v1(folder)
        if quota:
            quotas.append(math.ceil(quota))
    return max(1, min(quotas))


def _cgroup_folders(root: Path, own_cgroup: Path) -> list[Path]:
    """Every folder from this process's own cgroup up to the root, of version 2 and of version 1's cpu controller."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:
        lines = []
    starts = [(root, "/"), (root / "cpu", "/")]
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            starts.append((root, path))
        elif "cpu" in controllers.split(","):
            starts.append((root / "cpu", path))
    folders = []
    for base, path in starts:
        parts = Path(path.lstrip("/")).parts
        folders += [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1) if ".." not in parts]
    return folders


def _quota_v2(folder: Path) -> float | None:
    found = re.fullmatch(r"(\d+) (\d+)\s*", _text(folder / "cpu.max"))
    return int(found[1]) / int(found[2]) if found else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _wanted(provider: ProviderChoice, gpu: Gpu) -> list[tuple[str, dict[str, str]]]:
    cpu = (EXECUTION_PROVIDERS["cpu"], PROVIDER_OPTIONS["cpu"])
    return [(EXECUTION_PROVIDERS["cuda"], gpu.options), cpu] if gives_cuda(provider) else [cpu]


def gives_cuda(provider: ProviderChoice) -> bool:
    """Whether a session that is asked for it will run on a GPU."""
    return provider in ("auto", "cuda") and cuda_works()


@functools.cache
def cuda_works() -> bool:
    """Whether a session is given CUDA: where it was built with it, the runtime lists it even if it cannot load it. The
    libraries that pip installed it finds only once they are loaded."""
    if EXECUTION_PROVIDERS["cuda"] not in ort.get_available_providers():
        return False
    ort.preload_dlls()
    tried = ort.InferenceSession(IDENTITY, providers=list(EXECUTION_PROVIDERS.values()))
    works = EXECUTION_PROVIDERS["cuda"] in tried.get_providers()
    if not works:
        log.warning("CUDA is installed but cannot be used: `auto` takes the CPU")
    return works


def _provider_of(session: ort.InferenceSession) -> Provider:
    """What it runs on, in truth."""
    found = session.get_providers()
    if EXECUTION_PROVIDERS["cuda"] in found:
        return "cuda"
    return "cpu" if EXECUTION_PROVIDERS["cpu"] in found else "openvino"


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Between nodes a spinning thread would take its core from the codec pool, and from whoever shares the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Patterns suit one shape; with photos of four shapes they took the process from 492 to 814 MB (measured).
    options.enable_mem_pattern = False
    return options


def _check(model: StoredModel, inputs: Sequence[ort.NodeArg], outputs: Sequence[ort.NodeArg]) -> None:
    """Raise ModelRefused where the graph's own inputs and outputs are not those of the card."""
    for what, specs, found in (("inputs", model.card.inputs, inputs), ("outputs", model.card.outputs, outputs)):
        graph = {arg.name: arg for arg in found}
        fits = set(graph) == {spec.name for spec in specs} and all(_same(spec, graph[spec.name]) for spec in specs)
        if not fits:
            have = ", ".join(f"{arg.name} {arg.type} {arg.shape}" for arg in found)
            raise ModelRefused(model.card.label, f"the graph's {what} are not its card's: it has {have}")


def _same(spec: TensorSpec, arg: ort.NodeArg) -> bool:
    """Whether card and graph agree; the numbers must be equal, the names of dynamic dimensions need not."""
    if DTYPES.get(arg.type) != spec.dtype or len(arg.shape) != len(spec.shape):
        return False
    pairs = zip(spec.shape, arg.shape, strict=True)
    return all(mine == theirs for mine, theirs in pairs if isinstance(mine, int) or isinstance(theirs, int))


def _failed_run(error: Exception) -> Exception:
    """ONNX Runtime tells of exhausted memory by a message only."""
    if re.search(
        r"out of memory|bad_?alloc|alloc_failed|failed to allocate|smaller than requested", str(error), re.IGNORECASE
    ):
        return OutOfMemory("the picture does not fit into the memory left: ask for a smaller max_side")
    return error


_RUNNING: Translation = {
    ort_errors.Fail: _failed_run,
    ort_errors.RuntimeException: _failed_run,
    RuntimeError: _failed_run,  # of buffers that cannot be had
}
