"""Alerts, dashboard and ServiceMonitor: accepted by promtool, about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import CollectorRegistry

from sds.clock import SystemClock
from sds.operations.metrics.families import (
    AdmissionFamilies,
    AgentFamilies,
    AuthorityFamilies,
    ProcessFamilies,
)
from sds.operations.metrics.store import MeteredStore, StoreCollector
from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = need.ROOT / "deploy" / "monitoring"
NAME = re.compile(r"\b(?:sds|process)_[a-z0-9_]+\b")


def exported() -> set[str]:
    """Every series name that the agent, the authority or ``sds admission`` exports."""
    registry = CollectorRegistry()
    ProcessFamilies(registry, component="agent")
    AuthorityFamilies(registry)
    AdmissionFamilies(registry)
    StoreCollector(MeteredStore(AgentFamilies(registry)), SystemClock(), registry)
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_count", "_sum"),
    }
    return {f.name + suffix for f in registry.collect() for suffix in suffixes[f.type]}


def rules() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    assert document["kind"] == "PrometheusRule"
    spec: dict[str, Any] = document["spec"]
    return spec


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return document


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def test_promtool_accepts_the_rules_and_their_tests_pass(tmp_path: Path) -> None:
    promtool = need.tool("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    shutil.copy(need.ROOT / "tests" / "deploy" / "alerts_test.yaml", tmp_path)
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "alerts_test.yaml"]):
        ran = subprocess.run(
            [promtool, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_test_and_is_documented() -> None:
    tests = (need.ROOT / "tests" / "deploy" / "alerts_test.yaml").read_text()
    drills = (need.ROOT / "tests" / "e2e" / "test_alerts.py").read_text()
    documented = (need.ROOT / "docs" / "operations.md").read_text()
    alerts = [rule["alert"] for group in rules()["groups"] for rule in group["rules"]]
    assert len(alerts) > 10
    for alert in alerts:
        assert f"alertname: {alert}" in tests or f'"{alert}"' in drills, alert
        assert alert in documented, alert


def test_alerts_and_dashboard_use_only_metrics_that_exist() -> None:
    known = exported()
    used = [rule["expr"] for group in rules()["groups"] for rule in group["rules"]]
    for expression in [*used, *expressions()]:
        names = set(NAME.findall(expression))
        assert names, expression
        assert names <= known, (names - known, expression)


def test_pages_and_cures_name_only_metrics_that_exist() -> None:
    known = exported()
    pages = [*(need.ROOT / "docs").rglob("*.md"), *(need.ROOT / "sds" / "reasons").glob("*.py")]
    for page in [*pages, need.ROOT / "CHANGELOG.md"]:
        for name in re.findall(r"\bsds_[a-z0-9_]+", page.read_text()):
            # A page may leave the end of a name out: `sds_owner_…`.
            assert any(one.startswith(name) for one in known), f"{page.name}: {name}"


def test_the_dashboard_s_expressions_parse(tmp_path: Path) -> None:
    promtool = need.tool("promtool")
    groups = {
        "groups": [
            {
                "name": "dashboard",
                "rules": [
                    {"record": f"panel:{index}", "expr": filled(expression)}
                    for index, expression in enumerate(expressions())
                ],
            }
        ]
    }
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(groups))
    ran = subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def filled(expression: str) -> str:
    """The expression as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$instance", ".*")


@pytest.mark.parametrize("change", [{}, {"refesh": "10s"}, {"annotations": {"lists": []}}])
def test_grafanas_own_types_know_every_field_of_the_dashboard(change: dict[str, Any]) -> None:
    """Grafana publishes its schema as types: what they do not know, they lose."""
    register_default_plugins()
    written = dashboard() | change
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert (unlike(written, read) == []) is (change == {}), unlike(written, read)


def unlike(written: Any, read: Any, path: str = "$") -> list[str]:
    """Where what was read lacks or changes what was written; defaults may be added."""
    if isinstance(written, dict) and isinstance(read, dict):
        lost = [f"{path}.{name}" for name in written if name not in read]
        both = written.keys() & read.keys()
        return lost + [
            one for name in both for one in unlike(written[name], read[name], f"{path}.{name}")
        ]
    if isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        pairs = zip(written, read, strict=True)
        return [
            one for index, pair in enumerate(pairs) for one in unlike(*pair, f"{path}[{index}]")
        ]
    return [] if written == read else [path]


def test_panels_have_titles_descriptions_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", ["service.yaml", "servicemonitor.yaml", "kustomization.yaml"])
def test_the_monitor_finds_the_service(name: str) -> None:
    services = list(yaml.safe_load_all((FOLDER / "service.yaml").read_text()))
    if name == "service.yaml":
        bases = [*(need.ROOT / "deploy" / "base").glob("*.yaml")]
        objects = [each for base in bases for each in yaml.safe_load_all(base.read_text())]
        labels = [
            each["spec"]["template"]["metadata"]["labels"]
            for each in objects
            if each and "template" in each.get("spec", {})
        ]
        for service in services:
            selector = service["spec"]["selector"]
            assert any(selector.items() <= found.items() for found in labels), selector
        return
    document = yaml.safe_load((FOLDER / name).read_text())
    if document["kind"] == "ServiceMonitor":
        wanted = document["spec"]["selector"]["matchLabels"]
        for service in services:
            assert wanted.items() <= service["metadata"]["labels"].items()
            ports = {port["name"] for port in service["spec"]["ports"]}
            assert {end["port"] for end in document["spec"]["endpoints"]} <= ports
    else:
        for resource in document["resources"]:
            assert (FOLDER / resource).is_file()
