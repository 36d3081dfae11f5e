"""Alert rules, dashboard and runbook: they parse, they name only what exists, and they name each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from services.gateway.errors import kinds
from services.gateway.relay.metrics import ABORT_BEFORE_ANSWER
from tests.deploy.declarations import both_started

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMTOOL = shutil.which("promtool")
RULES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
TESTS: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus" / "rules_test.yml").read_text())["tests"]
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "mlpa.json").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RUNBOOK = "https://github.com/mozilla/mlpa/blob/main/deploy/RUNBOOK.md"

#: What the alerts read of others: Prometheus itself, oliver006/redis_exporter (exporter/exporter.go),
#: prometheus-community/postgres_exporter (collector/), kubernetes/kube-state-metrics, the kubelet and
#: prometheus/node_exporter (collector/filesystem_common.go).
OTHERS = {
    "up",
    "redis_up",
    "redis_memory_used_bytes",
    "redis_memory_max_bytes",
    "redis_connected_slaves",
    "redis_connected_slave_lag_seconds",
    "redis_master_link_up",
    "pg_up",
    "pg_stat_activity_count",
    "pg_settings_max_connections",
    "kube_job_status_failed",
    "kubelet_volume_stats_available_bytes",
    "kubelet_volume_stats_capacity_bytes",
    "node_filesystem_avail_bytes",
    "node_filesystem_size_bytes",
}
#: Labels that Prometheus adds.
ADDED = {"job", "instance", "namespace", "job_name", "le"}
_FUNCTIONS = {"histogram_quantile", "max_over_time", "predict_linear", "group_left"}
_SELECTOR = re.compile(r"(?<![\w:])([a-z]+(?:_[a-z]+)+|up)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"((?:[^"\\]|\\.)*)"')

Series = dict[str, dict[str, set[str]]]
"""The values of each label of each metric."""


def rules() -> list[str]:
    return [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def panels() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each metric of an expression, with the conditions on its labels."""
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left)\s*\([^)]*\)", "", expression)
    bare = re.sub(r"mlpa:[a-z0-9_:]+", "", bare)
    for name, matchers in _SELECTOR.findall(bare):
        if name not in _FUNCTIONS:
            yield name, _MATCHER.findall(matchers)


@pytest.fixture
async def series(tmp_path: Path, postgres_url: str, redis_url: str) -> AsyncIterator[Series]:
    """The series that both services expose before their first request, and the labels of later ones."""
    found: Series = defaultdict(lambda: defaultdict(set))
    async with both_started(tmp_path, postgres_url, redis_url) as services:
        registries = [registry for registry, _ in services.values()]
        for line in b"\n".join(registry.render() for registry in registries).decode().splitlines():
            if line and line[0] != "#":
                name, _, labels = line.rpartition(" ")[0].partition("{")
                for label, _, value in _MATCHER.findall(labels):
                    found[name][label].add(value)
        for registry in registries:
            for name, metric in registry.declared.items():
                for one in (f"{name}{suffix}" for suffix in ("", "_bucket", "_sum", "_count")):
                    found[one].update({label: found[one][label] for label in metric.labels})
        found["declared"] = {name: set() for registry in registries for name in registry.declared}
        yield found


def base(name: str, declared: set[str]) -> str:
    bare = re.sub(r"_(bucket|sum|count)$", "", name)
    return bare if bare in declared else name


async def test_panels_show_the_service_type_that_is_chosen(series: Series) -> None:
    for expression in panels():
        for name, matchers in selectors(expression):
            chosen = ("service_type", "=~", "$service_type") in matchers
            assert chosen == ("service_type" in series[name]), expression


async def test_rules_and_panels_ask_for_series_that_exist(series: Series) -> None:
    for expression in rules() + panels():
        for name, matchers in selectors(expression):
            if name in OTHERS:
                continue
            assert name in series, f"{name} in {expression}"
            for label, operator, value in matchers:
                if label in ADDED or "$" in value:
                    continue
                assert label in series[name], f"{name} has no label {label}: {expression}"
                values = series[name][label]
                wanted = value.split("|") if operator in ("=~", "!~") else [value]
                if values and operator in ("=", "=~"):
                    missing = [one for one in wanted if not any(re.fullmatch(one, other) for other in values)]
                    assert missing == [], f"{name} never has {label}={missing}: {expression}"


async def test_every_metric_is_in_a_rule_or_a_panel(series: Series) -> None:
    declared = set(series["declared"])
    used = {base(name, declared) for expression in rules() + panels() for name, _ in selectors(expression)}
    assert declared - used == set()


async def test_a_failure_is_the_same_to_the_objective_and_to_the_classes_of_errors(series: Series) -> None:
    """Rules read the label alone, so the classes of errors decide, and the document has their words."""
    ours = {kind.counted_as for kind in kinds() if kind.ours}
    theirs = {kind.counted_as for kind in kinds() if not kind.ours}
    chat = [expression for expression in rules() if "chat_availability_total" in expression]
    asked = {matcher for expression in chat for _, matchers in selectors(expression) for matcher in matchers}
    assert asked == {("outcome", "=", "failure"), ("outcome", "=~", "success|failure")}
    (row,) = re.findall(r"^\| `reason` of `chat_availability_total` \| (.+)$", _document(), re.MULTILINE)
    failures, _, excluded = row.partition("excluded:")
    assert set(re.findall(r"`(\w+)`", failures)) == ours | ABORTS
    excluded, _, _ = excluded.partition(";")
    assert set(re.findall(r"`(\w+)`", excluded)) == theirs | {"abort"}
    assert series["chat_availability_total"]["reason"] == ours | theirs | ABORTS | {"none", "abort"}


#: Failures that are no error of a class: the client gave up.
ABORTS = {ABORT_BEFORE_ANSWER}


def _document() -> str:
    return (DEPLOY / "METRICS.md").read_text()


def test_each_alert_links_to_its_paragraph_of_the_runbook() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    paragraphs = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)+)", text, re.MULTILINE))
    said = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-"): body for head, body in paragraphs.items()}
    for name, alert in ALERTS.items():
        url, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert url == RUNBOOK
        assert "*Do:*" in said[anchor], name


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_fires_in_one_test_and_stays_quiet_in_another(name: str) -> None:
    cases = [case for test in TESTS for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)
    assert any(not case["exp_alerts"] for case in cases)


def test_each_alert_either_wakes_somebody_up_or_waits() -> None:
    assert {alert["labels"]["severity"] for alert in ALERTS.values()} == {"page", "ticket"}


def test_the_tests_of_the_rules_test_no_others() -> None:
    assert {case["alertname"] for test in TESTS for case in test["alert_rule_test"]} == ALERTS.keys()


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
def test_promtool_accepts_the_configuration_of_prometheus() -> None:
    argv = [PROMTOOL or "", "check", "config", "prometheus.yml"]
    done = subprocess.run(argv, cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="Debian's package prometheus-alertmanager is not installed")
def test_alertmanager_wakes_for_pages_alone(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "alertmanager.yml").read_text()
    path = tmp_path / "alertmanager.yml"  # Debian's is older than `url_file`
    path.write_text(re.sub(r"url_file: (/run/secrets/alerts/\w+)", r"url: http://x\1", text))
    for severity in {alert["labels"]["severity"] for alert in ALERTS.values()}:
        argv = ["amtool", "config", "routes", "test", f"--config.file={path}", f"severity={severity}"]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.stdout.strip() == severity, done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(
        [PROMTOOL or "", "check", "rules", "rules.yml"], cwd=DEPLOY / "prometheus", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def needed(name: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A recorded series or an alert, after the recorded series that it reads."""
    own = [rule for rule in rules if name in (rule.get("alert"), rule.get("record"))]
    read = sorted({each for rule in own for each in re.findall(r"mlpa:[a-z0-9_:]+", rule["expr"])})
    return [rule for each in read for rule in needed(each, rules)] + own


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
def test_the_rules_do_what_their_tests_say(tmp_path: Path) -> None:
    """Each test runs with the rules that it needs, since promtool evaluates all that it is given for every minute."""
    everything = [rule for group in RULES["groups"] for rule in group["rules"]]
    for number, test in enumerate(TESTS):
        names = {case["alertname"] for case in test["alert_rule_test"]}
        few = {"groups": [{"name": name, "rules": needed(name, everything)} for name in sorted(names)]}
        (tmp_path / f"rules_{number}.yml").write_text(yaml.safe_dump(few))
        file = {"rule_files": [f"rules_{number}.yml"], "evaluation_interval": "1m", "tests": [test]}
        (tmp_path / f"test_{number}.yml").write_text(yaml.safe_dump(file))
    argv = [PROMTOOL or "", "test", "rules", *(path.name for path in sorted(tmp_path.glob("test_*.yml")))]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="Debian's package prometheus is not installed")
def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"x:{index}", "expr": expression} for index, expression in enumerate(panels())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    done = subprocess.run([PROMTOOL or "", "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_leaves_source_namespace_and_service_type_to_whoever_looks() -> None:
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == [
        "datasource",
        "namespace",
        "service_type",
    ]
    text = json.dumps(DASHBOARD)
    sources = re.findall(r'"datasource": \{"type": "prometheus", "uid": "([^"]*)"\}', text)
    assert set(sources) == {"${datasource}"}
    for expression in panels():
        for _, matchers in selectors(expression):
            assert ("namespace", "=~", "$namespace") in matchers, expression


def test_panels_have_one_id_and_one_place_each() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
