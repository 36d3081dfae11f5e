"""The data folder of ``mlpa up``, and its choice of ports on a machine in use."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from services.cli import up
from services.local.process import ProcessError
from tests.services.cli.test_supervisor import Recorder


def test_secrets_are_made_once_and_are_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    secrets = up._load_secrets(path)
    assert up._load_secrets(path) == secrets
    assert len(set(secrets.values())) == len(secrets)
    assert path.stat().st_mode & 0o077 == 0


def test_a_secret_of_a_newer_version_is_added_to_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"admin_key": "kept"}))
    assert up._load_secrets(path)["admin_key"] == "kept"
    assert set(json.loads(path.read_text())) == set(up._load_secrets(path))


def test_a_taken_port_is_told_and_another_is_used(tmp_path: Path) -> None:
    console = Recorder()
    with socket.socket() as taken:
        taken.bind((up.HOST, 0))
        taken.listen()
        base = taken.getsockname()[1]
        ports = up._choose_ports(console, base)
    assert ports["gateway"] != base
    assert f"port {base} is taken, uses {ports['gateway']}" in console.text
    assert len(set(ports.values())) == len(up.PORTS)


def test_a_second_run_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with up._locked(tmp_path), pytest.raises(ProcessError, match="another `mlpa up` runs on"), up._locked(tmp_path):
        pass
    with up._locked(tmp_path):
        pass


def test_a_folder_that_can_not_be_used_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(ProcessError, match=r"--data DIR$"), up._locked(data):
            pass


def test_no_secret_is_in_the_representation_of_a_running_system(tmp_path: Path) -> None:
    system = up.LocalSystem(Recorder(), tmp_path, port_base=None)
    for secret in up._load_secrets(tmp_path / "secrets.json").values():
        assert secret not in repr(system.running)
