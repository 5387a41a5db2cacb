"""Settings, read from `TUNEWRIGHT_*` variables. The defaults are the embedded service on one machine."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

GIB = 1024**3
PREFIX = "TUNEWRIGHT_"


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no address of the form https://host or http://host:port")
    return value.rstrip("/")


def _database(url: SecretStr) -> SecretStr:
    try:
        driver = make_url(url.get_secret_value()).drivername
    except ArgumentError:
        raise ValueError("it is no SQLAlchemy URL") from None
    if driver not in ("sqlite", "postgresql+psycopg"):
        raise ValueError(f"{driver} is not spoken here; use postgresql+psycopg or sqlite")
    return url


def _broker(url: SecretStr) -> SecretStr:
    if urlsplit(url.get_secret_value()).scheme not in ("redis", "rediss"):
        raise ValueError("it is no redis:// or rediss:// URL")
    return url


def _store(url: str) -> str:
    parts = urlsplit(url)
    is_bucket = parts.scheme == "s3" and parts.netloc
    is_folder = parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path not in ("", "/")
    if not (is_bucket or is_folder):
        raise ValueError("it is neither file:///directory nor s3://bucket/prefix")
    return url


WebAddress = Annotated[str, AfterValidator(_web_address)]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database)]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker)]
StoreUrl = Annotated[str, AfterValidator(_store)]


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

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="ignore"
    )

    data_dir: Path = Field(Path("var"), description="State of the embedded service: database, artifacts, models, runs.")
    database_url: DatabaseUrl | None = Field(
        None,
        description="SQLAlchemy URL; SQLite under data_dir when unset.",
        examples=["postgresql+psycopg://user:password@host/database"],
    )
    redis_url: BrokerUrl | None = Field(
        None,
        description="Broker URL; `tunewright up` starts a private one when unset.",
        examples=["redis://:password@host:6379/0"],
    )
    store_url: StoreUrl | None = Field(
        None,
        description="file:///dir or s3://bucket/prefix; data_dir/artifacts when unset.",
        examples=["s3://bucket/prefix"],
    )
    s3_endpoint_url: WebAddress | None = Field(
        None, description="Endpoint of an S3-compatible store, as the service reaches it."
    )
    s3_public_endpoint_url: WebAddress | None = Field(
        None,
        description="The same store as browsers reach it, for download links. Where only s3_endpoint_url is set, "
        "downloads pass through the API, as that address may be private.",
    )
    models_dir: Path | None = Field(
        None, description="Local base models, one directory each; data_dir/models if unset."
    )
    public_url: WebAddress | None = Field(
        None,
        description="Where browsers reach the service: for links, for cookies that TLS protects, and to tell its own "
        "pages' requests from others'. Needed behind a proxy; none: the request's own.",
        examples=["https://tunewright.example.com"],
    )

    liveness_file: Path | None = Field(
        None, description="Touched every second by the process; `tunewright up` names one for each that it starts."
    )

    hang_seconds: PositiveFloat = Field(
        180.0, description="A process whose own loop has not turned this long ends itself, to be started again."
    )

    allowed_hosts: list[str] | None = Field(
        None,
        description="Host names that requests may be for, as JSON; none: any, but over loopback only localhost and the "
        "public URL's.",
        examples=['["tunewright.example.org"]'],
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_json: bool = True

    max_upload_bytes: PositiveInt = Field(512 * 1024**2, description="Largest file accepted, as OpenAI's.")
    max_request_bytes: PositiveInt = Field(1024**2, description="Largest JSON body accepted.")
    body_patience_seconds: PositiveFloat = Field(
        60.0, description="Time a body has to arrive, on top of a second for each 16 KiB that did."
    )
    inline_inspection_bytes: PositiveInt = Field(
        32 * 1024**2, description="Files up to this size are inspected when needed."
    )
    files_read_at_once: PositiveInt = Field(
        3, description="Files that one process inspects or counts tokens of at once; one organization: one fewer."
    )
    file_memory_bytes: int = Field(
        2 * GIB, ge=256 * 1024**2, description="Memory in which a file is inspected, or its tokens are counted."
    )
    retry_window_seconds: PositiveInt = Field(600, description="How long a retried create returns the first result.")
    session_seconds: PositiveInt = Field(14 * 86400, description="How long a browser stays signed in.")
    sign_in_link_seconds: PositiveInt = Field(3600, description="How long a one-time link works.")

    secret_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Encrypts the hub tokens of organizations; the same for every process. Unset, an embedded service "
        "makes one, data_dir/secret.key.",
        examples=["at least 32 random characters"],
    )
    former_secret_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="The secret key before this one, until `tunewright hub-token seal` has run.",
        examples=["at least 32 random characters"],
    )
    hub_token_for_administrators: bool = Field(
        False,
        description="Whether the hub is asked with this machine's own token (HF_TOKEN, or the one that its login "
        "stored) for organizations of administrators that have none of their own.",
    )

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
        examples=['{"default": 2000, "cpu": 600}'],
    )
    quote_seconds: PositiveInt = Field(900, description="How long a quote stands.")
    plan_retention_seconds: int = Field(
        3600, ge=0, description="How long a plan that no job uses is kept after its quote."
    )

    lease_seconds: PositiveFloat = Field(
        30.0, description="A worker that has not renewed its lease this long has lost the job."
    )
    heartbeat_seconds: PositiveFloat = Field(
        5.0, description="How often a worker renews its lease and reports its devices."
    )
    sweep_seconds: PositiveFloat = Field(10.0, description="How often lost messages and leases are looked for.")
    checkpoint_seconds: NonNegativeFloat = Field(
        60.0,
        description="The longest between two checkpoints; less for jobs below ten minutes. 0: one after every step.",
    )
    stop_grace_seconds: PositiveFloat = Field(20.0, description="From SIGTERM to SIGKILL of a training child.")
    max_attempts: PositiveInt = Field(
        5, description="Crashes and lost workers of one job without a new checkpoint in between, before it fails."
    )
    outage_seconds: PositiveFloat = Field(
        300.0, description="How long a worker waits for a store that is away before it puts its job back."
    )
    stall_seconds: PositiveFloat = Field(
        120.0, description="A training step that says nothing this long, and 20 times its like, hangs and is ended."
    )
    silence_seconds: PositiveFloat = Field(3600.0, description="The same for work without steps: loading, exporting.")
    checkpoint_retention_seconds: PositiveInt = Field(
        7 * 86400, description="How long the checkpoints of a finished job can be downloaded."
    )

    file_retention_seconds: PositiveInt | None = Field(
        None,
        description="How long an uploaded file is kept that no job needs; none: until it is deleted.",
        examples=[90 * 86400],
    )
    model_retention_seconds: PositiveInt | None = Field(
        None,
        description="How long a model is kept, with its job's artifacts and results; none: until it is deleted.",
        examples=[365 * 86400],
    )
    event_retention_seconds: PositiveInt | None = Field(
        None,
        description="How long the events of a finished job are kept; none: as long as the job.",
        examples=[365 * 86400],
    )
    log_retention_seconds: PositiveInt = Field(
        30 * 86400, description="How long `tunewright up` keeps a log that was moved aside."
    )
    audit_log_retention_seconds: int | None = Field(
        None,
        ge=30 * 86400,
        description="How long the audit log is kept, 30 days at least; none: for ever.",
        examples=[365 * 86400],
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
