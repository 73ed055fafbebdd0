"""The adversarial recipe: the losses of every training, and a discriminator that compares patches with the paintings'.

`train --recipe gan` runs it. A step updates the network, then the discriminator on the pictures that it has just made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.data import Painting
from export.networks.discriminator import Discriminator, hinge_losses
from export.train import LOSS_NAMES, TrainConfig, Trainer
from service.gatys.perceptual import BatchLosses
from service.gatys.pictures import square_crop, to_tensor

STREAM = 5  # of random numbers: photos, slots and the corpus have others
ZOOM = (1.0, 1.25)  # side of what is cut out of a painting over the patch's: strokes keep their size, or nearly


@dataclass(frozen=True)
class GanConfig(TrainConfig):
    """As TrainConfig. The adversarial loss gets its weight little by little over `ramp_steps`: until then the
    discriminator knows nothing. Without warm-up the weights that it starts from would be lost."""

    learning_rate: float = 5e-4
    adversarial_weight: float = 0.05
    ramp_steps: int = 200
    discriminator_widths: tuple[int, ...] = (32, 64, 128)
    discriminator_rate: float = 4e-4

    def adversarial(self, step: int) -> float:
        """The weight of the adversarial loss at a step."""
        return self.adversarial_weight * min(1.0, step / self.ramp_steps)


class PaintedPatches:
    """Crops of the paintings, in the scale that their Grams are taken at: what the discriminator takes for real."""

    def __init__(self, paintings: Sequence[Painting], short_side: int, seed: int) -> None:
        self.pictures = [painting.canvas(short_side) for painting in paintings]
        self.seed = seed

    def batch(self, step: int, slots: Sequence[int], side: int) -> Tensor:
        """The patches of one step, a row a slot: (N, 3, side, side), 0-1; a pure function of (seed, step)."""
        rng = np.random.default_rng([self.seed, STREAM, step])
        return to_tensor(np.stack([square_crop(self.pictures[slot], side, ZOOM, rng) for slot in slots]))


class GanTrainer(Trainer):
    """A Trainer with a discriminator, which is part of its state."""

    config: GanConfig
    loss_names = (*LOSS_NAMES, "adversarial", "real", "made")

    def _prepare(self) -> None:
        super()._prepare()
        self.patches = PaintedPatches(self.paintings, self.config.painting_side, self.config.seed)
        discriminator = Discriminator(len(self.paintings), self.config.discriminator_widths)
        self.discriminator: Discriminator = discriminator.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.judge_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=self.config.discriminator_rate, betas=(0.0, 0.99)
        )

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "discriminator": self.discriminator.state_dict(),
            "judge_optimizer": self.judge_optimizer.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self.discriminator.load_state_dict(state["discriminator"])
        self.judge_optimizer.load_state_dict(state["judge_optimizer"])

    def _read(self, step: int) -> tuple[Tensor, ...]:
        (photos,) = super()._read(step)
        patches = self.patches.batch(step, self.slots(step).tolist(), photos.shape[-1])
        return photos, self._to_device(patches)

    def _train_step(self, photos: Tensor, *others: Tensor) -> Tensor:
        return torch.cat([super()._train_step(photos), self._judge_step(*others)])

    def _losses(self, photos: Tensor, slots: Tensor, targets: dict[str, Tensor]) -> BatchLosses:
        losses = super()._losses(photos, slots, targets)
        self.discriminator.requires_grad_(False)
        adversarial = -self._judged(losses.stylised, slots).mean()
        self.made = losses.stylised.detach(), slots
        total = losses.total + self.config.adversarial(self.step) * adversarial
        return BatchLosses(total, torch.cat([losses.parts, adversarial.detach()[None]]), losses.stylised)

    def _judge_step(self, patches: Tensor) -> Tensor:
        """Updates the discriminator on the pictures that the network made last; its losses, (2,)."""
        made, slots = self.made
        self.discriminator.requires_grad_(True)
        judged = self._judged(torch.cat([patches, made]), slots.repeat(2))
        losses = torch.stack(hinge_losses(*judged.chunk(2)))
        self.judge_optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        self.judge_optimizer.step()
        return losses.detach()

    def _judged(self, pictures: Tensor, slots: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.vgg.dtype == torch.bfloat16):
            judged: Tensor = self.discriminator(pictures, slots)
        return judged
