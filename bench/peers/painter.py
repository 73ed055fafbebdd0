"""What every peer does with a request: decode, run, encode, with the options that ours has of ONNX Runtime."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import
import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from PIL import Image


class Painter:
    """The graph PEER_GRAPH with the style's vector PEER_VECTOR (.npy) on PEER_THREADS threads of ONNX Runtime, or by
    its provider and options PEER_PROVIDER (JSON); JPEGs are Pillow's, or, with PEER_CODEC, simplejpeg's, as ours are.
    """

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        provider = json.loads(os.environ.get("PEER_PROVIDER", '["CPUExecutionProvider", {}]'))
        if provider[0] == "CUDAExecutionProvider":
            ort.preload_dlls()
        self._session = ort.InferenceSession(os.environ["PEER_GRAPH"], options, providers=[tuple(provider)])
        if self._session.get_providers()[0] != provider[0]:
            raise RuntimeError(f"ONNX Runtime gave {self._session.get_providers()}")
        self._decoded, self._encoded = _fast_codec() if "PEER_CODEC" in os.environ else (_decoded, _encoded)
        self._row = np.load(os.environ["PEER_VECTOR"])[None]  # (1, D)
        self(_photo())

    def __call__(self, photo: bytes) -> bytes:
        """A JPEG from a JPEG."""
        image = self._decoded(photo)
        names = [graph_input.name for graph_input in self._session.get_inputs()]
        (painting,) = self._session.run(None, dict(zip(names, (image[None], self._row), strict=True)))
        return self._encoded(painting[0])


def _decoded(photo: bytes) -> np.ndarray:
    """(H, W, 3)"""
    return np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))


def _encoded(painting: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(painting).save(file, "JPEG", quality=90)
    return file.getvalue()


def _fast_codec() -> tuple[Callable[[bytes], np.ndarray], Callable[[np.ndarray], bytes]]:
    import simplejpeg  # type: ignore[import-untyped]

    return simplejpeg.decode_jpeg, lambda painting: simplejpeg.encode_jpeg(painting, 90, "RGB", "420")


def _photo() -> bytes:
    """To warm up with."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    return file.getvalue()
