"""Settings from the environment, and what a wrong one is answered with."""

from __future__ import annotations

import pytest

from gateway.settings import GatewaySettings, SettingsError


def test_defaults_serve_on_this_machine_only() -> None:
    settings = GatewaySettings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)


def test_the_environment_is_read_under_our_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_PORT", "9000")
    monkeypatch.setenv("PORT", "1")
    assert GatewaySettings.load().port == 9000


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AVIARY_PORT", "eighty"),
        ("AVIARY_PORT", "70000"),
        ("AVIARY_WORKERS", "0"),
        ("AVIARY_REQUEST_TIMEOUT_S", "0"),
        ("AVIARY_PING_INTERVAL_S", "inf"),
        ("AVIARY_ROUTING", "random"),
        ("AVIARY_RESPONSES_STORE", "/no/such/folder/responses.db"),
        ("AVIARY_RESPONSES_STORE", "/"),
        ("AVIARY_RESPONSES_STORE_MAX_BYTES", "0"),
        ("AVIARY_RESPONSES_TTL_S", "0"),
        ("AVIARY_FILES", "/no/such/folder/files"),
        ("AVIARY_FILES", "/etc/hostname"),
        ("AVIARY_FILES_MAX_BYTES", "0"),
        ("AVIARY_MAX_FILE_BYTES", "0"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=f"{variable}={value}"):
        GatewaySettings.load()


def test_files_are_closed_by_an_empty_value_as_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_FILES", "")
    assert GatewaySettings.load().files is None


def test_all_bad_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVIARY_PORT", "x")
    monkeypatch.setenv("AVIARY_MAX_CHOICES", "0")
    with pytest.raises(SettingsError) as caught:
        GatewaySettings.load()
    assert len(str(caught.value).splitlines()) == 2
