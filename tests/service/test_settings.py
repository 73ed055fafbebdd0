import pytest

from service.errors import ConfigurationError
from service.settings import Settings


def test_settings_come_from_the_environment_and_others_variables_are_left_alone() -> None:
    settings = Settings.from_env({"STYLIZE_PORT": "8123", "STYLIZE_MAX_SIDE": "640", "PATH": "/bin"})
    assert (settings.port, settings.max_side, settings.host) == (8123, 640, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STYLIZE_MAX_SIED", "640"),
        ("STYLIZE_PORT", "http"),
        ("STYLIZE_PORT", "70000"),
        ("STYLIZE_PROVIDER", "tpu"),
        ("STYLIZE_UPLOAD_TIMEOUT_S", "nan"),
        ("STYLIZE_MAX_PIXELS", "0"),
        ("STYLIZE_MAX_QUEUE_PIXELS", "1000"),
        ("STYLIZE_MAX_HELD_BYTES", "1000"),
    ],
)
def test_an_unknown_or_malformed_variable_stops_the_start_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_env({name: value})


def test_a_near_miss_is_told_the_right_name() -> None:
    with pytest.raises(ConfigurationError, match="did you mean STYLIZE_MAX_SIDE"):
        Settings.from_env({"STYLIZE_MAX_SIED": "640"})
