"""The import table of the README, held against the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Who may import whom: a package stands for itself and what is in it; the longest row that fits a module is its own.
MAY_IMPORT: dict[str, set[str]] = {
    "service.__main__": {
        "service.app", "service.engine", "service.logs", "service.serving", "service.settings", "service.models",
        "service.routes.pages", "service.tracing", "service.errors",
    },
    "service.app": {"service"},
    "service.serving": set(),
    "service.settings": {"service.errors"},
    "service.errors": set(),
    "service.metrics": set(),
    "service.logs": set(),
    "service.tracing": {"service.logs", "service.errors"},
    "service.images": {"service.errors"},
    "service.video": {"service.errors"},
    "service.animations": {"service.video", "service.images", "service.errors"},
    "service.models": {"service.models", "service.images", "service.errors"},
    "service.batching": {"service.metrics", "service.errors"},
    "service.engine": {"service.batching", "service.models", "service.metrics", "service.errors"},
    "service.encodings": {"service.batching", "service.models", "service.metrics", "service.errors"},
    "service.refinements": {
        "service.engine", "service.encodings", "service.jobs", "service.fields", "service.models", "service.images",
        "service.errors",
    },
    "service.fields": {"service.errors"},
    "service.colour": set(),
    "service.masks": set(),
    "service.schemas": {
        "service.fields", "service.models", "service.images", "service.colour", "service.masks", "service.errors",
    },
    "service.painting": {
        "service.animations", "service.video",
        "service.schemas", "service.models", "service.images", "service.colour", "service.masks", "service.errors",
    },
    "service.client": {
        "service.schemas", "service.orders", "service.jobs.job", "service.jobs.parameters", "service.images",
        "service.colour", "service.errors",
    },
    "service.local": {
        "service.animations",
        "service.client", "service.painting", "service.schemas", "service.models", "service.images", "service.errors",
    },
    "service.terminal": {"service.images"},
    "service.cli": {
        "service.cli_gatys", "service.cli_styles",
        "service.client", "service.local", "service.terminal", "service.images", "service.colour",
        "service.errors",
    },
    "service.cli_styles": {"service.cli_gatys", "service.client", "service.terminal"},
    "service.cli_gatys": {
        "service.client", "service.terminal", "service.jobs.job", "service.jobs.parameters", "service.images",
        "service.colour",
    },
    "service.middleware": {
        "service.logs", "service.schemas", "service.metrics", "service.tracing", "service.errors",
    },
    "service.routes": {
        "service.animations",
        "service.encodings", "service.refinements",
        "service.routes", "service.engine", "service.schemas", "service.orders", "service.jobs", "service.batching",
        "service.fields", "service.models", "service.painting", "service.masks", "service.images", "service.metrics",
        "service.errors",
    },
    "service.orders": {
        "service.jobs", "service.fields", "service.models", "service.images", "service.colour", "service.errors",
    },
    "service.jobs": {"service.jobs", "service.metrics", "service.errors"},
    "service.jobs.worker": {
        "service.gatys", "service.jobs", "service.models", "service.painting", "service.schemas", "service.animations",
        "service.masks", "service.images", "service.errors",
    },
    "service.jobs.distributed.__main__": {
        "service.jobs", "service.settings", "service.logs", "service.metrics", "service.errors",
    },
    "service.jobs.distributed.worker": {
        "service.jobs", "service.models.session", "service.models.store", "service.errors",
    },
    "service.gatys": {
        "service.gatys", "service.images", "service.colour", "service.masks", "service.jobs.parameters",
        "service.jobs.job", "service.models.store", "service.errors",
    },
    "export": {"export", "service.models", "service.images", "service.gatys", "service.errors"},
}  # fmt: skip
ONLY_HERE = {
    "torch": {"service.gatys", "service.jobs.worker", "export"},
    "onnxruntime": {"service.models.session", "export"},
    "openvino": {"service.models.openvino"},
    "fastapi": {"service.app", "service.routes"},
    "httpx2": {"service.client"},
    "celery": {"service.jobs.distributed"},
    "kombu": {"service.jobs.distributed"},
    "redis": {"service.jobs.distributed"},
    "fsspec": {"service.jobs.distributed"},
    "opentelemetry": {"service.tracing"},
    "av": {"service.video"},
    "PIL": {"service.images", "service.animations", "service.gatys", "export"},
}


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _modules() -> Iterator[tuple[str, Path]]:
    for package in ("service", "export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*name.split("."))).with_suffix(".py").exists()
                yield name if is_module else str(node.module)


@pytest.mark.parametrize(
    ("module", "path"), list(_modules()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_go_downwards_only(module: str, path: Path) -> None:
    row = max((row for row in MAY_IMPORT if _within(module, row)), key=len, default=None)
    for name in _imports(path):
        if name in ("service", module) or not (_within(name, "service") or _within(name, "export")):
            continue
        assert row is not None, f"{module} has no row in the table"
        assert any(_within(name, allowed) for allowed in MAY_IMPORT[row]), f"{module} may not import {name}"
        if row == "service.app":
            assert not _within(name, "service.gatys"), "the fast path never imports torch"


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_heavy_library_enters_in_its_place_only(library: str) -> None:
    places = {module for module, path in _modules() if any(_within(name, library) for name in _imports(path))}
    assert all(any(_within(place, allowed) for allowed in ONLY_HERE[library]) for place in places), places


def test_the_tests_of_the_service_need_no_torch() -> None:
    for path in Path(__file__).parent.glob("*.py"):
        assert not any(_within(name, "torch") for name in _imports(path)), path
