"""Training of a transformer network on photos and paintings: resumable to the bit, on CPU or GPU.

`train` runs the loop; a run's folder holds its checkpoint, its losses (CSV and a PNG curve) and its sample sheets.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from export.data import Painting, Photos, ahead
from export.sheet import loss_curve, sample_sheet
from service.gatys.losses import (
    PATCH,
    TRAINING_CONTENT_LAYER,
    TRAINING_STYLE_LAYERS,
    content_losses,
    grams_of,
)
from service.gatys.perceptual import BatchLosses, LossWeights, Window, batch_losses, learning_rate, moving_average
from service.gatys.pictures import to_tensor
from service.gatys.transformer import Transformer, TransformerConfig, neutral_vector
from service.gatys.vgg import VGG

Losses = Callable[..., BatchLosses]
LOSS_NAMES = ("total", "style", "content", "tv", "spikes", "imitation", "checkerboard", "edges")
LOG_EVERY = 50
CENTRE_EVERY = 500  # steps; see Transformer.centre
CHECKPOINT = "checkpoint.pt"
WINDOWS = 6  # a stream of random numbers: photos, slots, paintings and a discriminator have others
PHOTO_RATE = 1e-2
PIXEL_WEIGHT = 100.0  # of the mean squared error of pixels in 0-1, beside a content loss of weight 1


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run's weights, with the data. Sides in px; `small_steps` come first, on small crops."""

    network: TransformerConfig = field(default_factory=TransformerConfig)
    conditional: bool = True  # False: Johnson's classic, one style, no photo vector
    started_from: str = ""  # where the first weights came from, when not from chance
    steps: int = 16_000
    small_steps: int = 4_000
    imitation_steps: int = 0  # the very first ones: a teacher's pictures are the target, and VGG is not needed
    small_side: int = 160
    side: int = 240
    part: int = 0  # of a painted crop's side, that the losses see, anywhere in it; 0: all of it
    margin: int = 8  # mirrored around the pictures before the loss: VGG's zero padding is outside of them
    batch: int = 4
    learning_rate: float = 2e-3
    vector_rate: float = 3.0  # the vectors' learning rate over the convolutions'
    warmup_steps: int = 200
    average: float = 0.999
    painting_side: int = 384
    photo_steps: int = 400
    weights: LossWeights = field(default_factory=LossWeights)
    seed: int = 0

    def crop(self, step: int) -> tuple[int, int, int]:
        """(step, number of crops, their side): what `Photos.batch` is asked for."""
        return step, self.batch, self.small_side if step < self.small_steps else self.side

    @property
    def named(self) -> int:
        """How many pictures of a step are in one of the named styles."""
        return self.batch

    def window(self, step: int) -> Window | None:
        """What the losses see of the pictures of a step."""
        *_, side = self.crop(step)
        if not 0 < self.part < side:
            return None
        firsts = np.random.default_rng([self.seed, WINDOWS, step]).integers(side - self.part + 1, size=2)
        rows, columns = (int(first) + torch.arange(self.part) for first in firsts)
        return rows, columns

    @property
    def least_seen(self) -> int:
        """The smallest side, in px, of what the losses ever see."""
        crop = min(self.side, self.small_side) if self.small_steps else self.side
        return min(crop, self.part) if self.part else crop

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        return learning_rate(step, self.steps, self.learning_rate, self.warmup_steps)


class StyledNetwork(nn.Module):
    """A transformer and the vectors of its styles."""

    def __init__(self, transformer: Transformer, vectors: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.vectors = nn.Parameter(vectors)  # (slots, D)

    @classmethod
    def neutral(cls, config: TransformerConfig, slots: int) -> StyledNetwork:
        """A new network, all of whose vectors leave the normalised channels as they are."""
        return cls(Transformer(config), neutral_vector(config).repeat(slots, 1))

    def forward(self, photos: Tensor, slots: Tensor, spikes: list[Tensor] | None = None) -> Tensor:
        """Every photo in the style of its slot; see Transformer.forward."""
        stylised: Tensor = self.transformer(photos, self.vectors[slots], spikes)
        return stylised


class StyleTargets:
    """The Gram matrices of the paintings, one row a style: {layer: (K, C, C)}."""

    def __init__(self, vgg: VGG, paintings: Sequence[Painting], side: int) -> None:
        rows = [
            grams_of(
                vgg(to_tensor(np.asarray(p.canvas(side))[None]).to(vgg.mean.device), TRAINING_STYLE_LAYERS),
                TRAINING_STYLE_LAYERS,
            )
            for p in paintings
        ]
        self.grams = {layer: torch.cat([row[layer] for row in rows]) for layer in TRAINING_STYLE_LAYERS}

    def of(self, slots: Tensor) -> dict[str, Tensor]:
        """The targets of a batch: {layer: (N, C, C)}."""
        return {layer: grams[slots] for layer, grams in self.grams.items()}


def imitation_losses(
    network: StyledNetwork,
    teacher: StyledNetwork,
    weights: LossWeights,
    photos: Tensor,
    slots: Tensor,
    *,
    dtype: torch.dtype,
) -> BatchLosses:
    """As `batch_losses`, with the mean difference from the teacher's pictures (0-1) as the only goal."""
    norms: list[Tensor] = []
    with torch.autocast(photos.device.type, dtype, enabled=dtype == torch.bfloat16):
        with torch.no_grad():
            wanted = teacher(photos, slots)
        stylised = network(photos, slots, norms)
    imitation, spikes = (stylised - wanted).abs().mean(), torch.stack(norms).sum()
    missing = torch.full_like(spikes, math.nan)
    total = weights.imitation * imitation + weights.spikes * spikes
    return BatchLosses(
        total, torch.stack([missing, missing, missing, spikes, imitation, missing, missing]).detach(), stylised
    )


def learn_photo_vector(network: StyledNetwork, photos: Photos, vgg: VGG, config: TrainConfig) -> Tensor:
    """The vector, (D,), with which the trained network reconstructs photos best; the network itself stays as it is.

    It is learnt after the styles and not along with them: a network that has to reconstruct brightness while it
    trains smuggles it past the norms as a spike, and every picture has a droplet.
    """
    device = vgg.mean.device
    network = network.to(device).requires_grad_(False)
    vector = network.vectors.mean(0, keepdim=True).clone().requires_grad_(True)  # (1, D)
    optimizer = torch.optim.Adam([vector], betas=(0.9, 0.99))
    crops = [(config.steps + step, config.batch, config.small_side) for step in range(config.photo_steps)]
    for step, batch in enumerate(tqdm(photos.batches(crops), total=len(crops), desc="photo vector", unit="step")):
        batch = batch.to(device, memory_format=torch.channels_last)
        with torch.no_grad():
            content_target = vgg(batch, (TRAINING_CONTENT_LAYER,))[TRAINING_CONTENT_LAYER]
        reconstructed = network.transformer(batch, vector.expand(len(batch), -1))
        content = content_losses(vgg(reconstructed, (TRAINING_CONTENT_LAYER,))[TRAINING_CONTENT_LAYER], content_target)
        loss = PIXEL_WEIGHT * (reconstructed - batch).square().mean() + content.mean()
        optimizer.param_groups[0]["lr"] = PHOTO_RATE * 0.5 * (1 + math.cos(math.pi * step / len(crops)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vector.detach()[0].cpu()


class Trainer:
    """One run: its state is (network, optimiser, average, step); everything else follows from its configuration."""

    loss_names: ClassVar[tuple[str, ...]] = LOSS_NAMES

    def __init__(
        self,
        config: TrainConfig,
        paintings: Sequence[Painting],
        content: Path,
        vgg_weights: Path,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        compiled: bool = False,
        start: StyledNetwork | None = None,
        teacher: StyledNetwork | None = None,
    ) -> None:
        """Begins a run, or goes on with the one that `folder` holds. `start` begins from another network's weights;
        those of its parameters that do not require a gradient stay as they are. `teacher`, with the same slots, is
        whom the imitation steps imitate.

        Raises ValueError where the folder's run was begun with other options.
        """
        if config.imitation_steps and teacher is None:
            raise ValueError("imitation needs a teacher: a published model with the same styles")
        if not config.conditional and len(paintings) != 1:
            raise ValueError(f"a classic network learns one style, not {len(paintings)}; choose one with --styles")
        if config.weights.checkerboard and config.least_seen < PATCH:
            raise ValueError(f"checkerboards need crops, and parts, of {PATCH} px, not {config.least_seen}")
        torch.manual_seed(config.seed)
        self.config, self.paintings, self.folder, self.device = config, list(paintings), folder, torch.device(device)
        self.photos = Photos(content, config.seed)
        self.vgg = VGG.load(vgg_weights, device=device, dtype=dtype)
        network = StyledNetwork.neutral(config.network, len(paintings)) if start is None else start
        self.network: StyledNetwork = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.detach().clone() for name, value in self.network.named_parameters()}
        groups = [group for group in self._parameter_groups() if group["params"]]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.step = 0
        self.photo_vector: Tensor | None = None  # (D,), learnt when the styles are
        self.history: list[tuple[float, ...]] = []  # step, then loss_names: means over LOG_EVERY steps
        self.teacher = None if teacher is None else teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._batch_losses: Losses = batch_losses
        self._imitation_losses: Losses = imitation_losses
        if compiled:
            from export.compiled import compile_losses  # takes seconds to import

            self._batch_losses, self._imitation_losses = compile_losses(batch_losses), compile_losses(imitation_losses)
        folder.mkdir(parents=True, exist_ok=True)
        self._prepare()
        if self.checkpoint_path.exists():
            self._resume()

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / CHECKPOINT

    def run(
        self,
        until: int | None = None,
        *,
        save_every: int = 500,
        sheet_every: int = 1000,
        sheet_photos: Sequence[Path] = (),
    ) -> None:
        """Trains to step `until` (the configuration's last one), saving every `save_every` steps and at the end."""
        last = min(self.config.steps, self.config.steps if until is None else until)
        recent: list[Tensor] = []
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 60,
            desc=self.folder.name,
        )
        with bar:
            for pictures in ahead(self._read, range(self.step, last)):
                if self.step % CENTRE_EVERY == 0 and self._trains_convolutions:
                    self._centre()
                recent.append(self._train_step(*pictures))
                self.step += 1
                bar.update()
                if self.step % LOG_EVERY == 0:
                    means = torch.stack(recent).mean(0).tolist()
                    self.history.append((self.step, *means))
                    recent.clear()
                    bar.set_postfix(
                        dict(zip(self.loss_names, (f"{value:.3f}" for value in means), strict=True)), refresh=False
                    )
                if self.step % save_every == 0 or self.step == last:
                    self.save()
                if sheet_photos and (self.step % sheet_every == 0 or self.step == last):
                    self._write_sheet(sheet_photos)

        if self.step == self.config.steps:
            self._finish()

    def averaged(self) -> StyledNetwork:
        """The network with the moving average of its weights: what is shown and exported."""
        return _restored(self.config.network, self.average)

    def slots(self, step: int) -> Tensor:
        """Which vector each picture of a step is trained for: every slot once before any slot again."""
        count = len(self.network.vectors)
        places = range(step * self.config.named, (step + 1) * self.config.named)
        return torch.tensor(
            [np.random.default_rng([self.config.seed, 2, p // count]).permutation(count)[p % count] for p in places]
        )

    def save(self) -> None:
        """Writes the checkpoint atomically, and the losses so far as CSV and PNG.

        Raises FloatingPointError, and leaves the checkpoint before as it is, where a weight is no number any more.
        """
        if broken := [name for name, value in self.average.items() if not value.isfinite().all()]:
            raise FloatingPointError(
                f"after {self.step} steps {', '.join(broken[:3])} and others are no numbers any more"
            )
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(self._state(), partial)
        os.replace(partial, self.checkpoint_path)
        with (self.folder / "losses.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("step", *self.loss_names), *self.history])
        if self.history:
            loss_curve(self.folder / "losses.png", self.loss_names, self.history)

    def _state(self) -> dict[str, Any]:
        return {
            "config": dataclasses.asdict(self.config),
            "styles": [painting.name for painting in self.paintings],
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "loss_names": self.loss_names,
            "history": self.history,
            "photo_vector": self.photo_vector,
        }

    def _prepare(self) -> None:
        """What a run needs beyond its state, made once."""
        self.targets = StyleTargets(self.vgg, self.paintings, self.config.painting_side)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained; `ratio` is its learning rate over the configuration's."""
        convolutions = [p for p in self.network.transformer.parameters() if p.requires_grad]
        return [
            {"params": convolutions, "ratio": 1.0},
            {"params": [self.network.vectors], "ratio": self.config.vector_rate},
        ]

    def _finish(self) -> None:
        """What is learnt once the last step is done."""
        if self.config.conditional and self.photo_vector is None:
            self.photo_vector = learn_photo_vector(self.averaged(), self.photos, self.vgg, self.config)
            self.save()

    @property
    def _trains_convolutions(self) -> bool:
        return any(p.requires_grad for p in self.network.transformer.parameters())

    @torch.no_grad()
    def _centre(self) -> None:
        """Centres the network on photos in all of its styles, and the average along with it."""
        biases = {n: p for n, p in self.network.named_parameters() if n.endswith("convolution.bias")}
        before = {name: bias.clone() for name, bias in biases.items()}
        photos = self._to_device(self.photos.batch(self.step, len(self.network.vectors), self.config.small_side))
        self.network.transformer.centre(photos, self.network.vectors)
        for name, bias in biases.items():
            self.average[name] += bias - before[name]

    def _read(self, step: int) -> tuple[Tensor, ...]:
        """The pictures that a step needs, on the device, the photos first; a pure function of the step."""
        return (self._to_device(self.photos.batch(*self.config.crop(step))),)

    def _to_device(self, values: Tensor) -> Tensor:
        """`values` on the device; pictures (N, 3, H, W) in its favourite layout."""
        if self.device.type == "cuda":
            values = values.pin_memory()  # or the copy waits until all that was asked of the GPU is done
        memory_format = torch.channels_last if values.dim() == 4 else torch.contiguous_format
        return values.to(self.device, memory_format=memory_format, non_blocking=True)

    def _styles(self, *pictures: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the network is told of this step's styles, a row a picture, and their targets: {layer: (N, C, C)}."""
        slots = self._to_device(self.slots(self.step))
        return slots, self.targets.of(slots)

    def _train_step(self, photos: Tensor, *others: Tensor) -> Tensor:
        """Updates the network with what `_read` gave for this step; its losses, `loss_names`, on the device."""
        slots, targets = self._styles(*others)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step) * group["ratio"]
        total, parts, _ = self._losses(photos, slots, targets)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        for name, value in self.network.named_parameters():
            moving_average(self.average[name], value, self.step, self.config.average)
        return torch.cat([total.detach()[None], parts])

    def _losses(self, photos: Tensor, slots: Tensor, targets: dict[str, Tensor]) -> BatchLosses:
        network, weights = self.network, self.config.weights
        if self.step < self.config.imitation_steps:
            return self._imitation_losses(network, self.teacher, weights, photos, slots, dtype=self.vgg.dtype)
        window = self.config.window(self.step)
        if window is not None:
            window = self._to_device(window[0]), self._to_device(window[1])
        return self._batch_losses(network, self.vgg, weights, photos, slots, targets, self.config.margin, window)

    def _resume(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint_path, map_location=self.device, weights_only=True)
        wanted, found = dataclasses.asdict(self.config), state["config"]
        differing = [key for key in wanted if wanted[key] != found.get(key, wanted[key]) and key != "steps"]
        if state["styles"] != [painting.name for painting in self.paintings]:
            differing.append("styles")
        if differing:
            raise ValueError(
                f"{self.folder} was begun with another {', '.join(differing)}; use another --run, or the same options"
            )
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step, self.history = state["average"], state["step"], state["history"]
        self.photo_vector = state.get("photo_vector")

    def _write_sheet(self, photos: Sequence[Path]) -> None:
        names = [painting.name for painting in self.paintings]
        sample_sheet(self.folder / f"sheet_{self.step:06d}.jpg", self.averaged(), names, photos)


@dataclass(frozen=True)
class Run:
    """What a run's checkpoint says, without its data: enough to export, verify and publish it."""

    network: StyledNetwork  # with the averaged weights
    photo_vector: Tensor | None
    config: dict[str, Any]
    styles: list[str]
    step: int
    losses: dict[str, float]  # the last ones, by name

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Reads `folder`/checkpoint.pt. Raises FileNotFoundError where there is none."""
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        network = _restored(TransformerConfig(**state["config"]["network"]), state["average"])
        photo_vector = state.get("photo_vector")
        return cls(network, photo_vector, state["config"], state["styles"], state["step"], last_losses(state))

    def vectors(self) -> dict[str, Tensor]:
        """The vector, (D,), of every style."""
        return dict(zip(self.styles, self.network.vectors.detach(), strict=True))


def check_finished(step: int, config: Mapping[str, Any]) -> None:
    """Raises ValueError where a run has steps left."""
    if step < config["steps"]:
        raise ValueError(f"the run has done {step} of {config['steps']} steps; go on with it first")


def last_losses(state: Mapping[str, Any]) -> dict[str, float]:
    """The losses, by name, that a checkpoint's run had reached, of those that it had; none before its first record."""
    names, history = state.get("loss_names", LOSS_NAMES), state["history"]
    found = zip(names, history[-1][1:], strict=True) if history else ()
    return {name: value for name, value in found if math.isfinite(value)}


def _restored(config: TransformerConfig, weights: Mapping[str, Tensor]) -> StyledNetwork:
    """Of `weights`, which may be more than a network's: an encoder's, of a run of both."""
    network = StyledNetwork.neutral(config, len(weights["vectors"]))
    network.load_state_dict({name: weights[name].cpu() for name in network.state_dict()})
    return network.eval()
