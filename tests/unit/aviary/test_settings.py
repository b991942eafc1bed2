"""Settings of the command line: environment, flags, and which models they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from aviary import ray_environment
from aviary.errors import UsageError
from aviary.settings import DEFAULT_MODELS, DeploySettings
from model_registry.loader import ZOO, RegistryError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REGISTRY", "MODELS", "LOAD_TIMEOUT_S", "DRAIN_TIMEOUT_S", "RAY_ADDRESS"):
        monkeypatch.delenv(f"AVIARY_{name}", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def selected(settings: DeploySettings) -> list[str]:
    return [entry.model_id for entry in settings.select(settings.read_registry())]


def test_without_settings_the_zoos_small_model_is_served() -> None:
    assert selected(DeploySettings.load()) == list(DEFAULT_MODELS)


def test_a_registry_of_ones_own_is_served_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_REGISTRY", str(ZOO))
    assert "aviary/echo" in selected(DeploySettings.load())


def test_models_are_comma_separated_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_MODELS", " aviary/echo, mosaicml/mpt-7b-chat ,")
    assert selected(DeploySettings.load()) == ["aviary/echo", "mosaicml/mpt-7b-chat"]


def test_an_unknown_model_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_MODELS", "aviary/ecco")
    with pytest.raises(RegistryError, match="aviary/echo"):
        selected(DeploySettings.load())


def test_a_flag_overrides_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVIARY_REGISTRY", str(ZOO))
    monkeypatch.setenv("AVIARY_MODELS", "a/b")
    settings = DeploySettings.load(registry=tmp_path, models="c/d")
    assert (settings.registry, settings.models) == (tmp_path, ("c/d",))
    assert DeploySettings.load(models=None).models == ("a/b",)


@pytest.mark.parametrize("variable", ["RAY_ADDRESS", "AVIARY_RAY_ADDRESS"])
def test_the_ray_address_is_read_under_both_names(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "head:6379")
    assert DeploySettings.load().ray_address == "head:6379"


def test_an_empty_variable_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AVIARY_REGISTRY", "AVIARY_MODELS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
    settings = DeploySettings.load()
    assert (settings.registry, settings.models, settings.ray_address) == (None, None, None)


def test_a_bad_value_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_LOAD_TIMEOUT_S", "soon")
    with pytest.raises(UsageError, match="AVIARY_LOAD_TIMEOUT_S=soon"):
        DeploySettings.load()


def test_rays_environment_is_completed_but_never_changed(tmp_path: Path) -> None:
    environment = {"RAY_USAGE_STATS_ENABLED": "1"}
    ray_environment.prepare(environment, tmp_path)
    assert environment["RAY_USAGE_STATS_ENABLED"] == "1"
    assert environment["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"
    assert "RAY_AUTH_MODE" not in environment


def test_whoever_has_a_ray_token_uses_it(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    environment: dict[str, str] = {}
    ray_environment.prepare(environment, tmp_path)
    assert environment["RAY_AUTH_MODE"] == "token"
