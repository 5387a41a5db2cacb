"""The alerts and the dashboard of `ops/`: what they name is exposed, and they fire on what they should."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.architecture.sources import ROOT
from tests.integration.api.server import Service

PROMTOOL = shutil.which("promtool")
OPS = ROOT / "ops"
RULES = yaml.safe_load((OPS / "prometheus-rules.yml").read_text())["groups"][0]["rules"]
PANELS = json.loads((OPS / "grafana-dashboard.json").read_text())["panels"]
OF_PANELS = [target["expr"] for panel in PANELS for target in panel["targets"]]
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in RULES), *OF_PANELS])
def test_what_is_asked_for_is_exposed(service: Service, expression: str) -> None:
    exposition = httpx.get(f"{service.base_url}/metrics").text
    exposed = {
        family.name + suffix
        for family in text_string_to_metric_families(exposition)
        for suffix in SUFFIXES[family.type]
    }
    named = set(re.findall(r"\btunewright_[a-z_]+", expression))
    assert named <= exposed
    assert named or "up{" in expression or "tunewright:" in expression


def test_every_alert_has_a_summary_and_a_page_that_says_what_to_do() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in RULES if "alert" in rule]
    assert [rule["alert"] for rule in alerts] == headings
    for rule in alerts:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"


@needs_promtool
def test_alerts_fire_on_what_they_should_and_on_nothing_else() -> None:
    promtool("check", "rules", str(OPS / "prometheus-rules.yml"))
    promtool("test", "rules", str(OPS / "prometheus-rules.test.yml"))


@needs_promtool
def test_the_dashboard_asks_what_prometheus_understands(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(OF_PANELS)]
    as_rules = tmp_path / "panels.yml"
    as_rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(as_rules))


def promtool(*arguments: str) -> None:
    assert PROMTOOL is not None
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run([PROMTOOL, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
