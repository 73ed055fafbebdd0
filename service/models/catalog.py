"""The networks that are being served, and which of them can do what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from service.models.session import Provider, Session, StoppableRun
from service.models.store import StoredModel, StyleEntry
from service.models.style import Mix, Pixels, Rows, blend, rows_for


class ServedModel:
    """A network with its session and its vectors."""

    def __init__(self, stored: StoredModel, session: Session) -> None:
        self.card = stored.card
        self.name = stored.card.name
        self.sha256 = stored.card.files[stored.card.graph] if stored.card.graph else ""
        self.previews = stored.previews
        self.paintings = stored.paintings
        self.styles = {style.name: style for style in stored.card.styles}
        self.provider: Provider = session.provider
        self.warm, self.settle = session.warm, session.settle
        self._session = session
        self._vectors = stored.vectors

    def begin(self) -> StoppableRun:
        """A run, to be called once with (N, H, W, 3) and (N, D)."""
        return StoppableRun(self._session)

    def rows(self, mixes: Sequence[Mix], strength: float) -> Rows:
        """What to run the network on for some mixes: (R, D), one row a mix, and the photo's between strengths."""
        return rows_for(self._vectors, mixes, strength)

    def finish(self, photo: Pixels, outputs: Pixels, strength: float, mixes: int) -> Iterator[Pixels]:
        """A picture for each mix, from the outputs (R, H, W, 3) of their ``rows``."""
        return (blend(photo, [outputs[i], *outputs[mixes:]], strength) for i in range(mixes))


@dataclass(frozen=True)
class Catalog:
    """Every model served, the first choice first: conditional networks before classic ones, and of these the one that
    was judged best."""

    models: dict[str, ServedModel] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[ServedModel]) -> Catalog:
        ordered = sorted(models, key=_rank)
        return cls({model.card.name: model for model in ordered})

    def styles(self) -> Iterator[StyleEntry]:
        """Every style that some model has, once, as its first choice tells it."""
        seen: dict[str, StyleEntry] = {}
        for model in self.models.values():
            seen = model.styles | seen
        return iter(sorted(seen.values(), key=lambda style: style.name))

    def paintings(self) -> dict[str, bytes]:
        """The shipped paintings, image files by the name of their style."""
        found: dict[str, bytes] = {}
        for model in self.models.values():
            found = model.paintings | found
        return found

    def models_with(self, styles: set[str]) -> list[ServedModel]:
        """The models that have all of ``styles``, the first choice first. A mix needs a conditional one."""
        return [
            model
            for model in self.models.values()
            if styles <= model.styles.keys() and (len(styles) == 1 or model.card.kind == "conditional")
        ]


def _rank(model: ServedModel) -> tuple[bool, float, str]:
    excess = model.card.quality.get("excess_mean", math.inf)
    return model.card.kind != "conditional", excess, model.card.name
