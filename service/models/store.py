"""The model store: ``<root>/<model>/<version>/`` with a card, ``model.json``, that is a model's whole truth.

Nothing is served that its card does not vouch for: every file is there, has the card's sha256 and the card's shape.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ModelRefused, translating

CARD = "model.json"
PAINTING = "style_image"  # in a mix: the painting that came with the request
PHOTO = "photo"  # the vector trained to reconstruct the photo: the identity, not a style
NAME_PATTERN = r"^[a-z0-9][a-z0-9_]{0,63}$"

Vector = npt.NDArray[np.float32]  # (D,)


def _inside(path: str) -> str:
    posix = PurePosixPath(path)
    if posix.is_absolute() or ".." in posix.parts or str(posix) != path or "\\" in path or path in (".", CARD):
        raise ValueError("a path must be relative, POSIX, normal and inside the model's folder")
    return path


def _not_reserved(name: str) -> str:
    if name in (PHOTO, PAINTING):
        raise ValueError(f"{name} has a meaning of its own, and is not a style's name")
    return name


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
StyleName = Annotated[Name, AfterValidator(_not_reserved)]
RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Kind = Literal["conditional", "classic", "features", "encoder"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """An input or output of the graph; a string in ``shape`` is a dynamic dimension."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | str, ...]


class StyleEntry(_Frozen):
    """A style and the painting behind it. ``vector`` is there for a conditional network only; ``painting`` is the
    file of ``painting_sha256`` where it may be shipped."""

    name: StyleName
    title: str
    artist: str
    year: str
    credit: str
    painting_sha256: Sha256
    painting_side_px: int | None = Field(None, ge=1)
    vector: RelativePath | None = None
    preview: RelativePath
    painting: RelativePath | None = None
    quality: dict[str, Any] = Field(default_factory=dict)


class Tiling(_Frozen):
    """The graphs of large pictures: ``freezing`` puts a picture's statistics into a style, ``frozen`` is the network
    for such a style, whose pixels depend on nothing farther than ``radius_px``."""

    freezing: RelativePath
    frozen: RelativePath
    radius_px: int = Field(ge=0)


class VectorsOf(_Frozen):
    """The network whose style vectors an encoder makes, by its ``network_sha256``, from paintings whose shorter side
    was ``painting_side_px`` in training."""

    model: Name
    sha256: Sha256
    painting_side_px: int = Field(ge=1)


class Card(_Frozen):
    """``model.json``. Raises pydantic.ValidationError where it contradicts itself."""

    schema_: Literal[1] = Field(alias="schema")
    name: Name
    version: int = Field(ge=1)
    kind: Kind
    title: str
    description: str
    licence: str
    created_at: str
    graph: RelativePath | None = None
    tiling: Tiling | None = None
    fp16: dict[RelativePath, RelativePath] = Field(
        default_factory=dict, description="the same graphs with fp16 between pixels and pixels, by those of fp32"
    )
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    vectors_of: VectorsOf | None = None
    photo_vector: RelativePath | None = None
    first_graph: Sha256 | None = Field(default=None, description="of a network that was exported anew: its first one")
    palette_size: int = Field(default=0, ge=0, description="the last numbers of a vector, which make a style's colours")
    styles: tuple[StyleEntry, ...] = ()
    files: dict[RelativePath, Sha256]
    training: dict[str, Any] = Field(default_factory=dict)
    quality: dict[str, Any] = Field(default_factory=dict)
    speed: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        if not self.fp16.keys() <= {self.graph, self.tiling and self.tiling.frozen}:
            raise ValueError("fp16 is of the graph, and of the frozen one, alone")
        if self.kind == "features":
            if self.styles or self.photo_vector:
                raise ValueError("a features model has no styles")
            return self
        if (self.kind == "encoder") != (self.vectors_of is not None):
            raise ValueError("an encoder, and nothing else, says whose vectors it makes in vectors_of")
        _check_graph(self)
        if self.kind != "encoder":
            _check_styles(self)
        elif self.styles or self.photo_vector or self.tiling:
            raise ValueError("an encoder has no styles and no tiling")
        named = [
            self.graph,
            self.photo_vector,
            *((self.tiling.freezing, self.tiling.frozen) if self.tiling else ()),
            *self.fp16.values(),
            *(path for s in self.styles for path in (s.vector, s.preview, s.painting)),
        ]
        for path in named:
            if path is not None and path not in self.files:
                raise ValueError(f"{path} is named but has no sha256 in files")
        return self

    @property
    def label(self) -> str:
        """``name@version``, as the header X-Model says it."""
        return f"{self.name}@{self.version}"

    @property
    def graph_sha256(self) -> str:
        """What tells this graph from others; "" where there is none."""
        return self.files[self.graph] if self.graph else ""

    @property
    def network_sha256(self) -> str:
        """What tells this network from others, and vectors say that they are for: the sha256 of its first graph."""
        return self.first_graph or self.graph_sha256

    @property
    def dimension(self) -> int:
        """D, the length of a style vector; 0 for a classic network."""
        if self.kind == "encoder":
            return int(self.outputs[0].shape[1])
        return int(self.inputs[1].shape[1]) if self.kind == "conditional" else 0


def _check_graph(card: Card) -> None:
    if card.graph is None:
        raise ValueError("graph is missing")
    if len(card.inputs) != (2 if card.kind == "conditional" else 1) or len(card.outputs) != 1:
        raise ValueError(f"a {card.kind} network has not these inputs and outputs")
    for tensor in (card.inputs[0], *(() if card.kind == "encoder" else card.outputs)):
        if tensor.dtype != "uint8" or len(tensor.shape) != 4 or tensor.shape[3] != 3:
            raise ValueError(f"{tensor.name} must be uint8 (N, H, W, 3): preprocessing belongs into the graph")
    if card.kind in ("conditional", "encoder"):
        style = card.inputs[1] if card.kind == "conditional" else card.outputs[0]
        if style.dtype != "float32" or len(style.shape) != 2 or not isinstance(style.shape[1], int):
            raise ValueError(f"{style.name} must be float32 (N, D) with D a number")
        if card.palette_size >= style.shape[1]:
            raise ValueError("palette_size is not less than D")


def _check_styles(card: Card) -> None:
    names = [style.name for style in card.styles]
    if len(set(names)) != len(names):
        raise ValueError("two styles have one name")
    if card.kind == "classic":
        if len(names) != 1 or card.photo_vector or card.styles[0].vector or card.tiling:
            raise ValueError("a classic network has exactly one style, no vectors and no tiling")
    elif not names or card.photo_vector is None or any(style.vector is None for style in card.styles):
        raise ValueError("a conditional network has a photo vector, and at least one style, each with a vector")


@dataclass(frozen=True)
class StoredModel:
    """A model whose files were found to be what its card says.

    ``vectors`` maps a style's name, and ``photo``, to float32 (D,); ``previews`` a style's name to JPEG bytes;
    ``paintings`` a style's name to the image file of its painting, where that is shipped. ``freezing`` and ``frozen``
    are the card's graphs for tiles, empty where it has none; ``fp16`` maps the paths of its graphs to those of fp16.
    """

    card: Card
    graph: bytes
    vectors: dict[str, Vector]
    previews: dict[str, bytes]
    paintings: dict[str, bytes] = field(default_factory=dict)
    freezing: bytes = b""
    frozen: bytes = b""
    fp16: dict[str, bytes] = field(default_factory=dict)

    def halved(self) -> StoredModel:
        """The same model with its graphs of fp16 in the place of those that it has them for."""
        graph = self.fp16.get(self.card.graph or "", self.graph)
        frozen = self.fp16.get(self.card.tiling.frozen, self.frozen) if self.card.tiling else self.frozen
        return replace(self, graph=graph, frozen=frozen)


class ModelStore:
    """A folder of models. Only the highest version of each is looked at."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self) -> list[Path]:
        """The folder of each model's highest version, ordered by name; anything else lying about is passed over.

        Raises ModelRefused where the store itself is not there, or is empty.
        """
        with translating({OSError: lambda error: ModelRefused(str(self._root), f"cannot be listed ({error})")}):
            models = sorted(p for p in self._root.iterdir() if re.match(NAME_PATTERN, p.name) and p.is_dir())
            versions = [[v for v in model.iterdir() if re.fullmatch(r"[1-9]\d*", v.name)] for model in models]
        found = [max(of_model, key=lambda path: int(path.name)) for of_model in versions if of_model]
        if not found:
            raise ModelRefused(str(self._root), "holds no model; publish one or set STYLIZE_MODEL_STORE")
        return found

    def load(self, folder: Path) -> StoredModel:
        """Verify a model and read what serving it needs. Raises ModelRefused saying why not."""
        label = f"{folder.parent.name}/{folder.name}"

        def refused(error: Exception) -> ModelRefused:
            return ModelRefused(label, _reason(error))

        with translating({ValidationError: refused, OSError: refused, ValueError: refused}):
            card = Card.model_validate_json((folder / CARD).read_bytes())
            if (card.name, str(card.version)) != (folder.parent.name, folder.name):
                raise ValueError(f"its card says that it is {card.label}")
            return _stored(card, {path: _verified(folder, path, sha256) for path, sha256 in card.files.items()})

    def version(self) -> str:
        """Of all that is in it: other cards, which have the checksums of everything, make another one. Raises
        ModelRefused where it cannot be read."""
        digest = hashlib.sha256()
        for folder in self.folders():
            with translating({OSError: lambda error: ModelRefused(str(self._root), f"cannot be read ({error})")}):
                digest.update(file_sha256(folder / CARD).encode())
        return digest.hexdigest()[:12]

    def networks(self) -> list[StoredModel]:
        """Every model that can stylise, loaded. Raises ModelRefused for the first of all models that is not sound."""
        return self.of_kinds("conditional", "classic")

    def of_kinds(self, *kinds: Kind) -> list[StoredModel]:
        """As ``networks``, of other kinds."""
        models = map(self.load, self.folders())
        return [model for model in models if model.card.kind in kinds]


def feature_weights(root: Path, network: str) -> Path | None:
    """The weights of a perceptual network in the store at ``root``, its highest version; None where it has none."""
    found = list((root / network).glob(f"[1-9]*/{network}.safetensors"))
    return max(found, key=lambda path: int(path.parent.name), default=None)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_vector(content: bytes, dimension: int) -> Vector:
    """A style vector, float32 (dimension,), from an .npy file's bytes.

    Raises ValueError where they hold anything else, or a number that is not finite.
    """
    vector = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (dimension,):
        raise ValueError(f"not a float32 vector of {dimension} numbers")
    if not np.isfinite(vector).all():
        raise ValueError("a number in it is not finite")
    return vector


def _verified(folder: Path, path: str, sha256: str) -> bytes:
    """The file's content: what is used later is the very bytes that were checked."""
    content = (folder / path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} has sha256 {found}, but its card says {sha256}")
    return content


def _stored(card: Card, files: dict[str, bytes]) -> StoredModel:
    if card.kind == "features":  # verified for the slow path, which reads it itself
        return StoredModel(card, b"", {}, {})
    paths = {style.name: style.vector for style in card.styles} | {PHOTO: card.photo_vector}
    vectors = {}
    for name, path in paths.items():
        if path is not None:
            try:
                vectors[name] = read_vector(files[path], card.dimension)
            except (ValueError, EOFError) as error:
                raise ValueError(f"{path}: {error}") from error
    assert card.graph is not None  # the card's own validation
    previews = {style.name: files[style.preview] for style in card.styles}
    paintings = {style.name: files[style.painting] for style in card.styles if style.painting}
    freezing, frozen = (files[card.tiling.freezing], files[card.tiling.frozen]) if card.tiling else (b"", b"")
    fp16 = {of: files[path] for of, path in card.fp16.items()}
    return StoredModel(card, files[card.graph], vectors, previews, paintings, freezing, frozen, fp16)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        found = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        return "its card is invalid: " + "; ".join(found)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is missing"
    return str(error)
