"""Before a start it is said what Redis lacks, or doesn't let its user do."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

import pytest

from services.gateway.budget import scripts
from services.local.valkey import ValkeyServer
from shared.service.health import CheckFailed
from shared.state import decisions, rights
from shared.state.script import Script
from shared.stores.redis import connect
from tests.deploy.test_roles import acl_lines
from tests.support.valkey_cluster import ValkeyCluster

SCRIPTS = {"auth": decisions.SCRIPTS, "gateway": scripts.SCRIPTS}


async def fault(url: str, of: Collection[Script]) -> str:
    client = connect(url)
    try:
        await rights.check(client, of)
    except CheckFailed as failure:
        return str(failure)
    finally:
        await client.aclose()
    return ""


def set_user(server: ValkeyServer, service: str, changes: str = "") -> None:
    """Make the user of a service, with the documented rights and changes to them; its password is "secret"."""
    with server.client() as admin:
        for line in acl_lines()[1:]:
            _, user, given = line.split(maxsplit=2)
            if user == f"mlpa_{service}":
                given = " ".join(one for one in given.split() if not one.startswith("#"))
                admin.execute_command("ACL", "SETUSER", user, *f"reset {given} >secret {changes}".split())


@pytest.mark.parametrize(
    ("service", "changes", "words"),
    [
        ("auth", "", ""),
        ("gateway", "", ""),
        ("auth", "-hkeys", "the user has no right to: HKEYS mlpa:{s00}:u:"),
        ("gateway", "-zcard -hscan", "the user has no right to: HSCAN mlpa:{s00}:u:, ZCARD mlpa:{s00}:u:"),
        (
            "gateway",
            "resetkeys ~mlpa:{s??}:[itwujd]:* ~mlpa:{s??}:[cflt]*s",
            "the user has no right to: EXISTS mlpa:{s00}:claim, EXISTS mlpa:{s00}:forgotten, "
            "EXISTS mlpa:{s00}:outbox, EXISTS mlpa:{s00}:sums",
        ),
        ("gateway", "-evalsha", "no permissions to run the 'evalsha'"),
        ("auth", "-script|load", "no permissions to run the 'script|load'"),
    ],
)
async def test_a_right_that_is_missing_is_named(
    valkey_server: ValkeyServer, service: str, changes: str, words: str
) -> None:
    set_user(valkey_server, service, changes)
    told = await fault(valkey_server.url.replace("//", f"//mlpa_{service}:secret@"), SCRIPTS[service])
    assert words in told
    assert bool(told) == bool(words)


async def test_users_with_the_documented_rights_have_them_in_a_cluster_too(tmp_path: Path) -> None:
    with ValkeyCluster(tmp_path) as cluster:
        for service, used in SCRIPTS.items():
            for node in cluster.nodes:
                set_user(node, service)
            assert await fault(cluster.url.replace("//", f"//mlpa_{service}:secret@"), used) == ""


async def test_a_server_whose_scripts_lack_a_library_is_told_so(valkey_server: ValkeyServer) -> None:
    async def another_name(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, commands = await asyncio.open_connection("127.0.0.1", valkey_server.port)

        async def back() -> None:
            while data := await answers.read(65_536):
                writer.write(data)

        backwards = asyncio.create_task(back())
        while data := await reader.read(65_536):
            commands.write(data.replace(b"cmsgpack", b"cmsgunav"))
        commands.close()
        await backwards
        writer.close()

    async with await asyncio.start_server(another_name, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        told = await fault(f"redis://127.0.0.1:{port}", scripts.SCRIPTS)
    assert told.startswith("the server runs no scripts: ")
    assert "nonexistent global variable 'cmsgunav'" in told
