import re
from pathlib import Path

import pytest

from service.metrics import Metrics
from service.settings import PREFIX, Settings

README = Path(__file__).parent.parent.parent / "README.md"


@pytest.fixture
def readme() -> str:
    return README.read_text()


def test_every_setting_stands_in_the_readme_and_no_other(readme: str) -> None:
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"`({PREFIX}\w+)`", readme)) == settings


def test_every_metric_stands_in_the_readme_and_no_other(readme: str) -> None:
    exposed = set(re.findall(r"^# HELP (stylize_\w+)", Metrics().render("text/plain")[0].decode(), re.MULTILINE))
    metrics = {name for name in exposed if not name.endswith("_created")}
    assert set(re.findall(r"`(stylize_\w+)", readme)) == metrics
