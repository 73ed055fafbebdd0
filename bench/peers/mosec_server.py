"""mosec: an HTTP server in Rust, a worker in Python."""

import mosec

from bench.peers.painter import Painter


class Stylize(mosec.Worker):
    resp_mime_type = "image/jpeg"

    def __init__(self) -> None:
        self.painter = Painter()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return self.painter(data)

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Stylize, route="/stylize", timeout=300)
    server.run()
