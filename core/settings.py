"""Settings, read from `TUNEWRIGHT_*` variables. The defaults are the embedded service on one machine."""

from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, NonNegativeInt, PositiveInt, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3


# Credits per device-hour, in the order of what clouds ask for these devices; the classes are the planner's catalogue's.
PRICES = {
    "default": 2000,
    "cpu": 600,
    "nvidia-t4-16gb": 800,
    "nvidia-l4-24gb": 1200,
    "nvidia-a10g-24gb": 1500,
    "nvidia-rtx-4090-24gb": 1500,
    "nvidia-l40s-48gb": 2400,
    "nvidia-a100-40gb": 2800,
    "nvidia-a100-80gb": 3400,
    "nvidia-h100-80gb": 5600,
    "nvidia-h200-141gb": 6800,
    "nvidia-b200-180gb": 10_000,
}


class Settings(BaseSettings):
    """One value for every process of the service. Times in seconds, sizes in bytes, prices in credits per hour."""

    model_config = SettingsConfigDict(env_prefix="TUNEWRIGHT_", env_nested_delimiter="__", extra="ignore")

    data_dir: Path = Field(Path("var"), description="State of the embedded service: database, artifacts, models, runs.")
    database_url: SecretStr | None = Field(None, description="SQLAlchemy URL; SQLite under data_dir when unset.")
    redis_url: SecretStr | None = Field(
        None, description="Broker URL; `tunewright up` starts a private one when unset."
    )
    store_url: str | None = Field(None, description="file:///dir or s3://bucket/prefix; data_dir/artifacts when unset.")
    s3_endpoint_url: str | None = Field(None, description="Endpoint of an S3-compatible store.")
    models_dir: Path | None = Field(
        None, description="Local base models, one directory each; data_dir/models if unset."
    )
    public_url: str | None = Field(
        None, description="Where browsers reach the service, for links; none: the request's own."
    )

    liveness_file: Path | None = Field(
        None, description="Touched every second by the process; `tunewright up` names one for each that it starts."
    )

    allowed_hosts: list[str] | None = Field(
        None,
        description="Host names that requests may be for, as JSON; none: any, but over loopback only localhost and the "
        "public URL's.",
    )

    log_level: str = "INFO"
    log_json: bool = True

    max_upload_bytes: int = Field(512 * 1024**2, description="Largest file accepted, as OpenAI's.")
    max_request_bytes: int = Field(1024**2, description="Largest JSON body accepted.")
    body_patience_seconds: float = Field(
        60.0, gt=0, description="Time a body has to arrive, on top of a second for each 16 KiB that did."
    )
    inline_inspection_bytes: int = Field(32 * 1024**2, description="Files up to this size are inspected when needed.")
    files_read_at_once: PositiveInt = Field(
        3, description="Files that one process inspects or counts tokens of at once; one organization: one fewer."
    )
    file_memory_bytes: int = Field(
        2 * GIB, ge=256 * 1024**2, description="Memory in which a file is inspected, or its tokens are counted."
    )
    retry_window_seconds: int = Field(600, description="How long a retried create returns the first result.")
    session_seconds: int = Field(14 * 86400, description="How long a browser stays signed in.")
    sign_in_link_seconds: int = Field(3600, description="How long a one-time link works.")

    sign_up_open: bool = Field(False, description="Whether strangers can make an account; an administrator always can.")
    key_requests_per_minute: NonNegativeInt = Field(6000, description="Requests of one API key or session; 0: any.")
    address_requests_per_minute: NonNegativeInt = Field(12_000, description="Requests from one address; 0: any.")
    sign_in_failures_per_hour: NonNegativeInt = Field(
        20, description="Wrong passwords for one account, and from one address; 0: any."
    )
    code_guesses_per_hour: NonNegativeInt = Field(
        20, description="Unknown credit codes of one account, and from one address; 0: any."
    )

    max_running_jobs: PositiveInt = Field(20, description="Jobs of one organization that train at once; others wait.")
    max_event_streams: PositiveInt = Field(
        100, description="Event streams of one organization that are open at once, in each API process."
    )
    max_queued_jobs: PositiveInt = Field(200, description="Jobs of one organization that wait for a device.")
    max_storage_bytes: PositiveInt = Field(
        100 * GIB, description="Files, results and kept checkpoints of one organization."
    )
    max_files: PositiveInt = Field(10_000, description="Files of one organization.")
    max_plans: PositiveInt = Field(5_000, description="Plans of one organization that no job uses, until forgotten.")

    prices: dict[str, NonNegativeInt] = Field(
        default=PRICES,
        description="Credits per device-hour by device class; `default`, which must be there, for classes not listed.",
    )
    quote_seconds: int = Field(900, description="How long a quote stands.")
    plan_retention_seconds: int = Field(
        3600, ge=0, description="How long a plan that no job uses is kept after its quote."
    )

    lease_seconds: float = Field(
        30.0, description="A worker that has not renewed its lease this long has lost the job."
    )
    heartbeat_seconds: float = Field(5.0, description="How often a worker renews its lease and reports its devices.")
    sweep_seconds: float = Field(10.0, description="How often lost messages and leases are looked for.")
    checkpoint_seconds: float = Field(
        60.0, description="The longest between two checkpoints; less for jobs below ten minutes."
    )
    stop_grace_seconds: float = Field(20.0, description="From SIGTERM to SIGKILL of a training child.")
    max_attempts: int = Field(
        5, description="Crashes and lost workers of one job without a new checkpoint in between, before it fails."
    )
    outage_seconds: float = Field(
        300.0, description="How long a worker waits for a store that is away before it puts its job back."
    )
    stall_seconds: float = Field(
        120.0, description="A training step that says nothing this long, and 20 times its like, hangs and is ended."
    )
    silence_seconds: float = Field(3600.0, description="The same for work without steps: loading, exporting.")
    checkpoint_retention_seconds: int = Field(
        7 * 86400, description="How long the checkpoints of a finished job can be downloaded."
    )

    @field_validator("prices")
    @classmethod
    def _prices_have_a_default(cls, prices: dict[str, int]) -> dict[str, int]:
        if "default" not in prices:
            raise ValueError("the price list needs a 'default' for device classes that it does not name")
        return prices

    @model_validator(mode="after")
    def _heartbeat_is_inside_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("lease_seconds must be at least twice heartbeat_seconds, or healthy workers lose jobs")
        return self

    @cached_property
    def resolved_database_url(self) -> str:
        """The database URL in force."""
        if self.database_url:
            return self.database_url.get_secret_value()
        return f"sqlite:///{(self.data_dir / 'tunewright.db').absolute()}"

    @cached_property
    def resolved_redis_url(self) -> str:
        """The broker URL in force."""
        return self.redis_url.get_secret_value() if self.redis_url else "redis://127.0.0.1:6379/0"

    @cached_property
    def resolved_store_url(self) -> str:
        """The artifact store URL in force."""
        return self.store_url or (self.data_dir / "artifacts").absolute().as_uri()

    @cached_property
    def resolved_models_dir(self) -> Path:
        """The folder of local base models."""
        return (self.models_dir or self.data_dir / "models").absolute()

    @cached_property
    def runs_dir(self) -> Path:
        """Scratch space of running jobs: data, checkpoints, exports."""
        return (self.data_dir / "runs").absolute()
