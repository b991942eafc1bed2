"""The extra arguments of `aws s3 sync` that a registry file may give, read as the AWS command line reads them.

The schema checks them here before anything is deployed, the S3 source takes its settings from here. Knows neither boto3
nor the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_FILTERS: Final = ("--exclude", "--include")
_WITH_VALUE: Final[Mapping[str, str]] = {
    "--endpoint-url": "endpoint_url",
    "--region": "region",
    "--profile": "profile",
    "--ca-bundle": "ca_bundle",
}
_REQUEST_PAYER: Final = "--request-payer"
_SWITCHES: Final[Mapping[str, tuple[str, bool]]] = {
    "--no-sign-request": ("sign_requests", False),
    "--no-verify-ssl": ("verify_ssl", False),
}
_ABOUT_OUTPUT: Final = ("--only-show-errors", "--quiet", "--no-progress")
_ADVICE: Final[Mapping[str, str]] = {
    "--delete": "a download never holds files that the mirror does not; remove it",
    "--exact-timestamps": "files are told apart by their ETag; remove it",
    "--size-only": "files are told apart by their ETag; remove it",
    "--dryrun": "it would fetch nothing; remove it",
}
_KNOWN: Final = (*_SWITCHES, *_WITH_VALUE, _REQUEST_PAYER, *_FILTERS, *_ABOUT_OUTPUT)


@dataclass(frozen=True, slots=True)
class NameFilter:
    """One `--exclude` or `--include`. Its pattern is the shell's, where `*` crosses `/` too."""

    pattern: str
    includes: bool


@dataclass(frozen=True, slots=True)
class S3SyncArgs:
    """What the arguments say. None: as the AWS configuration of the workers' machine says."""

    sign_requests: bool = True
    verify_ssl: bool = True
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    ca_bundle: str | None = None
    request_payer: bool = False
    filters: tuple[NameFilter, ...] = ()

    def selects(self, name: str) -> bool:
        """Whether the file of that name, relative to the prefix, is synced: the last pattern that matches decides."""
        matching = (one.includes for one in reversed(self.filters) if fnmatchcase(name, one.pattern))
        return next(matching, True)


def parse_s3_sync_args(arguments: Sequence[str]) -> S3SyncArgs:
    """Raises `ValueError` that names the argument which is unknown, incomplete or given twice."""
    values: dict[str, str | bool] = {}
    filters: list[NameFilter] = []
    for name, value in _pairs(arguments):
        if name in _FILTERS:
            filters.append(NameFilter(value, includes=name == "--include"))
            continue
        for field, setting in _settings(name, value):
            if field in values:
                raise ValueError(f"{name} is given twice; keep one")
            values[field] = setting
    return S3SyncArgs(filters=tuple(filters), **values)  # type: ignore[arg-type]  # each field got its own kind


def _settings(name: str, value: str) -> Iterator[tuple[str, str | bool]]:
    """Field of `S3SyncArgs` and its value; nothing for arguments about what is printed."""
    if name in _WITH_VALUE:
        yield _WITH_VALUE[name], value
    elif name in _SWITCHES:
        yield _SWITCHES[name]
    elif name == _REQUEST_PAYER:
        if value != "requester":
            raise ValueError(f'{name} "{value}" is not supported; its only value is requester')
        yield "request_payer", True


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every argument with its value, which is empty for switches; both `--name value` and `--name=value` are read."""
    waiting = list(reversed(arguments))
    while waiting:
        name, has_value, value = waiting.pop().partition("=")
        _check_known(name)
        if name in _WITH_VALUE or name in _FILTERS:
            value = value if has_value else _take_value(name, waiting)
        elif name == _REQUEST_PAYER and not has_value:
            is_given = bool(waiting) and not waiting[-1].startswith("--")
            value = waiting.pop() if is_given else "requester"
        elif name != _REQUEST_PAYER and has_value:
            raise ValueError(f"{name} takes no value; remove ={value}")
        yield name, value


def _take_value(name: str, waiting: list[str]) -> str:
    if not waiting or waiting[-1] in _KNOWN:
        raise ValueError(f"{name} needs a value; give it as the next item of the list")
    return waiting.pop()


def _check_known(name: str) -> None:
    if name in _KNOWN:
        return
    if name in _ADVICE:
        raise ValueError(f"{name} is not supported: {_ADVICE[name]}")
    hint = "; give name and value as two items of the list" if " " in name else ""
    raise ValueError(f'"{name}" is not supported{hint}; these are: {", ".join(_KNOWN)}')
