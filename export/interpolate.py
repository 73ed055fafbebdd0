"""A network between what a run began with and what it came to: the mean of their weights, as Wortsman et al. 2022
(WiSE-FT) take it for what was fine-tuned.

Weights that were trained on from others lie in one basin with them, so what is between them paints, and may have more
of what the training was for than it lost of what it was not for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.encoder import ENCODER, trained_encoder
from export.start import starting_network, starting_photo_vector
from export.train import CHECKPOINT, check_finished, last_losses


def interpolate(run: Path, target: Path, share: float, *, start: Path, start_encoder: Path | None = None) -> None:
    """Writes a finished run's folder `target`, to be published as any: `share` of the weights are those of `run`, the
    others those that it began with, `start` and, where the run has an encoder, `start_encoder`. What a published
    encoder lacks, the layer that told VGG's statistics, stays the run's.

    Raises ValueError where the share is not between 0 and 1, the run is not finished, of an encoder alone, or of other
    networks than those, FileExistsError.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of the run's weights is between 0 and 1, not {share}")
    state: dict[str, Any] = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    check_finished(state["step"], state["config"])
    if not state["styles"]:
        raise ValueError(f"{run} trained an encoder alone, whose network stayed as it was")
    before = {name: weight.detach() for name, weight in starting_network(start, state["styles"]).state_dict().items()}
    network = {name for name in state["network"] if not name.startswith(ENCODER)}
    _check_same(start, run, network, before, state["network"])
    if network != state["network"].keys():
        if start_encoder is None:
            raise ValueError(f"{run} has an encoder: name the one that it began with, too")
        encoder = {ENCODER + name: weight for name, weight in trained_encoder(start_encoder).items()}
        _check_same(start_encoder, run, encoder.keys(), encoder, state["network"])
        before |= encoder
    for weights in (state["average"], state["network"]):
        for name in weights.keys() & before.keys():
            weights[name] = _between(before[name], weights[name], share)
    photo = starting_photo_vector(start)
    if photo is not None and state["photo_vector"] is not None:
        state["photo_vector"] = _between(photo, state["photo_vector"], share)
    state["config"]["interpolated"] = {"share": share, "losses_of_the_run": last_losses(state)}
    state["history"] = []
    target.mkdir(parents=True, exist_ok=False)
    torch.save(state, target / CHECKPOINT)


def _check_same(
    source: Path, run: Path, names: Collection[str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    """Raises ValueError where `before`, of `source`, has not all of the names, and in the shapes, that `after` has."""
    differing = [
        name for name in names if name not in before or name not in after or before[name].shape != after[name].shape
    ]
    if differing or not names:
        raise ValueError(f"{source} is another network than {run}: {', '.join(sorted(differing)[:3])} differ")


def _between(before: Tensor, after: Tensor, share: float) -> Tensor:
    return before.float().lerp(after.float(), share) if after.is_floating_point() else after
