"""Dockerfile and compose file name only what exists, and give each service no more than it needs."""

from __future__ import annotations

import configparser
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from services.auth.settings import AuthSettings
from services.gateway.settings import GatewaySettings
from tests.deploy.test_kubernetes import JOBS, plain, pod, the

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SETTINGS: dict[str, type[AuthSettings] | type[GatewaySettings]] = {"auth": AuthSettings, "gateway": GatewaySettings}
OF_AUTH = {
    "CHALLENGE_SECRET",
    "FXA_CACHE_SECRET",
    "ERASURE_SECRET",
    "MASTER_KEY",
    "MLPA_ADMIN_KEYS",
    "MLPA_SIGNING_KEYS_DIR",
}


def test_the_build_copies_what_exists_and_is_not_ignored() -> None:
    kept = [
        line[1:] for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = [source for copy in copies for source in copy.split()[:-1]]
    assert "services" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == name or source.startswith(f"{name}/") for name in kept), source


def test_images_run_as_nobody_and_each_service_has_a_target() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert stages == {"build", "runtime", "auth", "gateway", "migrate"}
    assert re.search(r"^USER 10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.count("HEALTHCHECK") == 2


def test_the_package_has_every_file_that_the_code_reads() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = [pattern.strip() for pattern in config["options.package_data"]["*"].split(",")]
    beside = {".py", ".mako"}  # the last one is for writing migrations
    for folder in ("services", "shared", "migrations"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in beside and path.parent.name != "__pycache__":
                assert any(fnmatch(path.name, pattern) for pattern in patterns), path
                assert (path.parent / "__init__.py").exists(), (
                    f"{path.parent} is no package, so {path.name} stays behind"
                )


@pytest.mark.parametrize("name", SETTINGS)
def test_compose_gives_each_service_its_settings(name: str) -> None:
    service = COMPOSE["services"][name]
    given = set(service["environment"])
    known = {setting.upper() for kind in SETTINGS.values() for setting in kind.model_fields}
    assert given - known == set()
    assert {setting.upper() for setting in SETTINGS[name](_env_file=None).needed()} - given == set()
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "env_file" not in service


def test_the_gateway_holds_none_of_auths_secrets() -> None:
    gateway = COMPOSE["services"]["gateway"]
    assert OF_AUTH & set(gateway["environment"]) == set()
    assert not any("secrets/keys" in volume for volume in gateway["volumes"])
    assert "MLPA_VIRTUAL_KEY" not in COMPOSE["services"]["auth"]["environment"]


def test_mounts_and_dependencies_exist() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        for other in service.get("depends_on", ()):
            assert other in services, name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./") and "secrets" not in source:
                assert (ROOT / source).exists(), source
            elif not source.startswith("."):
                assert source in COMPOSE["volumes"], source


def test_every_image_has_a_version() -> None:
    images = [service["image"] for service in COMPOSE["services"].values() if "image" in service]
    images += re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) > 5
    assert all(re.search(r":.*\d", image) and not image.endswith(":latest") for image in images)


def test_only_the_door_is_published_beyond_this_machine() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    beyond = {port for port in published if not port.startswith("127.0.0.1:")}
    assert beyond == {"${PUBLISH:-127.0.0.1}:8080:8080"}
    assert COMPOSE["services"]["door"]["ports"] == list(beyond)
    assert COMPOSE["services"]["auth"]["environment"]["ADMIN_PORT"]
    assert "ports" not in COMPOSE["services"]["auth"]


def test_the_door_fills_in_every_variable_of_its_configuration() -> None:
    door = COMPOSE["services"]["door"]
    template = (ROOT / "deploy" / "nginx" / "mlpa.conf.template").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == door["environment"].keys()
    for name in ("AUTH", "GATEWAY"):
        host, _, port = door["environment"][name].partition(":")
        assert host in door["depends_on"]
        assert int(port) == SETTINGS[host].model_fields["auth_port" if host == "auth" else "port"].default


def test_each_container_has_a_role_and_a_redis_user_of_its_own() -> None:
    environments = {name: service.get("environment", {}) for name, service in COMPOSE["services"].items()}
    roles, users = (
        {
            name: re.sub(r".*://(\w+):.*", r"\1", given[variable])
            for name, given in environments.items()
            if variable in given
        }
        for variable in ("DATABASE_URL", "REDIS_URL")
    )
    services = {"auth": "mlpa_auth", "gateway": "mlpa_gateway", "migrate": "mlpa_owner", "litellm": "litellm"}
    assert roles == {
        **services,
        "prune": "mlpa_owner",
        **dict.fromkeys(("ledger-reconcile", "device-receipts"), "mlpa_auth"),
    }
    assert users == {"auth": "mlpa_auth", "gateway": "mlpa_gateway", "ledger-reconcile": "mlpa_auth"}
    assert environments["litellm"]["REDIS_HOST"] == "litellm-redis"
    # a password is known to the server and to one client of it
    for variable in set(re.findall(r"\$\{(\w+_PASSWORD)", str(COMPOSE))):
        holders = {name for name, service in COMPOSE["services"].items() if variable in str(service)} - set(JOBS)
        assert len(holders - {"postgres", "redis", "litellm-redis"}) <= 1, variable


@pytest.mark.parametrize("name", JOBS)
def test_compose_has_every_job_of_the_cluster_with_what_it_needs(name: str) -> None:
    service, (container,) = COMPOSE["services"][name], pod(plain(), name)["containers"]
    assert service["entrypoint"] == container["command"]
    assert service["environment"].keys() >= {one["name"] for one in container["env"]}
    assert service["environment"].keys() <= {setting.upper() for setting in AuthSettings.model_fields}
    assert (service["profiles"], service["restart"]) == (["jobs"], "no")
    schedule = the(plain(), "CronJob", name)["spec"]["schedule"]
    line = rf"^{re.escape(schedule)} .+ run --rm -T {name}\b"
    assert re.search(line, (ROOT / "README.md").read_text(), re.MULTILINE)


def test_what_makes_the_virtual_key_is_given_the_master_key_and_no_files() -> None:
    service = COMPOSE["services"]["virtual-key"]
    assert "volumes" not in service
    assert service["environment"].keys() == {"LITELLM_API_BASE", "MASTER_KEY"}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]


def test_the_image_reads_no_file_that_somebody_may_have_planted() -> None:
    assert re.search(r"^WORKDIR /$", DOCKERFILE.partition(" AS runtime")[2], re.MULTILINE)
    assert re.search(r"\bMLPA_ENV_FILE= ", DOCKERFILE)
    checks = re.findall(r'CMD \["python", (.+?), "import', DOCKERFILE)
    assert checks == ['"-I", "-c"'] * 2


def test_nothing_is_installed_that_no_lock_names() -> None:
    for line in re.split(r"\n(?=RUN|COPY|FROM)", DOCKERFILE):
        for command in re.findall(r"pip (?:install|wheel)(.*?)(?:&&|$)", line.replace("\\\n", " "), re.DOTALL):
            assert "--no-deps" in command
            assert "-r deploy/requirements/" in command or "--no-index" in command
            assert "--no-build-isolation" in command or "-r " in command or "/dist/*.whl" in command


def test_what_compose_asks_of_the_operator_is_in_the_readme() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    readme = (ROOT / "README.md").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    assert [name for name in sorted(asked) if not re.search(rf"\b{name}\b", readme)] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_containers_are_given_as_long_as_a_drain_takes(name: str) -> None:
    fields = SETTINGS[name].model_fields
    drain = float(fields["drain_delay_seconds"].default) + float(fields["drain_seconds"].default)
    assert float(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) >= drain + 10
