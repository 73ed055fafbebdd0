"""A complete, valid store of small ONNX networks, whose answers can be worked out by hand."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

DIMENSION = 4
PALETTE = 2  # of its last numbers: blue, and how much is inverted
VECTORS = {
    "photo": [0.0, 0.0, 0.0, 0.0],
    "red": [80.0, 0.0, 0.0, 0.0],
    "green": [0.0, 80.0, 0.0, 0.0],
    "negative": [0.0, 0.0, 0.0, 1.0],
}


def toy_stylized(image: np.ndarray, vector: Sequence[float] | np.ndarray) -> np.ndarray:
    """What the conditional toy makes of (H, W, 3): x + v[:3] + v[3] (255 - 2x), rounded and clipped."""
    x, v = image.astype(np.float32), np.asarray(vector, np.float32)
    stylized: np.ndarray = np.clip(np.rint(x + v[:3] + v[3] * (255 - 2 * x)), 0, 255).astype(np.uint8)
    return stylized


def conditional_graph() -> bytes:
    constants = {
        "shape": np.array([-1, 1, 1, 3], np.int64),
        "scalar": np.array([-1, 1, 1, 1], np.int64),
        "two": np.float32(2),
        "white": np.float32(255),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        _slice("style", "colour", 0, 3, constants),
        helper.make_node("Reshape", ["colour", "shape"], ["shift"]),
        _slice("style", "last", 3, 4, constants),
        helper.make_node("Reshape", ["last", "scalar"], ["amount"]),
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Sub", ["white", "twice"], ["inversion"]),
        helper.make_node("Mul", ["inversion", "amount"], ["inverted"]),
        helper.make_node("Add", ["x", "shift"], ["shifted"]),
        helper.make_node("Add", ["shifted", "inverted"], ["y"]),
        *_to_pixels("y", "stylized", constants),
    ]
    inputs = [_images("image"), helper.make_tensor_value_info("style", TensorProto.FLOAT, ["N", DIMENSION])]
    return _graph(nodes, inputs, [_images("stylized")], constants)


def freezing_graph() -> bytes:
    """The toy has no norms: nothing of a picture goes into a style."""
    style = helper.make_tensor_value_info("style", TensorProto.FLOAT, ["N", DIMENSION])
    frozen = helper.make_tensor_value_info("frozen", TensorProto.FLOAT, ["N", DIMENSION])
    node = helper.make_node("Identity", ["style"], ["frozen"])
    return _graph([node], [_images("image"), style], [frozen], {})


def classic_graph(input_name: str = "image", output_name: str = "stylized") -> bytes:
    """255 - x."""
    constants = {"white": np.float32(255)}
    nodes = [
        helper.make_node("Cast", [input_name], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["white", "x"], ["y"]),
        *_to_pixels("y", output_name, constants),
    ]
    return _graph(nodes, [_images(input_name)], [_images(output_name)], constants)


def write_store(
    root: Path, weights: bytes = b"not really safetensors", paintings: Mapping[str, bytes] | None = None
) -> Path:
    """A conditional network and its encoder, a classic one, one that somebody else exported, and features that are
    never loaded.

    ``paintings`` maps styles of the first to the pictures that it ships.
    """
    write_encoder(root, write_conditional(root, paintings=paintings or {}))
    write_classic(root, "classic_ink", "ink", classic_graph())
    foreign = classic_graph("pixels:0", "result/out")
    write_classic(root, "classic_foreign", "foreign", foreign, input_name="pixels:0", output_name="result/out")
    write_model(root, _card("vgg16", "features"), {"vgg16.safetensors": weights})
    return root


def write_conditional(
    root: Path,
    name: str = "toy",
    vectors: dict[str, list[float]] = VECTORS,
    paintings: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    graph = conditional_graph()
    files = {"model.onnx": graph, "freezing.onnx": freezing_graph(), "frozen.onnx": graph}
    for style, vector in vectors.items():
        files[f"styles/{style}.npy"] = _npy(np.array(vector, np.float32))
    styles = [style for style in vectors if style != "photo"]
    files |= {f"previews/{style}.jpg": _preview() for style in styles}
    files |= {f"paintings/{style}.png": content for style, content in paintings.items()}
    shipped = {style: {"painting": f"paintings/{style}.png"} for style in paintings}
    style_input = {"name": "style", "dtype": "float32", "shape": ["N", DIMENSION]}
    card = _card(name, "conditional") | {
        "graph": "model.onnx",
        "tiling": {"freezing": "freezing.onnx", "frozen": "frozen.onnx", "radius_px": 5},
        "inputs": [_tensor("image"), style_input],
        "outputs": [_tensor("stylized")],
        "photo_vector": "styles/photo.npy",
        "palette_size": PALETTE,
        "styles": [_style(style) | {"vector": f"styles/{style}.npy"} | shipped.get(style, {}) for style in styles],
    }
    return write_model(root, card, files)


def write_classic(
    root: Path, name: str, style: str, graph: bytes, input_name: str = "image", output_name: str = "stylized"
) -> Path:
    card = _card(name, "classic") | {
        "graph": "model.onnx",
        "inputs": [_tensor(input_name)],
        "outputs": [_tensor(output_name)],
        "styles": [_style(style)],
    }
    return write_model(root, card, {"model.onnx": graph, f"previews/{style}.jpg": _preview()})


def encoder_graph() -> bytes:
    """The mean colour and a 0: a toy's vector of a painting, whose first three numbers are added to a photo."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Pad", ["mean", "one_more"], ["vector"]),
    ]
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["N", DIMENSION])
    return _graph(nodes, [_images("image")], [vector], {"one_more": np.array([0, 0, 0, 1], np.int64)})


def write_encoder(root: Path, network: Path) -> Path:
    """An encoder of paintings for the conditional network in the folder ``network``."""
    sha256 = json.loads((network / "model.json").read_text())["files"]["model.onnx"]
    card = _card("arbitrary", "encoder") | {
        "graph": "model.onnx",
        "inputs": [_tensor("image")],
        "outputs": [{"name": "vector", "dtype": "float32", "shape": ["N", DIMENSION]}],
        "vectors_of": {"model": network.parent.name, "sha256": sha256, "painting_side_px": 32},
    }
    return write_model(root, card, {"model.onnx": encoder_graph()})


def write_model(root: Path, card: dict[str, Any], files: dict[str, bytes]) -> Path:
    folder: Path = root / card["name"] / str(card["version"])
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    card = card | {"files": {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}}
    (folder / "model.json").write_text(json.dumps(card))
    return folder


def edit_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | changes))


def _card(name: str, kind: str) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": name,
        "version": 1,
        "kind": kind,
        "title": name.title(),
        "description": "A toy.",
        "licence": "Apache-2.0",
        "created_at": "2026-11-23T10:00:00Z",
    }


def _style(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.title(),
        "artist": "Nobody",
        "year": "2026",
        "credit": "Made for a test; public domain",
        "painting_sha256": hashlib.sha256(name.encode()).hexdigest(),
        "painting_side_px": 384,
        "preview": f"previews/{name}.jpg",
    }


def _tensor(name: str) -> dict[str, Any]:
    return {"name": name, "dtype": "uint8", "shape": ["N", "H", "W", 3]}


def _images(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3])


def _slice(source: str, target: str, start: int, stop: int, constants: dict[str, Any]) -> onnx.NodeProto:
    names = [f"{target}_{part}" for part in ("start", "stop", "axis")]
    constants |= dict(zip(names, (np.array([n], np.int64) for n in (start, stop, 1)), strict=True))
    return helper.make_node("Slice", [source, *names], [target])


def _to_pixels(source: str, target: str, constants: dict[str, Any]) -> list[onnx.NodeProto]:
    constants |= {"low": np.float32(0), "high": np.float32(255)}
    return [
        helper.make_node("Round", [source], [f"{target}_whole"]),
        helper.make_node("Clip", [f"{target}_whole", "low", "high"], [f"{target}_clipped"]),
        helper.make_node("Cast", [f"{target}_clipped"], [target], to=TensorProto.UINT8),
    ]


def _graph(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, Any],
) -> bytes:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _preview() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 60, 30)).save(file, "JPEG")
    return file.getvalue()
