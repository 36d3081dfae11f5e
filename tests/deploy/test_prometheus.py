"""Alert rules, dashboard and runbook: they parse, they name only what exists, and they name each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = shutil.which("promtool")
RULES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "mlpa.json").read_text())

_DECLARED = re.compile(r'registry\.(?:counter|gauge|histogram)\(\s*"([a-z_]+)"')


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return rules + panels


def declared() -> set[str]:
    """Every metric that the code declares, with the series that a histogram has."""
    root = DEPLOY.parent
    text = "".join(path.read_text() for folder in ("services", "shared") for path in (root / folder).rglob("*.py"))
    names = set(_DECLARED.findall(text))
    return names | {name + suffix for name in names for suffix in ("_bucket", "_sum", "_count")} | {"up"}


def test_expressions_name_only_metrics_that_exist() -> None:
    known = declared()
    for expression in expressions():
        bare = re.sub(r'"[^"]*"', "", expression)
        bare = re.sub(r"\b(by|without|on|group_left|ignoring)\s*\([^)]*\)", "", bare)
        bare = re.sub(r"mlpa:[a-z0-9_:]+", "", bare)
        for name in re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b|\bup\b", re.sub(r"\{[^}]*\}", "", bare)):
            if name not in ("histogram_quantile",):
                assert name in known, f"{name} in {expression}"


def test_each_alert_links_to_its_paragraph_of_the_runbook() -> None:
    headings = re.findall(r"^## (.+)$", (DEPLOY / "RUNBOOK.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        path, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert path == "deploy/RUNBOOK.md"
        assert anchor in anchors, alert["alert"]
    assert len(alerts) > 10


def test_each_alert_has_a_unit_test() -> None:
    tested = {
        case["alertname"]
        for test in yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert tested == {rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_accepts_the_rules_and_their_tests(arguments: tuple[str, ...]) -> None:
    subprocess.run([PROMTOOL or "", *arguments], cwd=DEPLOY / "prometheus", check=True, capture_output=True)


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"x:{index}", "expr": expression} for index, expression in enumerate(expressions())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    subprocess.run([PROMTOOL or "", "check", "rules", str(path)], check=True, capture_output=True)
