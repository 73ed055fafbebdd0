"""BentoML: ``bentoml serve bench.peers.bento:Stylize``."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from bench.peers.painter import Painter

Jpeg = ContentType("image/jpeg")


@bentoml.service(traffic={"timeout": 300}, logging={"access": {"enabled": False}})
class Stylize:
    def __init__(self) -> None:
        self.painter = Painter()

    @bentoml.api
    def stylize(self, photo: Annotated[Path, Jpeg], /) -> Annotated[bytes, Jpeg]:
        return self.painter(photo.read_bytes())
