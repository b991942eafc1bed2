"""deploy/prometheus and deploy/grafana: whatever they ask Prometheus for is what a gateway exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, Metric

from gateway.errors import ApiError
from gateway.metrics import Metrics
from gateway.protocol.batches import BatchStatus
from model_registry.contract import FinishReason, ReplicaState
from tests.support.compose import services

ROOT: Final = Path(__file__).parents[3] / "deploy"
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "grafana" / "dashboards" / "aviary.json").read_text("utf-8"))
PROMETHEUS: Final = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text("utf-8"))
ALERTS: Final = yaml.safe_load((ROOT / "prometheus" / "alerts.yml").read_text("utf-8"))
PROVISIONING: Final = {
    name: yaml.safe_load((ROOT / "grafana" / "provisioning" / name).read_text("utf-8"))
    for name in ("datasources/prometheus.yml", "dashboards/aviary.yml")
}
FROM_PROMETHEUS: Final = {"up": {"job", "instance"}}
"""Series of Prometheus itself, and their labels."""
SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
}


def exported() -> dict[str, set[str]]:
    """Names of all series that `/metrics` may show, each with its labels."""
    registry = CollectorRegistry()
    labels = {
        collector._name: set(collector._labelnames)
        for collector in vars(Metrics(registry)).values()
        if hasattr(collector, "_labelnames")
    }
    families: list[Metric] = list(registry.collect())
    series = dict(FROM_PROMETHEUS)
    for family in families:
        for suffix in SUFFIXES[family.type]:
            extra = {"le"} if suffix == "_bucket" else set()
            series[family.name + suffix] = labels.get(family.name, {"model", "replica"}) | extra
    return series


def panels() -> Iterator[dict[str, Any]]:
    yield from (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def expressions() -> Iterator[tuple[str, str]]:
    """Where each expression stands, and what it is with Grafana's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
            yield f"panel {panel['title']}", text
    for group in ALERTS["groups"]:
        yield from ((f"alert {rule['alert']}", rule["expr"]) for rule in group["rules"])


def selectors(expression: str) -> Iterator[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return iter(found)


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_every_expression_asks_for_what_is_exported(place: str, expression: str) -> None:
    found = list(selectors(expression))
    assert found
    for selector in found:
        assert selector.name in exported(), f"{place}: no such series as {selector.name}"
        for matcher in selector.matchers.matchers:
            assert matcher.name in exported()[selector.name], f"{place}: {selector.name} has no label {matcher.name}"


def test_every_series_is_shown_somewhere() -> None:
    """A board that lacks what is measured helps nobody when it matters."""
    asked = {selector.name for _, expression in expressions() for selector in selectors(expression)}
    measured = {name for name in exported() if not name.endswith(("_sum", "_count"))}
    assert measured - asked == set()


def test_values_of_labels_exist() -> None:
    states = {state.value for state in (*ReplicaState, *BatchStatus)}
    errors = {error.__name__ for error in all_errors(ApiError)}
    for place, expression in expressions():
        for value in re.findall(r'state="(\w+)"', expression):
            assert value in states, place
        for values in re.findall(r'state=~"([\w|]+)"', expression):
            assert states.issuperset(values.split("|")), place
        for value in re.findall(r'reason!?="(\w+)"', expression):
            assert value in errors, place
        for value in re.findall(r'finish_reason="(\w+)"', expression):
            assert value in {reason.value for reason in FinishReason}, place


def all_errors(base: type[ApiError]) -> Iterator[type[ApiError]]:
    for error in base.__subclasses__():
        yield error
        yield from all_errors(error)


def test_the_board_is_complete() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    assert DASHBOARD["uid"] == "aviary"
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    (query,) = [variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "model"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query["query"]["query"]).groups()  # type: ignore[union-attr]
    assert label in exported()[metric]


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(column, row) for column in columns for row in rows}
        assert not taken & cells, panel["title"]
        taken |= cells


def test_grafana_finds_prometheus_and_the_board() -> None:
    (source,) = PROVISIONING["datasources/prometheus.yml"]["datasources"]
    (provider,) = PROVISIONING["dashboards/aviary.yml"]["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"].raw["volumes"])
    assert source["url"] == "http://prometheus:9090"
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


def test_prometheus_scrapes_every_gateway() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    (finder,) = job["dns_sd_configs"]
    gateway = services()["gateway"]
    assert finder == {"names": ["gateway"], "type": "A", "port": int(gateway.environment["AVIARY_PORT"])}
    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    assert {"cluster"} <= set(services()["prometheus"].raw["networks"]) & set(gateway.raw["networks"])
