"""The folder of signing keys: which one signs, what is refused, and how it changes under a running process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey

from services.auth.tokens.keys import KeyFault, KeyRing, activation, create_key, ensure_key, load_key, prunable
from services.cli.keys import keys as keys_command

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def test_the_newest_key_past_its_activation_signs_and_all_are_published(tmp_path: Path) -> None:
    clock = Clock()
    create_key(tmp_path, activate_at=NOW - 100)
    ring = KeyRing(tmp_path, clock=clock)
    first = ring.signing_key().kid
    create_key(tmp_path, activate_at=NOW + 3600)
    ring.refresh()
    assert ring.signing_key().kid == first
    published = [key["kid"] for key in ring.jwks()["keys"]]
    assert len(published) == 2
    clock.now += 3600
    assert ring.signing_key().kid == next(kid for kid in published if kid != first)


def test_a_kid_is_the_rfc_7638_thumbprint(tmp_path: Path) -> None:
    key = load_key(create_key(tmp_path, activate_at=NOW))
    assert ECKey.import_key(key.public).thumbprint() == key.kid


def test_the_first_key_of_a_deployment_signs_ahead_of_its_time(tmp_path: Path) -> None:
    create_key(tmp_path, activate_at=NOW + 3600)
    assert KeyRing(tmp_path, clock=Clock()).signing_key()


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o404, 0o442])
def test_a_key_that_others_can_open_is_refused_by_name(tmp_path: Path, mode: int) -> None:
    path = create_key(tmp_path, activate_at=NOW)
    path.chmod(mode)
    with pytest.raises(KeyFault, match=path.name):
        KeyRing(tmp_path)


def test_a_mounted_secret_with_symlinks_and_0440_is_fine(tmp_path: Path) -> None:
    data = tmp_path / "..data"
    data.mkdir()
    path = create_key(data, activate_at=NOW)
    path.chmod(0o440)
    (tmp_path / path.name).symlink_to(path)
    assert len(KeyRing(tmp_path).keys) == 1


def write(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o400)


def test_only_p256_private_keys_start_a_process(tmp_path: Path) -> None:
    for name, make in {
        "rsa.pem": lambda path: write(path, rsa.generate_private_key(65537, 2048)),
        "p384.pem": lambda path: write(path, ec.generate_private_key(ec.SECP384R1())),
        "junk.pem": lambda path: (path.write_bytes(b"junk"), path.chmod(0o400)),
    }.items():
        folder = tmp_path / name.removesuffix(".pem")
        folder.mkdir()
        make(folder / name)
        with pytest.raises(KeyFault, match=name):
            KeyRing(folder)
    with pytest.raises(KeyFault, match="there is no key"):
        (tmp_path / "empty").mkdir()
        KeyRing(tmp_path / "empty")
    with pytest.raises(KeyFault, match="No such file"):
        KeyRing(tmp_path / "missing")


def test_a_running_process_survives_whatever_happens_to_the_folder(tmp_path: Path) -> None:
    good = create_key(tmp_path, activate_at=NOW - 100)
    ring = KeyRing(tmp_path)
    kid = ring.signing_key().kid
    (tmp_path / "bad.pem").write_bytes(b"junk")
    ring.refresh()
    assert ring.signing_key().kid == kid
    good.unlink()
    ring.refresh()
    assert ring.signing_key().kid == kid, "an empty folder never replaces a good set"
    (tmp_path / "bad.pem").unlink()
    tmp_path.rmdir()
    ring.refresh()
    assert ring.signing_key().kid == kid


def test_a_key_is_pruned_only_when_no_token_can_carry_it(tmp_path: Path) -> None:
    old = load_key(create_key(tmp_path, activate_at=NOW - 10_000))
    current = load_key(create_key(tmp_path, activate_at=NOW - 400))
    following = load_key(create_key(tmp_path, activate_at=NOW + 3600))
    every = [old, current, following]
    assert prunable(every, now=NOW - 45, token_ttl=300) == []
    assert prunable(every, now=NOW, token_ttl=300) == [old]
    assert prunable(every, now=NOW + 3600 + 300 + 61, token_ttl=300) == [old, current]


def test_ensure_key_makes_one_key_once(tmp_path: Path) -> None:
    ensure_key(tmp_path / "keys")
    ensure_key(tmp_path / "keys")
    assert len(KeyRing(tmp_path / "keys").keys) == 1


def test_the_commands_rotate_list_and_prune(tmp_path: Path) -> None:
    runner = CliRunner()
    folder = str(tmp_path / "keys")

    def run(*arguments: str) -> str:
        result = runner.invoke(keys_command, [*arguments, "--out", folder])
        assert result.exit_code == 0, result.output
        return result.output

    assert "no keys" not in run("rotate")
    first = KeyRing(Path(folder)).signing_key()
    assert first.activation <= time.time(), "the first key signs at once"
    run("rotate")
    shown = run("list").splitlines()
    assert len(shown) == 2
    assert "signs" in shown[0]
    assert "waits" in shown[1]
    later = [path for path in Path(folder).glob("*.pem") if activation(path) > time.time() + 3500]
    assert len(later) == 1
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in Path(folder).glob("*.pem"))
    assert run("prune") == ""
