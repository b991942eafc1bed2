"""What an operator may set for a gateway through the environment, prefix `AVIARY_`.

Knows neither the registry (that is the command line's) nor any model. Read once at start by whoever runs the
gateway; everything else gets the finished, frozen settings handed in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.routing import RoutingPolicy

PREFIX = "AVIARY_"
MAX_PROCESSES = 64


class SettingsError(Exception):
    """Environment variables that cannot be used; one line each, naming variable and value."""


def _in_a_folder(path: Path | None) -> Path | None:
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise ValueError("expected the path of a file in a folder that exists")
    return path


def _a_folder(path: Path | None) -> Path | None:
    if path is not None and not (path.is_dir() or (path.parent.is_dir() and not path.exists())):
        raise ValueError("expected the path of a folder, or of a new one in a folder that exists")
    return path


class GatewaySettings(BaseSettings):
    """Settings of a gateway."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", allow_inf_nan=False)

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    workers: int = Field(1, ge=1, le=MAX_PROCESSES, description="Gateway processes that serve the address together.")
    request_timeout_s: float = Field(600.0, gt=0, description="Longest life of one request, waiting included.")
    first_output_grace_s: float = Field(
        10.0, ge=0, description="How long a stream's HTTP status is held open so that an early error keeps its own."
    )
    ping_interval_s: float = Field(15.0, gt=0, description="Seconds between two keep-alive comments of a stream.")
    send_timeout_s: float = Field(30.0, gt=0, description="A client that reads nothing for so long is cut off.")
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds a client has to send its headers, and its body.")
    drain_timeout_s: float = Field(30.0, ge=0, description="Seconds open requests get to finish at shutdown.")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="Largest request body.")
    admin_key: SecretStr | None = Field(
        None, min_length=16, description="What `/admin` endpoints ask for; they are closed when absent."
    )
    routing: RoutingPolicy = Field(
        RoutingPolicy.AFFINITY,
        description="How a replica is chosen: by prefix and session within bounds of its load, or by load alone.",
    )
    responses_store: Annotated[Path | None, AfterValidator(_in_a_folder)] = Field(
        None, description="SQLite file that keeps responses; none are kept when absent."
    )
    responses_store_max_bytes: int = Field(
        1024 * 1024 * 1024, ge=1024 * 1024, description="What is kept at most; what was used longest ago goes first."
    )
    responses_ttl_s: float = Field(
        30 * 24 * 3600.0, gt=0, description="How long a response is kept since it was made or last gone on with."
    )
    files: Annotated[Path | None, AfterValidator(_a_folder)] = Field(
        None, description="Folder of `/v1/files` and `/v1/batches`; both are closed when absent."
    )
    files_max_bytes: int = Field(
        10 * 1024 * 1024 * 1024, ge=1024 * 1024, description="What all files may come to; more are refused."
    )
    files_ttl_s: float = Field(
        30 * 24 * 3600.0, gt=0, description="How long a file is kept that says nothing else, and a batch after its end."
    )
    max_file_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="Largest file that is uploaded.")
    max_choices: int = Field(8, ge=1, le=128, description="Largest `n` and `best_of` of a request.")

    @field_validator("files", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        """And not the folder that the gateway happens to be started in."""
        return None if value == "" else value

    @classmethod
    def load(cls) -> Self:
        """Reads the environment. Raises `SettingsError`."""
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("\n".join(_lines(error))) from None


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        variable = PREFIX + "_".join(str(part) for part in detail["loc"]).upper()
        lines.append(f"{variable}={detail['input']}: {detail['msg'].lower()}; correct it or unset it")
    return lines
