"""What is wrong with a form's fields: before pydantic sees them, and what it says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from pydantic import ValidationError

from service.errors import Offence

REPEATED = "given more than once"
NOT_A_FILE = "must be sent as a file, in multipart/form-data"


def repeated(fields: Sequence[tuple[str, str]]) -> list[Offence]:
    """An offence for each name that came more than once."""
    return [Offence(name, REPEATED) for name, count in Counter(name for name, _ in fields).items() if count > 1]


def not_files(names: Collection[str], files: Sequence[str]) -> list[Offence]:
    """An offence for each of ``files`` that came as text, among the fields' ``names``."""
    return [Offence(name, NOT_A_FILE) for name in files if name in names]


def invalid(error: ValidationError, unknown: str) -> list[Offence]:
    """pydantic's errors, in its order; a field that it does not know is told ``unknown``."""
    return [
        Offence(
            str(e["loc"][0])[:64],
            unknown if e["type"] == "extra_forbidden" else e["msg"].removeprefix("Value error, "),
        )
        for e in error.errors()
    ]
