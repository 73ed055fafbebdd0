"""OpenVINO behind the face of an ONNX Runtime session, as far as ours show it: another runtime for CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov  # type: ignore[import-untyped]

LOOK_MS = 20  # how often a run asks whether it is still wanted
TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)"}


class _Options(Protocol):
    terminate: bool


@dataclass(frozen=True)
class Argument:
    """An input or output; a dimension that is not a number is dynamic."""

    name: str
    type: str
    shape: tuple[int | str, ...]


class OpenVinoSession:
    """A graph, compiled. Takes turns where several threads run it. Where no ``precision`` is asked for it runs in bf16
    if the CPU multiplies that in hardware.

    Raises RuntimeError where the graph cannot be compiled.
    """

    def __init__(self, graph: bytes, threads: int, precision: Literal["f32", "bf16"] | None = None) -> None:
        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        if precision:
            settings["INFERENCE_PRECISION_HINT"] = precision
        model = core.read_model(graph)
        self._compile: Callable[[], Any] = lambda: core.compile_model(model, "CPU", settings)
        compiled = self._compile()
        self._inputs, self._outputs = _arguments(compiled.inputs), _arguments(compiled.outputs)
        self._request = compiled.create_infer_request()
        self._turn = threading.Lock()

    def run(
        self, names: None, feed: Mapping[str, npt.NDArray[Any]], options: _Options | None = None
    ) -> list[npt.NDArray[Any]]:
        """All outputs. Raises RuntimeError where it was stopped by its ``options``."""
        with self._turn:
            self._request.start_async(dict(feed))
            while not self._request.wait_for(LOOK_MS):
                if options is not None and options.terminate:
                    self._stop()
            return [np.array(tensor.data) for tensor in self._request.output_tensors]

    def _stop(self) -> None:
        """Raises RuntimeError. What was stopped cannot be run again: it keeps shapes of the run before."""
        self._request.cancel()
        try:
            self._request.wait()
        finally:
            self._request = self._compile().create_infer_request()

    def get_inputs(self) -> Sequence[Argument]:
        return self._inputs

    def get_outputs(self) -> Sequence[Argument]:
        return self._outputs

    def get_providers(self) -> list[str]:
        return ["OpenVINO"]


def _arguments(ports: Sequence[Any]) -> list[Argument]:
    return [
        Argument(
            port.any_name,
            TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            tuple("?" if each.is_dynamic else each.get_length() for each in port.partial_shape),
        )
        for port in ports
    ]
