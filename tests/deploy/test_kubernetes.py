"""The manifests: valid by the API's schemas, and in step with the settings and with each other."""

from __future__ import annotations

import ipaddress
import re
import runpy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import click
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from services.auth.settings import AuthSettings
from services.cli.commands import cli
from services.gateway.settings import GatewaySettings
from shared.domain.service_types import load

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUBECTL = shutil.which("kubectl")
#: The oldest that is still supported by its makers, and the newest that the schemas know.
VERSIONS = ("1.34", "1.37")
SETTINGS: dict[str, type[AuthSettings] | type[GatewaySettings]] = {"auth": AuthSettings, "gateway": GatewaySettings}
#: The jobs that run again and again.
JOBS = ("prune", "ledger-reconcile", "device-receipts")
EXPORTERS = ("redis-exporter", "postgres-exporter")
#: Everything that runs a pod.
WORKLOADS = ("auth", "gateway", "migrate", *JOBS, *EXPORTERS)
#: Custom resources, whose schemas are not Kubernetes' own; tests/deploy/test_validators.py has them.
CUSTOM = ("gateway.networking.k8s.io/", "monitoring.coreos.com/")
#: What a process may be charged for at the peak of ten million users, by capacity.py.
PEAK = runpy.run_path(str(FOLDER.parent / "capacity.py"))
#: What OpenTelemetry reads of the environment by itself.
OF_OPENTELEMETRY = {"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}


@cache
def plain() -> list[dict[str, Any]]:
    """The objects as they are written, before kustomize."""
    others = ("kustomization.yaml", "prometheus-adapter.yaml")
    paths = [path for path in sorted(FOLDER.rglob("*.yaml")) if path.name not in others]
    return [found for path in paths for found in yaml.safe_load_all(path.read_text())]


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    text = subprocess.run(
        [KUBECTL or "", "kustomize", str(FOLDER / overlay)], check=True, capture_output=True, text=True
    ).stdout
    return list(yaml.safe_load_all(text))


def the(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(found for found in objects if found["kind"] == kind and found["metadata"]["name"] == name)


def pod(objects: list[dict[str, Any]], name: str) -> dict[str, Any]:
    kind = "Job" if name == "migrate" else "CronJob" if name in JOBS else "Deployment"
    spec = the(objects, kind, name)["spec"]
    found: dict[str, Any] = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
    return found


def configuration(overlay: str = "base") -> dict[str, str]:
    literals = yaml.safe_load((FOLDER / overlay / "kustomization.yaml").read_text())["configMapGenerator"][0][
        "literals"
    ]
    return dict(literal.split("=", 1) for literal in literals)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(version: str) -> None:
    for found in plain():
        if not found["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["base", "production"])
def test_kustomize_renders_valid_objects(overlay: str) -> None:
    objects = rendered(overlay)
    for found in objects:
        if not found["apiVersion"].startswith(CUSTOM):
            kubernetes_validate.validate(found, VERSIONS[-1], strict=True)
    assert len(objects) >= 20


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_every_pod_of_production_is_one_that_the_policy_of_the_stores_selects() -> None:
    """Names, PostgreSQL and Redis: without the label, which kustomize adds, a pod gets to none of them."""
    objects = rendered("production")
    for kind, at in (("Deployment", ()), ("Job", ()), ("CronJob", ("jobTemplate", "spec"))):
        for found in (one for one in objects if one["kind"] == kind):
            template = found["spec"]
            for key in at:
                template = template[key]
            selector = the(objects, "NetworkPolicy", "stores")["spec"]["podSelector"]["matchLabels"]
            assert selector.items() <= template["template"]["metadata"]["labels"].items(), found["metadata"]["name"]


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
def test_production_names_no_image_without_a_version() -> None:
    for name in WORKLOADS:
        (container,) = pod(rendered("production"), name)["containers"]
        assert re.fullmatch(r".+/[\w-]+:v?\d+\.\d+\.\d+", container["image"])


@pytest.mark.parametrize("name", SETTINGS)
def test_each_variable_is_a_setting_and_none_that_is_needed_is_missing(name: str) -> None:
    (container,) = pod(plain(), name)["containers"]
    given = {variable["name"] for variable in container["env"]} | configuration().keys()
    known = {setting.upper() for kind in SETTINGS.values() for setting in kind.model_fields}
    assert given - known - OF_OPENTELEMETRY == set()
    needed = SETTINGS[name](_env_file=None).needed()
    assert {setting.upper() for setting in needed} - given == set()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_pod_names_users_alike_in_its_log_and_may_report_and_trace(name: str) -> None:
    (container,) = pod(plain(), name)["containers"]
    sources = {one["name"]: one.get("valueFrom", {}).get("secretKeyRef") for one in container["env"]}
    assert sources["LOG_USER_SECRET"] == {"name": "mlpa-telemetry", "key": "LOG_USER_SECRET"}  # no start without it
    for optional in ("SENTRY_DSN", "OTEL_EXPORTER_OTLP_ENDPOINT", *OF_OPENTELEMETRY):
        assert sources[optional] == {"name": "mlpa-telemetry", "key": optional, "optional": True}
    comments = (FOLDER / "production" / "kustomization.yaml").read_text()
    assert all(variable in comments for variable in ("LOG_USER_SECRET", "SENTRY_DSN", *OF_OPENTELEMETRY))


def test_the_gateway_holds_none_of_auths_secrets() -> None:
    (container,) = pod(plain(), "gateway")["containers"]
    names = {variable["name"] for variable in container["env"]}
    assert (
        names
        & {
            "MASTER_KEY",
            "CHALLENGE_SECRET",
            "FXA_CACHE_SECRET",
            "ERASURE_SECRET",
            "MLPA_ADMIN_KEYS",
            "MLPA_SIGNING_KEYS_DIR",
        }
        == set()
    )
    assert not any(volume.get("secret") for volume in pod(plain(), "gateway")["volumes"])


def test_no_secret_is_written_down() -> None:
    for name in WORKLOADS:
        for variable in pod(plain(), name)["containers"][0]["env"]:
            secret = re.search("SECRET|KEY$|KEYS$|DATABASE_URL|REDIS_URL|PASS", variable["name"])
            in_a_file = variable.get("value", "").startswith("/run/secrets/")
            assert not secret or in_a_file or "secretKeyRef" in variable["valueFrom"], variable


@pytest.mark.parametrize("name", SETTINGS)
def test_a_pod_is_given_longer_than_its_drain_takes(name: str) -> None:
    given = literals(name)
    drain = float(configuration()["DRAIN_DELAY_SECONDS"]) + float(given["DRAIN_SECONDS"])
    assert pod(plain(), name)["terminationGracePeriodSeconds"] >= drain + 10


def test_a_rollout_cuts_off_no_answer() -> None:
    given = literals("gateway")
    assert 0 < float(given["TOTAL_TIMEOUT_SECONDS"]) < float(given["DRAIN_SECONDS"])


def literals(name: str) -> dict[str, str]:
    """The variables of a pod that are written down."""
    (container,) = pod(plain(), name)["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize("name", WORKLOADS)
def test_containers_have_no_more_rights_than_they_need(name: str) -> None:
    spec = pod(plain(), name)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_the_variables_that_a_cluster_gives_a_pod_are_no_settings() -> None:
    """A Service makes NAME_PORT and the like in every pod of its namespace; ``auth`` makes AUTH_PORT."""
    for name in WORKLOADS:
        assert pod(plain(), name)["enableServiceLinks"] is False


@pytest.mark.parametrize("name", JOBS)
def test_jobs_run_commands_that_there_are_with_the_settings_that_these_read(name: str) -> None:
    (container,) = pod(plain(), name)["containers"]
    program, *words = container["command"]
    command: Any = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    assert program == "mlpa"
    command.make_context(command.name, [], resilient_parsing=True)
    assert container["envFrom"] == [{"configMapRef": {"name": "mlpa"}}]
    given = {one["name"]: one.get("valueFrom") for one in container["env"]}
    assert given.keys() <= {setting.upper() for setting in AuthSettings.model_fields}
    role = "mlpa-migrate" if name == "prune" else "mlpa-auth"  # only the owner may drop and delete
    assert given["DATABASE_URL"] == {"secretKeyRef": {"name": role, "key": "DATABASE_URL"}}


def test_what_is_deleted_is_written_down_and_jobs_have_times_of_their_own() -> None:
    assert int(configuration()["LEDGER_KEPT_DAYS"]) >= 31
    schedules = {name: the(plain(), "CronJob", name)["spec"]["schedule"] for name in JOBS}
    assert len(set(schedules.values())) == len(JOBS)
    for name in ("prune", "ledger-reconcile"):  # every night
        assert re.fullmatch(r"\d+ \d+ \* \* \*", schedules[name])
    alert = (FOLDER.parent / "prometheus" / "rules.yml").read_text()
    assert f'job_name=~"({"|".join(JOBS)})-.+"' in alert


def test_each_workload_has_a_database_role_of_its_own() -> None:
    secrets = []
    for name in ("auth", "gateway", "migrate"):
        (container,) = pod(plain(), name)["containers"]
        (url,) = (variable for variable in container["env"] if variable["name"] == "DATABASE_URL")
        secrets.append(url["valueFrom"]["secretKeyRef"]["name"])
    assert secrets == ["mlpa-auth", "mlpa-gateway", "mlpa-migrate"]
    comments = (FOLDER / "production" / "kustomization.yaml").read_text()
    assert all(re.search(rf"#   {secret} ", comments) for secret in secrets)


@pytest.mark.parametrize("name", SETTINGS)
def test_services_disruption_budgets_and_policies_select_the_pods(name: str) -> None:
    objects = plain()
    labels = the(objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
    selectors = [
        the(objects, "Deployment", name)["spec"]["selector"]["matchLabels"],
        the(objects, "Service", name)["spec"]["selector"],
        the(objects, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
        the(objects, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_ops_port_is_open_to_named_namespaces_only(name: str) -> None:
    policy = the(plain(), "NetworkPolicy", name)["spec"]
    ports = {port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]}
    assert ports[9090]
    service = the(plain(), "Service", name)["spec"]["ports"]
    assert all(port["port"] != 9090 for port in service)
    assert configuration()["OPS_PORT"] == "9090"


def test_operators_and_the_monitoring_reach_a_port_of_auth_each() -> None:
    objects = plain()
    port = int(literals("auth")["ADMIN_PORT"])
    named = {one["name"]: one["containerPort"] for one in pod(objects, "auth")["containers"][0]["ports"]}
    assert named == {"http": 8081, "ops": 9090, "admin": port}
    service = the(objects, "Service", "auth-admin")["spec"]
    assert [(one["port"], one["targetPort"]) for one in service["ports"]] == [(port, "admin")]
    assert service["selector"] == the(objects, "Service", "auth")["spec"]["selector"]
    rules = the(objects, "NetworkPolicy", "auth")["spec"]["ingress"]
    peers = {one["port"]: rule["from"] for rule in rules for one in rule["ports"] if "from" in rule}
    label = "kubernetes.io/metadata.name"
    assert peers == {
        9090: [{"namespaceSelector": {"matchLabels": {label: "monitoring"}}}],
        port: [{"namespaceSelector": {"matchLabels": {label: "mlpa-operators"}}}],
    }


def test_only_auth_and_gateways_reach_litellm() -> None:
    (rule,) = the(plain(), "NetworkPolicy", "litellm")["spec"]["ingress"]
    names = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in rule["from"]}
    assert names == {"auth", "gateway", "ledger-reconcile"}


@pytest.mark.parametrize("name", ["auth", "gateway", "jobs", "exporters"])
def test_pods_get_out_to_named_places_alone(name: str) -> None:
    policy = the(plain(), "NetworkPolicy", name)["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    for rule in [*policy.get("egress", ()), *the(plain(), "NetworkPolicy", "stores")["spec"]["egress"]]:
        assert rule["to"]
        assert rule["ports"]


def test_the_server_of_the_clouds_metadata_is_out_of_reach() -> None:
    blocks = [
        peer["ipBlock"]
        for found in plain()
        if found["kind"] == "NetworkPolicy"
        for rule in found["spec"].get("egress", ())
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert len(blocks) > 4
    metadata = ipaddress.ip_address("169.254.169.254")
    for block in blocks:
        network = ipaddress.ip_network(block["cidr"])
        if metadata in network:
            assert any(metadata in ipaddress.ip_network(one) for one in block["except"]), block


def metrics_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = the(plain(), "HorizontalPodAutoscaler", name)["spec"]["metrics"]
    return found


def test_gateways_scale_on_open_requests_and_on_cpu_and_auth_on_cpu() -> None:
    requests, cpu = metrics_of("gateway")
    (of_auth,) = metrics_of("auth")
    assert int(requests["pods"]["target"]["averageValue"]) < GatewaySettings.model_fields["max_open_requests"].default
    assert cpu["resource"]["name"] == of_auth["resource"]["name"] == "cpu"
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]
    assert rule["name"]["as"] == requests["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith("in_progress_requests{")
    endpoints = re.compile(re.findall(r'endpoint=~"([^"]+)"', rule["metricsQuery"])[0])
    for operation in ("chat/completions", "embeddings", "search"):
        assert endpoints.fullmatch(f"/v1/{operation}")
    assert not endpoints.fullmatch("/v1/models")


def test_nothing_but_the_autoscaler_says_how_many_there_are() -> None:
    for found in (the(plain(), "Deployment", name) for name in SETTINGS):
        assert "replicas" not in found["spec"]
    assert "/spec/replicas" not in (FOLDER / "production" / "kustomization.yaml").read_text()


def test_there_may_be_as_many_as_the_plan_for_ten_million_users_has() -> None:
    needed = PEAK["needed"](1e7, PEAK["Habits"](), PEAK["Costs"](), PEAK["Plan"]())
    for name, times in (("gateway", 1), ("auth", 2)):
        most = the(plain(), "HorizontalPodAutoscaler", name)["spec"]["maxReplicas"]
        assert most >= times * needed[f"{name}: processes"]


@pytest.mark.parametrize("name", SETTINGS)
def test_nodes_can_be_emptied_soon_however_many_pods_there_are(name: str) -> None:
    assert the(plain(), "PodDisruptionBudget", name)["spec"]["maxUnavailable"].endswith("%")
    topologies = [one["topologyKey"] for one in pod(plain(), name)["topologySpreadConstraints"]]
    assert topologies == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_monitors_select_the_pods_and_make_jobs_that_the_rules_know() -> None:
    rules = (FOLDER.parent / "prometheus" / "rules.yml").read_text()
    assert 'up{job=~"(.+/)?mlpa-(auth|gateway)"}' in rules
    for name in SETTINGS:
        monitor = the(plain(), "PodMonitor", f"mlpa-{name}")["spec"]
        labels = the(plain(), "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        ports = {port["name"]: port["containerPort"] for port in pod(plain(), name)["containers"][0]["ports"]}
        assert [ports[endpoint["port"]] for endpoint in monitor["podMetricsEndpoints"]] == [9090]
    monitor = the(plain(), "PodMonitor", "mlpa-exporters")["spec"]
    for name in EXPORTERS:
        labels = the(plain(), "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        assert pod(plain(), name)["containers"][0]["ports"][0]["name"] == monitor["podMetricsEndpoints"][0]["port"]


def test_argo_and_helm_migrate_before_they_roll() -> None:
    notes = the(plain(), "Job", "migrate")["metadata"]["annotations"]
    assert notes["argocd.argoproj.io/hook"] == "PreSync"
    assert set(notes["helm.sh/hook"].split(",")) == {"pre-install", "pre-upgrade"}


def test_the_ingress_buffers_nothing_and_is_as_patient_as_the_gateway() -> None:
    notes = the(plain(), "Ingress", "mlpa")["metadata"]["annotations"]
    notes = {name.rpartition("/")[2]: value for name, value in notes.items()}
    assert (notes["proxy-buffering"], notes["proxy-request-buffering"]) == ("off", "off")
    assert float(notes["proxy-read-timeout"]) > GatewaySettings.model_fields["streaming_timeout_seconds"].default
    megabytes = int(notes["proxy-body-size"].removesuffix("m"))
    assert megabytes * 2**20 > GatewaySettings.model_fields["max_request_size_bytes"].default


def test_every_door_leads_to_the_same_services_and_clears_the_same_fields() -> None:
    template = (FOLDER.parent / "nginx" / "mlpa.conf.template").read_text()
    nginx = {
        (path, "Exact" if exact else "Prefix", service)
        for exact, path, service in re.findall(r"location (= )?(\S+) \{ proxy_pass http://mlpa_(\w+); \}", template)
    }
    (rule,) = the(plain(), "Ingress", "mlpa")["spec"]["rules"]
    ingress = {(path["path"], path["pathType"], path["backend"]["service"]["name"]) for path in rule["http"]["paths"]}
    routes = the(plain(), "HTTPRoute", "mlpa")["spec"]["rules"]
    gateway_api = {
        (match["path"]["value"], match["path"]["type"].removeprefix("Path"), backend["name"])
        for route in routes
        for match in route["matches"]
        for backend in route["backendRefs"]
    }
    assert len(nginx) == 9
    assert nginx == ingress == gateway_api
    for route in routes:
        (backend,) = route["backendRefs"]
        (port,) = the(plain(), "Service", backend["name"])["spec"]["ports"]
        assert backend["port"] == port["port"]
    cleared = set(re.findall(r'proxy_set_header (X-[\w-]+) "";', template))
    assert cleared == {"X-Geo-Country", "X-MLPA-Client", "X-MLPA-Exchange-Key"}
    assert the(plain(), "ConfigMap", "mlpa-headers")["data"] == dict.fromkeys(cleared, "")
    for route in routes:
        (header,) = route["filters"]
        assert set(header["requestHeaderModifier"]["remove"]) == cleared


def test_ingress_nginx_takes_headers_as_large_as_the_nginx_that_is_tested_does() -> None:
    buffers = the(plain(), "ConfigMap", "ingress-nginx-controller")["data"]["large-client-header-buffers"]
    template = (FOLDER.parent / "nginx" / "mlpa.conf.template").read_text()
    assert f"large_client_header_buffers {buffers};" in template


def test_the_example_of_the_service_types_can_be_read() -> None:
    rows = load(FOLDER / "base" / "service_types.toml", debug=False).by_name
    assert rows.keys() == {"ai", "s2s", "memories"}
    for row in rows.values():
        assert set(row.fxa_scopes) == {"https://identity.mozilla.com/apps/smartwindow", "profile:uid"}
