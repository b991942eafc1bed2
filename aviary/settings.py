"""What an operator may set for the command line through the environment, prefix `AVIARY_`; flags override it.

The gateway's own settings are `gateway.settings`; these say what is deployed and where. Read once by each command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from aviary.errors import UsageError
from gateway.settings import GatewaySettings, SettingsError
from model_registry.loader import ZOO, Registry, load_registry
from model_registry.schema import RegistryEntry

PREFIX: Final = "AVIARY_"
DEFAULT_MODELS: Final = ("HuggingFaceTB/SmolLM2-135M-Instruct",)
"""Of the shipped zoo: what runs on any computer."""


class DeploySettings(BaseSettings):
    """What is deployed, and on which cluster."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False
    )

    registry: Path | None = Field(None, description="Folder of the registry's YAML files; the shipped zoo when absent.")
    models: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Comma-separated model ids; when absent, the zoo's small default, or all of AVIARY_REGISTRY."
    )
    load_timeout_s: float = Field(1800.0, gt=0, description="Longest that a replica may take to load, in seconds.")
    drain_timeout_s: float = Field(30.0, ge=0, description="Longest that open requests may take at shutdown.")
    ray_address: str | None = Field(
        None,
        validation_alias=AliasChoices("AVIARY_RAY_ADDRESS", "RAY_ADDRESS"),
        description="Ray cluster to join, `host:port` or `auto`; `serve` starts one of its own when absent.",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip()) or None

    @field_validator("registry", "ray_address", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @classmethod
    def load(cls, **flags: Any) -> Self:
        """The environment, overridden by the flags that were given. Raises `UsageError`."""
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            raise UsageError("\n".join(_lines(error))) from None

    def read_registry(self) -> Registry:
        """Raises `RegistryError`."""
        return load_registry(self.registry or ZOO)

    def select(self, registry: Registry) -> tuple[RegistryEntry, ...]:
        """The models to deploy. Raises `RegistryError` when one is unknown."""
        default = DEFAULT_MODELS if self.registry is None else tuple(registry.entries)
        return registry.select(self.models or default)


def load_gateway_settings(**flags: object) -> GatewaySettings:
    """The environment, overridden by the flags that were given. Raises `UsageError`."""
    try:
        settings = GatewaySettings.load()
    except SettingsError as error:
        raise UsageError(str(error)) from None
    return settings.model_copy(update={name: value for name, value in flags.items() if value is not None})


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        variable = name if name.isupper() else f"{PREFIX}{name.upper()}"
        lines.append(f"{variable}={detail['input']}: {detail['msg'].lower()}; correct it or unset it")
    return lines
