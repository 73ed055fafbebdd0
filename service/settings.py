"""Settings: frozen, from the environment, checked at start."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from service.errors import ConfigurationError

PREFIX = "STYLIZE_"
REDIS_SCHEMES, AMQP_SCHEMES = ("redis", "rediss"), ("amqp", "amqps")


class Settings(BaseModel):
    """One field a variable: ``max_side`` is ``STYLIZE_MAX_SIDE``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on; `0.0.0.0` for every one")
    port: int = Field(default=8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one")
    model_store: Path = Field(
        default=Path(__file__).parent.parent / "model_store", description="folder of `<model>/<version>/model.json`"
    )
    provider: Literal["auto", "cuda", "cpu", "openvino"] = Field(
        default="auto",
        description="where networks run; `cuda`, `openvino` refuse to start without it, `auto` falls back to the CPU",
    )
    gpu_mem_limit_bytes: int | None = Field(
        default=None, ge=1, description="most of a GPU's memory that each model's arena may take, in bytes"
    )
    precision: Literal["fp32", "tf32", "fp16"] = Field(
        default="fp32",
        description="of networks on a GPU; `fp16` where a model has such a graph, else `tf32`; a CPU always has fp32",
    )
    gpu_lanes: int = Field(
        default=8, ge=1, description="small pictures that a GPU paints at once, of 2 megapixels together"
    )
    max_upload_bytes: int = Field(default=32 * 2**20, ge=1, description="largest request body, in bytes")
    max_held_bytes: int = Field(
        default=2**28, ge=1, description="most bytes of all bodies that are at work at once; beyond it requests get 503"
    )
    upload_timeout_s: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="longest time that an upload may take, in seconds"
    )
    send_timeout_s: float = Field(
        default=60.0, gt=0, allow_inf_nan=False, description="longest time that a client may take to read its answer"
    )
    # Pillow refuses above 2 * Image.MAX_IMAGE_PIXELS on its own account, which is this ceiling.
    max_pixels: int = Field(
        default=2**26, ge=1, le=178_956_970, description="largest photo taken in, in pixels, read from its header"
    )
    max_frames: int = Field(
        default=1000, ge=1, description="most frames of an animation; all of them have at most four times `MAX_PIXELS`"
    )
    max_side: int = Field(
        default=2048,
        ge=1,
        le=16383,
        description="default of the field `max_side`, in pixels; the most that `/gatys` takes",
    )
    sync_max_pixels: int = Field(
        default=2**22,
        ge=1,
        description="largest result of `/stylize`, in pixels, that its client waits for; a larger one is a job (202)",
    )
    max_queue_pixels: int = Field(
        default=2**25, ge=1, description="most pixels that may wait for a network; beyond it requests get 503"
    )
    max_batch_pixels: int = Field(
        default=2**16, ge=0, description="most pixels that share a run; a larger picture runs alone, 0 batches nothing"
    )
    max_wait_ms: float = Field(
        default=0.0, ge=0, le=1000, description="longest that a picture waits for others to share its run, in ms"
    )
    drain_delay_s: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="after SIGTERM, time in seconds to be seen not ready while still answering",
    )
    log: Literal["text", "json"] = Field(
        default="text", description="`json` logs one object a line, one for every request, with its ids"
    )
    admin_port: int | None = Field(
        default=None, ge=1, le=65535, description="TCP port of loopback for `POST /-/reload`; none where not set"
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="TCP port of a worker elsewhere for `/metrics`, `/livez`, `/readyz`; none where not set",
    )
    data_dir: Path = Field(
        default=Path(__file__).parent.parent / "data", description="folder of jobs and their pictures; one service each"
    )
    styles_dir: Path | None = Field(
        default=None,
        description="folder of styles of one's own; services may share it; `DATA_DIR/styles` if not set",
    )
    admin_token: SecretStr | None = Field(
        default=None, min_length=16, description="with it (`Authorization: Bearer`) styles are written from anywhere"
    )
    jobs_url: SecretStr | None = Field(
        default=None,
        description="broker of jobs that are done on other machines, `redis://` or `amqp://`; none: this one does them",
    )
    jobs_state_url: SecretStr | None = Field(
        default=None, description="`redis://`, where the state of such jobs is kept; needed where the broker is AMQP"
    )
    pictures_url: str | None = Field(
        default=None, description="volume of their pictures, the same for all; `file://` of `DATA_DIR` if not set"
    )
    gatys_workers: int = Field(
        default=1, ge=0, le=64, description="jobs that run at once, a process each; 0 takes none in"
    )
    max_jobs: int = Field(default=64, ge=1, description="most jobs that may wait; beyond it `/gatys` answers 503")
    max_iterations: int = Field(default=5000, ge=1, description="most evaluations that a job may ask for")
    job_timeout_s: float = Field(
        default=3600.0,
        gt=0,
        allow_inf_nan=False,
        description="longest time that a worker may spend on a job, in seconds",
    )
    result_ttl_s: float = Field(
        default=86400.0, gt=0, allow_inf_nan=False, description="time that a finished job is kept, in seconds"
    )
    webhook_hosts: str = Field(
        default="", pattern=r"^[A-Za-z0-9.,-]*$", description="host names that `webhook_url` may have, by commas; none"
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="signs webhooks (Standard Webhooks): `whsec_` and the base64 of 24 to 64 bytes"
    )
    commit: str = Field(
        default="unknown", pattern=r"^[\w.-]{1,64}$", description="the build's commit, for `stylize_build_info`"
    )

    @model_validator(mode="after")
    def _largest_request_fits_the_queue(self) -> Self:
        needed = 2 * self.sync_max_pixels  # a strength between 0 and 1 runs the network on two rows
        if self.max_queue_pixels < needed:
            raise ValueError(
                f"{PREFIX}MAX_QUEUE_PIXELS={self.max_queue_pixels} cannot hold one picture of "
                f"{PREFIX}SYNC_MAX_PIXELS={self.sync_max_pixels} twice: raise it to {needed} or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _largest_upload_can_be_held(self) -> Self:
        if self.max_held_bytes < self.max_upload_bytes:
            raise ValueError(
                f"{PREFIX}MAX_HELD_BYTES={self.max_held_bytes} cannot hold one upload of "
                f"{PREFIX}MAX_UPLOAD_BYTES={self.max_upload_bytes}: raise it or lower the other"
            )
        return self

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_hosts and self.webhook_secret is None:
            raise ValueError(f"{PREFIX}WEBHOOK_HOSTS needs a {PREFIX}WEBHOOK_SECRET to sign with")
        return self

    @field_validator("jobs_url", "jobs_state_url")
    @classmethod
    def _is_a_brokers_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        schemes = REDIS_SCHEMES if info.field_name == "jobs_state_url" else REDIS_SCHEMES + AMQP_SCHEMES
        parts = urlsplit(value.get_secret_value() if value else f"{schemes[0]}://none")
        if parts.scheme not in schemes or not parts.hostname:
            raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}, and name a host")
        if parts.port == 0 or (parts.scheme in REDIS_SCHEMES and not re.fullmatch(r"/?\d*", parts.path)):
            raise ValueError("must have a port above 0, and of Redis the number of a database: redis://host:6379/0")
        return value

    @model_validator(mode="after")
    def _state_is_redis(self) -> Self:
        url = self.jobs_url.get_secret_value() if self.jobs_url else ""
        if urlsplit(url).scheme in AMQP_SCHEMES and self.jobs_state_url is None:
            raise ValueError(f"{PREFIX}JOBS_URL with AMQP needs a {PREFIX}JOBS_STATE_URL of Redis for the jobs' state")
        return self

    @property
    def own_styles(self) -> Path:
        """The folder of styles of one's own."""
        return self.styles_dir or self.data_dir / "styles"

    @property
    def jobs_place(self) -> tuple[str, str, str] | None:
        """The URLs of broker, state and pictures; None where jobs are done here."""
        if self.jobs_url is None:
            return None
        broker = self.jobs_url.get_secret_value()
        state = self.jobs_state_url.get_secret_value() if self.jobs_state_url else broker
        return broker, state, self.pictures_url or f"file://{self.data_dir.absolute()}/pictures"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read every ``STYLIZE_`` variable. Raises ConfigurationError naming each one that is unknown or malformed."""
        given = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
        known = {PREFIX + field.upper(): field for field in cls.model_fields}
        unknown = [_unknown(name, list(known)) for name in given if name not in known]
        if unknown:
            raise ConfigurationError("; ".join(unknown))
        try:
            return cls.model_validate({known[name]: value for name, value in given.items()})
        except ValidationError as error:
            malformed = [_malformed(given, e["loc"], e["msg"]) for e in error.errors()]
            raise ConfigurationError("; ".join(malformed)) from error


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else f": one of {', '.join(known)}")


def _malformed(given: Mapping[str, str], loc: tuple[int | str, ...], message: str) -> str:
    if not loc:
        return message.removeprefix("Value error, ")
    name = PREFIX + str(loc[0]).upper()
    shown = "…" if name.endswith(("_SECRET", "_URL", "_TOKEN")) else repr(given[name])
    return f"{name}={shown}: {message}"
