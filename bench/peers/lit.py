"""LitServe: its own process for the network; files come as multipart."""

import os

import litserve
from fastapi import Response

from bench.peers.painter import Painter


class Stylize(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.painter = Painter()

    def decode_request(self, request) -> bytes:  # type: ignore[no-untyped-def] # noqa: ANN001  LitServe reads hints
        return bytes(request["photo"].file.read())

    def predict(self, photo: bytes) -> bytes:
        return self.painter(photo)

    def encode_response(self, painting: bytes) -> Response:
        return Response(painting, media_type="image/jpeg")


if __name__ == "__main__":
    server = litserve.LitServer(Stylize(api_path="/stylize"), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False, access_log=False)
