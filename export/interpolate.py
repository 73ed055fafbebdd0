"""A network between what a run began with and what it came to: the mean of their weights, as Wortsman et al. 2022
(WiSE-FT) take it for what was fine-tuned.

Weights that were trained on from others lie in one basin with them, so what is between them paints, and may have more
of what the training was for than it lost of what it was not for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.encoder import trained_encoder
from export.start import starting_network, starting_photo_vector
from export.train import CHECKPOINT


def interpolate(run: Path, target: Path, share: float, *, start: Path, start_encoder: Path | None = None) -> None:
    """Writes a finished run's folder `target`, to be published as any: `share` of the weights are those of `run`, the
    others those that it began with, `start` and `start_encoder`. What these have not, the run's encoder tells VGG's
    statistics by, stays the run's.

    Raises ValueError where the share is not between 0 and 1, the run is not finished or of other networks than those,
    FileExistsError.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of the run's weights is between 0 and 1, not {share}")
    state: dict[str, Any] = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    if state["step"] < state["config"]["steps"]:
        raise ValueError(f"the run has done {state['step']} of {state['config']['steps']} steps; go on with it first")
    before = dict(starting_network(start, state["styles"]).state_dict())
    if start_encoder is not None:
        before |= {f"encoder.{name}": weight for name, weight in trained_encoder(start_encoder).items()}
    for weights in (state["average"], state["network"]):
        if differing := [n for n, weight in weights.items() if n in before and weight.shape != before[n].shape]:
            raise ValueError(f"{start} is another network than {run}: {', '.join(differing[:3])} differ in shape")
        for name in weights.keys() & before.keys():
            weights[name] = _between(before[name], weights[name], share)
    photo = starting_photo_vector(start)
    if photo is not None and state["photo_vector"] is not None:
        state["photo_vector"] = _between(photo, state["photo_vector"], share)
    state["config"]["interpolated"] = share
    state["history"] = []  # the losses are the run's own
    target.mkdir(parents=True, exist_ok=False)
    torch.save(state, target / CHECKPOINT)


def _between(before: Tensor, after: Tensor, share: float) -> Tensor:
    return before.detach().float().lerp(after.float(), share) if after.is_floating_point() else after
