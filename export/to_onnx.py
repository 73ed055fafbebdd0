"""ONNX graphs that take and give pixels: uint8 (N, H, W, 3) sRGB in and out, any size from 1 x 1."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from service.gatys.transformer import HALF, BlockConv, Conv, SubpixelConv, Transformer, UpConv, load_transformer

OPSET = 20
SMALLEST_SIDE = 16  # reflection padding needs more pixels than it adds


class PixelGraph(nn.Module):
    """A transformer between pixels: casts, scales, pads to the stride, crops, clips and rounds.

    A classic network's one style is built in: its norms become plain affine InstanceNormalization nodes.
    """

    output = "stylized"

    def __init__(self, transformer: Transformer, vector: Tensor | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.vector = None if vector is None else nn.Parameter(vector.detach().clone())  # (D,)

    def forward(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        """image uint8 (N, H, W, 3), style (N, D) float32 unless built in -> stylised uint8 (N, H, W, 3)."""
        return _pixels(self.transformer(self._photos(image), self._style(style)), image)

    def _photos(self, image: Tensor) -> Tensor:
        """uint8 (N, H, W, 3) -> (N, 3, H', W'), 0-1, its sides padded to what the network takes."""
        stride = self.transformer.config.stride
        height, width = image.shape[1:3]
        photos = image.permute(0, 3, 1, 2).float() / 255
        padded = F.pad(photos, (0, _padding(width, stride), 0, _padding(height, stride)), mode="replicate")
        return padded.to(self._dtype)

    def _style(self, style: Tensor | None) -> Tensor:
        chosen = self.vector if style is None else style
        assert chosen is not None
        return chosen.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.transformer.last.convolution.weight.dtype

    def deployed(self) -> Self:
        """An equal graph that moves fewer pixels: what is exported, while this one is what was trained.

        Up-sampling is cheaper, but for that of the detour: the four phases of a flat picture differ by rounding, and
        the norms that follow there would make a texture of it. Blocks of pixels are taken by a stride, and put in
        their places once they are bytes.
        """
        copied = copy.deepcopy(self)
        transformer = copied.transformer
        if isinstance(first := transformer.down[0], Conv) and transformer.config.shuffle > 1:
            transformer.down[0], transformer.unshuffle = BlockConv(first, transformer.config.shuffle), nn.Identity()
        up = [SubpixelConv(conv) if isinstance(conv, UpConv) else conv for conv in transformer.up]
        transformer.up = nn.ModuleList(up)
        transformer.shuffle = nn.Identity()
        return copied

    def halved(self) -> Self:
        """As `deployed`, in fp16 from the padded photo to the last convolution's pixels, for GPUs.

        The norms' statistics stay fp32 without being asked to: torch's are taken so, and ONNX Runtime's kernel of
        InstanceNormalization for CUDA has them, and the scale and shift, in fp32 where its input is fp16.
        """
        copied = self.deployed()
        copied.transformer.half()
        return copied


class FreezingGraph(PixelGraph):
    """From pixels to the style with their statistics in it: the first half of a tiled picture."""

    output = "frozen"

    def forward(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        """image uint8 (N, H, W, 3), style (N, D) float32 -> frozen style (N, D)."""
        return self.transformer.freeze(self._photos(image), self._style(style))


class FrozenGraph(PixelGraph):
    """A `PixelGraph` whose style is a frozen one, so that tiles have no seams: the other half."""

    def forward(self, image: Tensor, style: Tensor | None = None) -> Tensor:
        """image uint8 (N, H, W, 3), frozen style (N, D) float32 -> stylised uint8 (N, H, W, 3)."""
        return _pixels(self.transformer.frozen(self._photos(image), self._style(style)), image)


def _pixels(blocks: Tensor, image: Tensor) -> Tensor:
    """(N, 3 S^2, H' / S, W' / S), blocks of S x S pixels as channels -> uint8 (N, H, W, 3), as large as the image."""
    height, width = image.shape[1:3]
    levels = (blocks * 255).round().clamp(0, 255).to(torch.uint8)
    n, channels, rows, columns = levels.shape
    side = math.isqrt(channels // 3)
    if side == 1:
        return levels[:, :, :height, :width].permute(0, 2, 3, 1)
    places_first = torch.arange(channels).reshape(3, side**2).T.flatten()
    levels = levels.index_select(1, places_first)
    lines = [line.permute(0, 2, 3, 1).reshape(n, rows, 3 * side * columns) for line in levels.chunk(side, dim=1)]
    pixels = torch.stack(lines, dim=2).reshape(n, side * rows, side * columns, 3)
    return pixels[:, :height, :width]


def _padding(side: int, stride: int) -> int:
    """How many pixels a side lacks to the stride's next multiple, and to the smallest side; symbolic in an export."""
    padded: int = torch.sym_max(side + -side % stride, SMALLEST_SIDE)  # type: ignore[no-untyped-call]
    return padded - side


def export_graph(graph: PixelGraph, path: Path) -> None:
    """Writes a self-contained ONNX file with dynamic N, H and W, and checks it against the ONNX schema."""
    batch, height, width = Dim("N", min=1, max=4096), Dim("H", min=1, max=65535), Dim("W", min=1, max=65535)
    example: tuple[Tensor, ...] = (torch.zeros(2, 37, 50, 3, dtype=torch.uint8),)
    names, shapes = ["image"], [{0: batch, 1: height, 2: width}]
    if graph.vector is None:
        example += (torch.zeros(2, graph.transformer.config.style_size),)
        names, shapes = [*names, "style"], [*shapes, {0: batch}]
    write_onnx(graph.deployed().eval(), example, path, names, graph.output, shapes)
    keep_in_half(path, lossless=True)


def rounded(transformer: Transformer) -> Transformer:
    """A copy whose kernels are numbers of fp16 (their biases, which are few, stay as they are): half the file."""
    copied = copy.deepcopy(transformer)
    for parameter in copied.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.half().float()
    return copied


def keep_in_half(path: Path, *, lossless: bool) -> None:
    """Keeps a graph's kernels and matrices in fp16, cast when they are loaded; with `lossless` only those that lose
    nothing by it. Checks the graph against the ONNX schema."""
    model = onnx.load(path)
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        halved = values.astype(np.float16)
        if lossless and not np.array_equal(halved.astype(np.float32), values):
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, f"{name}{HALF}"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    stale = [value for value in graph.value_info if value.name in {node.output[0] for node in casts}]
    for value in stale:
        graph.value_info.remove(value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_onnx(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    output: str,
    shapes: Sequence[dict[int, Dim]],
) -> None:
    """Exports a graph; `shapes` has the dynamic dimensions of every input."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamic_shapes=tuple(shapes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _forget_the_export(path)


def _forget_the_export(path: Path) -> None:
    """Takes out what the exporter noted, stack traces with this machine's paths among it: a graph that is exported
    elsewhere has the same bytes."""
    model = onnx.load(path)
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    onnx.save(model, path)


def load_graph(path: Path) -> PixelGraph:
    """What `export_graph` wrote, in torch again: the store's models are their own checkpoints.

    Raises ValueError for a graph from elsewhere.
    """
    return PixelGraph(*load_transformer(path.read_bytes(), str(path)))
