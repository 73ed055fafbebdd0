"""Environments of the peers' own, under ``.bench/`` (git ignores it), made the first time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".bench"


def python_with(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with ``packages`` and with our own versions of what a painter needs."""
    wanted = [*packages, *(f"{package}=={version(package)}" for package in ("numpy", "onnxruntime", "pillow"))]
    folder = CACHE / f"{name}-{hashlib.sha256(' '.join(wanted).encode()).hexdigest()[:8]}"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return folder / "bin/python"
