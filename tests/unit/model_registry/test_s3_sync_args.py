"""Arguments of `aws s3 sync` mean here what they mean there, or are refused by name."""

from __future__ import annotations

import re

import pytest

from model_registry.s3_sync_args import S3SyncArgs, parse_s3_sync_args


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], S3SyncArgs()),
        (["--no-sign-request"], S3SyncArgs(sign_requests=False)),
        (["--no-verify-ssl"], S3SyncArgs(verify_ssl=False)),
        (["--endpoint-url", "http://a"], S3SyncArgs(endpoint_url="http://a")),
        (["--endpoint-url=http://a?b=c"], S3SyncArgs(endpoint_url="http://a?b=c")),
        (["--region", "eu-north-1", "--profile", "p"], S3SyncArgs(region="eu-north-1", profile="p")),
        (["--ca-bundle", "/etc/ca.pem"], S3SyncArgs(ca_bundle="/etc/ca.pem")),
        (["--request-payer"], S3SyncArgs(request_payer=True)),
        (["--request-payer", "requester", "--no-sign-request"], S3SyncArgs(sign_requests=False, request_payer=True)),
        (["--request-payer=requester"], S3SyncArgs(request_payer=True)),
        (["--only-show-errors", "--quiet", "--no-progress"], S3SyncArgs()),
    ],
)
def test_each_argument_says_what_it_says(arguments: list[str], expected: S3SyncArgs) -> None:
    assert parse_s3_sync_args(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        ([], {"a.bin", "a.json", "onnx/b.json"}),
        (["--exclude", "*"], set()),
        (["--exclude", "*", "--include", "*.json"], {"a.json", "onnx/b.json"}),
        (["--include", "*.json", "--exclude", "*"], set()),
        (["--exclude", "*.json", "--include", "a.*"], {"a.bin", "a.json"}),
        (["--exclude", "a.?in"], {"a.json", "onnx/b.json"}),
        (["--exclude", "[!o]*"], {"onnx/b.json"}),
        (["--exclude=*.json"], {"a.bin"}),
        (["--exclude", "*.JSON"], {"a.bin", "a.json", "onnx/b.json"}),
    ],
)
def test_the_last_pattern_that_matches_decides(arguments: list[str], selected: set[str]) -> None:
    parsed = parse_s3_sync_args(arguments)
    assert {name for name in ("a.bin", "a.json", "onnx/b.json") if parsed.selects(name)} == selected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--delete"], "--delete is not supported: a download never holds"),
        (["--acl", "public-read"], '"--acl" is not supported; these are: --no-sign-request'),
        (["--region eu-north-1"], '"--region eu-north-1" is not supported; give name and value as two items'),
        (["s3://bucket"], '"s3://bucket" is not supported'),
        (["--region"], "--region needs a value"),
        (["--exclude", "--no-sign-request"], "--exclude needs a value"),
        (["--region", "a", "--region", "b"], "--region is given twice"),
        (["--no-sign-request=yes"], "--no-sign-request takes no value"),
        (["--request-payer", "somebody"], '--request-payer "somebody" is not supported'),
    ],
)
def test_what_is_not_understood_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_s3_sync_args(arguments)
