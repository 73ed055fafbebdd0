"""What every peer does with a request: decode, run, encode, with the options that ours has."""

from __future__ import annotations

import io
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from PIL import Image


class Painter:
    """The graph PEER_GRAPH with the style's vector PEER_VECTOR (.npy) on PEER_THREADS threads of ONNX Runtime."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        self._session = ort.InferenceSession(os.environ["PEER_GRAPH"], options, providers=["CPUExecutionProvider"])
        self._row = np.load(os.environ["PEER_VECTOR"])[None]  # (1, D)
        self(_photo())

    def __call__(self, photo: bytes) -> bytes:
        """A JPEG from a JPEG."""
        image = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))  # (H, W, 3)
        names = [graph_input.name for graph_input in self._session.get_inputs()]
        (painting,) = self._session.run(None, dict(zip(names, (image[None], self._row), strict=True)))
        file = io.BytesIO()
        Image.fromarray(painting[0]).save(file, "JPEG", quality=90)
        return file.getvalue()


def _photo() -> bytes:
    """To warm up with."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()
