"""Optimisation of the picture itself (Gatys, Ecker & Bethge 2015, "A Neural Algorithm of Artistic Style")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from service.gatys.losses import Keras, Relative, grams_of
from service.gatys.vgg import VGG

EDGE = 1 / 64  # pixels start this far inside 0-1, where the sigmoid has a slope: at 1/512 what was black stayed black
HISTORY = 20
FIRST_STEP = 0.01  # mean change of what is optimised that the first line search begins with; where it is smooth:
SMOOTH_FIRST_STEP = 0.03
SMOOTHNESS, LOWEST = 0.5, 0.005  # how much low frequencies lead: amplitudes by f^-0.5, f in cycles a pixel, f >= 0.005
SGD_STEP = 0.002  # mean change of what is optimised in SGD's first step, where it is not Keras's
ADAM_RATE = 0.02
KERAS_RATE = 100 / 255**2  # its SGD steps on pixels 0-255, ours on 0-1
DECAY, DECAY_EVERY = 0.96, 100
PLATEAU_EVALUATIONS, PLATEAU_GAIN = 15, 0.005


class Diverged(Exception):
    """The loss is no longer a number; the message says when, and what to change."""


@dataclass(frozen=True)
class Losses:
    """The losses of one picture; `total` is their weighted sum."""

    total: float
    style: float
    content: float
    tv: float


@dataclass(frozen=True)
class Evaluation:
    """The `count`th evaluation, from 1: the losses of a `picture` (1, 3, H, W), which only `shown` keeps in 0-1."""

    count: int
    losses: Losses
    picture: Tensor

    @property
    def shown(self) -> Tensor:
        return self.picture.clamp(0, 1)


Observer = Callable[[Evaluation], None]


class Objective:
    """L = style_weight * style + content_weight * content + tv_weight * TV of one photo and one painting."""

    def __init__(
        self,
        vgg: VGG,
        photo: Tensor,
        style_targets: Mapping[str, Tensor],
        *,
        content_layer: str,
        content_weight: float = 0.1,
        tv_weight: float = 0.03,
        style_weight: float = 1.0,
        measure: Relative | None = None,
    ) -> None:
        """photo (1, 3, H, W), 0-1; style_targets {layer: Gram (1, C, C)} of the painting."""
        self.vgg, self.style_targets, self.content_layer = vgg, dict(style_targets), content_layer
        self.content_weight, self.tv_weight, self.style_weight = content_weight, tv_weight, style_weight
        self.measure = measure or Relative()
        self._layers = tuple(dict.fromkeys((*self.style_targets, content_layer)))
        with torch.no_grad():
            self._content_target = vgg(photo, (content_layer,))[content_layer]

    def parts(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Style, content and total variation of a picture (1, 3, H, W), 0-1: three scalars."""
        features = self.vgg(picture, self._layers)
        style = self.measure.style(grams_of(features, tuple(self.style_targets)), self.style_targets, picture)
        content = self.measure.content(features[self.content_layer], self._content_target)
        return style, content, self.measure.total_variation(picture)

    def __call__(self, picture: Tensor) -> Tensor:
        """The weighted sum, a scalar to minimise."""
        return self._sum(self.parts(picture))

    def evaluate(self, picture: Tensor) -> tuple[Tensor, Losses]:
        """The weighted sum to minimise, and all of it as numbers."""
        parts = self.parts(picture)
        total = self._sum(parts)
        return total, Losses(total.item(), *(part.item() for part in parts))

    @torch.no_grad()
    def losses(self, picture: Tensor) -> Losses:
        """The losses as numbers."""
        return self.evaluate(picture)[1]

    def _sum(self, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        style, content, tv = parts
        return self.style_weight * style + self.content_weight * content + self.tv_weight * tv


def optimize(
    objective: Objective,
    start: Tensor,
    *,
    evaluations: int,
    optimizer: Literal["lbfgs", "adam", "sgd"] = "lbfgs",
    bounds: Literal["sigmoid", "none"] = "sigmoid",
    plateau: bool = False,
    done: int = 0,
    observe: Observer | None = None,
) -> Tensor:
    """Minimises the objective from `start` (1, 3, H, W), 0-1, in exactly `evaluations` of it, or fewer where it stops
    on a `plateau`; the result, the best picture met, is in 0-1.

    Unlike the public implementations, which optimise unbounded pixels and clip when saving, the pixels are by default
    the sigmoid of what is optimised: what is shown is what was optimised. `observe` is told of every evaluation; what
    it raises ends the run. `done` evaluations came before a resumption: SGD's rate has decayed by as many.
    Raises Diverged.
    """
    search = _Search(objective, start, evaluations, bounds, plateau, observe)
    try:
        if optimizer == "lbfgs":
            _lbfgs(search)
        else:
            _descend(search, optimizer, done)
    except _Enough:
        pass
    return search.best.clamp(0, 1)


class _Enough(Exception):
    """Every evaluation was made, or the last ones gained too little."""


class _Search:
    """A picture that is being optimised: `variable` is what moves, `picture()` what it stands for."""

    def __init__(
        self,
        objective: Objective,
        start: Tensor,
        evaluations: int,
        bounds: str,
        plateau: bool,
        observe: Observer | None,
    ) -> None:
        self.objective, self.bounds, self.observe = objective, bounds, observe
        self.plateau, self.evaluations, self.count = plateau, evaluations, 0
        self.best, self.best_losses = start, [math.inf]
        free = torch.logit(start.clamp(EDGE, 1 - EDGE)) if bounds == "sigmoid" else start
        self.unit = 1.0
        self.spectrum: Tensor | None = None
        self.variable = free.detach().clone(memory_format=torch.contiguous_format).requires_grad_(True)

    def rescale(self, unit: float) -> None:
        """Count the variable in units of `unit`."""
        self.unit = unit
        self.variable = (self.variable.detach() / unit).requires_grad_(True)

    def smooth(self) -> None:
        """Count each frequency of the variable in a unit of its own: large ones for low frequencies."""
        self.spectrum = _spectrum(self.variable)
        self.variable = _filtered(self.variable.detach(), 1 / self.spectrum).requires_grad_(True)

    def picture(self) -> Tensor:
        free = self.variable * self.unit
        if self.spectrum is not None:
            free = _filtered(free, self.spectrum)
        return torch.sigmoid(free) if self.bounds == "sigmoid" else free

    def evaluate(self) -> Tensor:
        """The scaled loss of the picture as it is, its gradient left on the variable."""
        if self.count == self.evaluations or (self.plateau and self._is_flat()):
            raise _Enough
        self.variable.grad = None
        picture = self.picture()
        loss, losses = self.objective.evaluate(picture)
        self.count += 1
        if not math.isfinite(losses.total):
            raise Diverged(
                f"the loss is {losses.total} at evaluation {self.count}: lower the weights, or choose another optimizer"
            )
        if losses.total < self.best_losses[-1]:
            self.best = picture.detach().clone()
        self.best_losses.append(min(losses.total, self.best_losses[-1]))
        if self.observe:
            self.observe(Evaluation(self.count, losses, picture.detach()))
        scaled = loss * self.objective.measure.scale
        scaled.backward()  # type: ignore[no-untyped-call]
        gradient = self.variable.grad
        assert gradient is not None
        if not torch.isfinite(gradient).all():
            raise Diverged(f"the gradient is not finite at evaluation {self.count}: lower the weights")
        self.variable.grad = gradient.contiguous()  # L-BFGS would flatten channels_last in another order
        return scaled

    def _is_flat(self) -> bool:
        if self.count <= PLATEAU_EVALUATIONS:
            return False
        return self.best_losses[-1] >= (1 - PLATEAU_GAIN) * self.best_losses[-1 - PLATEAU_EVALUATIONS]


def _spectrum(pictures: Tensor) -> Tensor:
    """Of pictures (N, C, H, W): f^-SMOOTHNESS for the frequencies of rfft2, (H, W // 2 + 1), with a mean of 1."""
    height, width = pictures.shape[2:]
    down = torch.fft.fftfreq(height, device=pictures.device)[:, None]
    across = torch.fft.rfftfreq(width, device=pictures.device)
    spectrum = torch.hypot(down, across).clamp(min=LOWEST) ** -SMOOTHNESS
    return spectrum / spectrum.mean()


def _filtered(pictures: Tensor, spectrum: Tensor) -> Tensor:
    """(N, C, H, W) with every frequency times its value of the spectrum."""
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(pictures) * spectrum, s=pictures.shape[2:])
    return filtered


def _lbfgs(search: _Search) -> None:
    """torch's first step is one of length 1 in the L1 norm, next to nothing for a picture, and would drown in the
    noise of bf16; so the unit is chosen to suit.

    Unlike the papers, L-BFGS is shown a picture whose low frequencies count for more, where the pixels are ours to
    choose: it reaches the same loss in fewer evaluations (README)."""
    step = FIRST_STEP
    if search.bounds == "sigmoid":
        search.smooth()
        step = SMOOTH_FIRST_STEP
    search.rescale(step * search.variable.numel())
    lbfgs = torch.optim.LBFGS(
        [search.variable],
        max_iter=search.evaluations,
        max_eval=search.evaluations,
        history_size=HISTORY,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    lbfgs.step(search.evaluate)  # type: ignore[no-untyped-call]


def _descend(search: _Search, optimizer: str, done: int) -> None:
    """Adam or SGD. Keras's own rate belongs to its losses; with others SGD's first step has a mean of SGD_STEP."""
    search.evaluate()
    gradient = search.variable.grad
    assert gradient is not None
    rate = ADAM_RATE
    if optimizer == "sgd":
        literal = isinstance(search.objective.measure, Keras)
        rate = KERAS_RATE if literal else SGD_STEP / max(float(gradient.abs().mean()), 1e-30)
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    steps = kind([search.variable], lr=rate)
    while True:
        if optimizer == "sgd":
            steps.param_groups[0]["lr"] = rate * DECAY ** ((done + search.count - 1) / DECAY_EVERY)
        steps.step()
        search.evaluate()
