"""FastAPI without anything else: a handler that blocks, hence ``def``, which FastAPI runs in its pool of threads."""

import os
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, Response

from bench.peers.painter import Painter

app = FastAPI()
painter = Painter()


@app.post("/stylize")
def stylize(photo: Annotated[bytes, Body(media_type="image/jpeg")]) -> Response:
    return Response(painter(photo), media_type="image/jpeg")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PEER_PORT"]), access_log=False)
