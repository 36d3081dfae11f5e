"""The folder of signing keys: the active key, unusable files, and changes under a running process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc.jwk import ECKey

from services.auth.tokens.key_ring import KeyFault, KeyRing, activation, create_key, ensure_key, load_key, prunable
from services.cli.keys import keys as keys_command
from shared.errors import DependencyUnavailable
from tests.support.clock import Clock

NOW = 1_800_000_000.0


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
    assert ECKey.import_key(dict(key.public)).thumbprint() == key.kid


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


def write(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None) -> None:
    """A key file, or one with junk in it."""
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*plain) if key else b"junk")
    path.chmod(0o400)


def test_only_p256_private_keys_start_a_process(tmp_path: Path) -> None:
    keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None] = {
        "rsa.pem": rsa.generate_private_key(65537, 2048),
        "p384.pem": ec.generate_private_key(ec.SECP384R1()),
        "junk.pem": None,
        "brainpool.pem": ec.generate_private_key(ec.BrainpoolP256R1()),
    }
    for name, key in keys.items():
        folder = tmp_path / name.removesuffix(".pem")
        folder.mkdir()
        write(folder / name, key)
        with pytest.raises(KeyFault, match=name):
            KeyRing(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyFault, match="there is no key"):
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
    good.chmod(0o444)
    ring.refresh()
    assert ring.signing_key().kid == kid, "tokens that it signed are still out there"


def test_a_folder_without_a_key_of_ours_signs_nothing_until_there_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    create_key(folder, activate_at=NOW - 100)
    ring = KeyRing(folder)
    (folder / "bad.pem").write_bytes(b"junk")

    def emptied() -> None:
        for path in folder.glob("*Z.pem"):
            path.unlink()

    def removed() -> None:
        emptied()
        (folder / "bad.pem").unlink()
        folder.rmdir()

    for withdraw in (emptied, removed):
        kid = ring.signing_key().kid
        withdraw()
        ring.refresh()
        for ask in (ring.signing_key, ring.jwks, lambda kid=kid: ring.find(kid)):
            with pytest.raises(DependencyUnavailable):
                ask()
        create_key(folder, activate_at=NOW - 100)
        ring.refresh()
        assert ring.signing_key().kid != kid


def test_a_folder_that_cannot_be_read_for_the_moment_keeps_its_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    create_key(folder, activate_at=NOW - 100)
    ring = KeyRing(folder)
    folder.rename(tmp_path / "elsewhere")
    folder.write_bytes(b"a file")  # as root, a folder without rights can be read
    ring.refresh()
    assert ring.signing_key()


def test_a_link_to_a_key_that_is_gone_is_no_key(tmp_path: Path) -> None:
    hidden = create_key(tmp_path / "..data", activate_at=NOW - 100)
    (tmp_path / "a.pem").symlink_to(hidden)
    create_key(tmp_path / "..data", activate_at=NOW - 50).rename(tmp_path / "b.pem")
    ring = KeyRing(tmp_path)
    assert len(ring.keys) == 2
    hidden.unlink()
    ring.refresh()
    assert [key.path.name for key in ring.keys.values()] == ["b.pem"]


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


def test_a_key_is_kept_for_as_long_as_the_tokens_of_installs_live(tmp_path: Path) -> None:
    replaced = create_key(tmp_path, activate_at=time.time() - 9 * 86400)
    create_key(tmp_path, activate_at=time.time() - 3600)  # the other one signed until an hour ago
    runner, day = CliRunner(), {"PLAY_PACKAGES": "org.mozilla.firefox", "PLAY_CERTIFICATES": "A" * 43}

    def pruned(**settings: str) -> bool:
        environment = {"MLPA_ENV_FILE": "", **settings}
        result = runner.invoke(keys_command, ["prune", "--dry-run", "--out", str(tmp_path)], env=environment)
        assert result.exit_code == 0, result.output
        return str(replaced) in result.output

    assert pruned()
    assert not pruned(**day)
    assert pruned(**day, PLAY_TOKEN_TTL_SECONDS="600")


def test_a_half_written_key_is_read_again_though_its_file_looks_the_same(tmp_path: Path) -> None:
    create_key(tmp_path, activate_at=NOW - 100)
    ring = KeyRing(tmp_path, clock=Clock())
    whole = create_key(tmp_path / "elsewhere", activate_at=NOW - 50).read_bytes()
    path = tmp_path / "new.pem"
    path.write_bytes(whole[:100].ljust(len(whole), b"\n"))
    path.chmod(0o600)
    before = path.stat()
    ring.refresh()
    assert len(ring.keys) == 1
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    ring.refresh()
    assert len(ring.keys) == 2


def test_the_swap_of_a_mounted_secret_is_noticed(tmp_path: Path) -> None:
    """As the kubelet does it: the files are links into a folder that a link names, and that link is replaced."""
    for name in ("..one", "..two"):
        create_key(tmp_path / name, activate_at=NOW - 100).rename(tmp_path / name / "key.pem")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "key.pem").symlink_to("..data/key.pem")
    ring = KeyRing(tmp_path)
    first = ring.signing_key().kid
    (tmp_path / "..data_tmp").symlink_to("..two")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    ring.refresh()
    assert ring.signing_key().kid != first
    assert len(ring.keys) == 1


def test_a_kid_that_another_process_may_know_is_looked_for(tmp_path: Path) -> None:
    create_key(tmp_path, activate_at=NOW - 100)
    ring = KeyRing(tmp_path)
    key = load_key(create_key(tmp_path, activate_at=NOW))
    ring._looked = float("-inf")
    assert ring.find(key.kid) is not None
    assert ring.find("unknown") is None


def test_a_fault_is_reported_once_and_again_after_it_was_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_key(tmp_path, activate_at=NOW - 100)
    ring = KeyRing(tmp_path)
    bad = tmp_path / "bad.pem"
    for _ in range(2):
        bad.write_bytes(b"junk")
        bad.chmod(0o400)
        for _ in range(3):
            ring.refresh()
        assert capsys.readouterr().out.count("bad.pem") == 1
        bad.unlink()
        ring.refresh()
