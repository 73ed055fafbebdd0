"""``python -m service.models STORE``: is a store fit to serve? Verifies every card and checksum, runs every network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelRefused
from service.models.catalog import served
from service.models.encoder import encoder_of
from service.models.session import cpu_quota
from service.models.store import ModelStore


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every model is sound; else 1, and what is wrong with the first that is not on stderr."""
    parser = argparse.ArgumentParser(prog="python -m service.models", description=__doc__)
    parser.add_argument("store", type=Path, help="folder of <model>/<version>/model.json")
    store = ModelStore(parser.parse_args(arguments).store)
    try:
        for folder in store.folders():
            stored = store.load(folder)
            if stored.card.kind == "encoder":
                encoder_of(stored, "cpu", cpu_quota())
            elif stored.card.graph:
                served(stored, "cpu", cpu_quota()).settle()
                if stored.fp16:
                    served(stored.halved(), "cpu", cpu_quota()).settle()
            print(f"{stored.card.label}: sound")
    except ModelRefused as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
