"""services/PROTOCOL.md agrees with the code: each of its tables is compared with the declarations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from services.auth import app as auth
from services.auth.errors import AuthError
from services.cli.commands import cli
from services.gateway import app as gateway
from services.gateway.errors import envelope
from shared.domain import service_types
from shared.domain.identity import Credential
from shared.domain.tokens import AUDIENCE, GRANT_TYPE
from shared.errors import ServiceError
from shared.service import ops
from shared.telemetry.openapi import Operation
from tests.deploy.declarations import ROOT

TEXT = (ROOT / "services" / "PROTOCOL.md").read_text()
README = (ROOT / "README.md").read_text()
METRICS = (ROOT / "deploy" / "METRICS.md").read_text()


def section(number: int) -> str:
    found = re.search(rf"^## {number} .*?(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[0]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of each row below a table's first line, without backticks."""
    lines = text.partition(f"{heading}\n|---")[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line[1:-1].split("|")])
    assert rows, heading
    return rows


def routes(number: int) -> set[str]:
    """``GET /path`` of every row of a section."""
    return set(re.findall(r"^\| `([A-Z]+ /\S*)` \|", section(number), re.MULTILINE))


def declared(operations: list[Operation]) -> set[str]:
    return {f"{one.method} {one.path}" for one in operations}


def test_it_has_the_routes_of_both_services() -> None:
    probes = declared([*ops.OPERATIONS, ops.METRICS_OPERATION])
    assert {route for route in probes if not route.startswith("GET /api/docs/")} == routes(1)


def test_it_has_the_routes_of_auth() -> None:
    assert declared(list(auth.DESCRIPTION.operations)) == routes(2) | routes(3)


def test_it_has_the_routes_of_the_gateway() -> None:
    assert declared([*gateway.DESCRIPTION.operations, *gateway.DESCRIPTION.internal]) == routes(4)


def test_it_has_the_routes_of_user_management() -> None:
    assert declared([one for one in auth.DESCRIPTION.internal if one.listed]) == routes(7)


def errors(service: str) -> Iterator[type[ServiceError]]:
    """Every class of error that a service can answer."""
    pending: list[type[ServiceError]] = [ServiceError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if kind is not AuthError and kind.__module__.startswith(("shared.", f"services.{service}.")):
            yield kind


def test_it_has_the_errors_of_auth() -> None:
    shown = {(int(status), code) for status, code, _ in table(section(3), "| status | `error` | when |")}
    assert shown == {(kind.status, kind.code) for kind in errors("auth")}


def test_it_has_the_errors_of_the_gateway() -> None:
    shown = {
        (int(status), code, mlpa_code)
        for status, code, mlpa_code, _ in table(section(4), "| status | `code` | `mlpa_code` | when |")
    }
    answered = set()
    for kind in errors("gateway"):
        body = envelope(kind.__new__(kind))["error"]
        answered.add((kind.status, body["code"], str(body["mlpa_code"] or "")))
    assert shown == answered


def test_it_has_the_parameters_that_are_forwarded() -> None:
    [[names]] = table(section(4), "| parameters |")
    [chat] = [one for one in gateway.DESCRIPTION.operations if one.path == "/v1/chat/completions"]
    assert chat.body is not None
    assert names.split() == [name for name in names.split() if name in chat.body.schema["properties"]]
    assert set(names.split()) == set(chat.body.schema["properties"])


def test_it_has_the_words_of_the_exchange() -> None:
    shown: dict[str, str] = dict(table(section(3), "| parameter | value |"))
    assert shown["grant_type"] == GRANT_TYPE
    credentials = table(section(3), "| credential | `subject_token_type` | `subject_token` |")
    assert [kind for _, kind, _ in credentials] == [kind.subject_token_type for kind in Credential]
    assert AUDIENCE in shown["audience"]


def test_it_has_every_field_of_a_row(tmp_path: Path) -> None:
    example = TEXT.partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "service_types.toml"
    path.write_text(example)
    loaded = service_types.load(path, debug=False)
    rows: list[Any] = [*loaded.by_name.values(), *loaded.models.values()]
    parts = re.split(r"^\[\[\w+\]\]", example, flags=re.MULTILINE)[1:]
    for row, part in zip(rows, parts, strict=True):
        known = {name.removesuffix("_nano").removesuffix("_seconds") for name in row.__struct_fields__}
        known -= {"reserved_models", "pool_members"}  # what follows from the other rows
        assert known == set(re.findall(r"^(\w+) = ", part, re.MULTILINE))


def test_there_is_every_metric_that_the_queries_ask_for() -> None:
    queries = README.partition("## Prometheus queries")[2].partition("```\n")[2].partition("```")[0]
    asked = {re.sub(r"_(sum|count)$", "", name) for name in re.findall(r"\b(\w+)(?=[\[{])", queries)}
    assert len(queries.strip().splitlines()) == 17
    assert asked
    assert asked <= {row[0] for row in table(METRICS, "| name | type | labels | of | what |")}


def commands(command: click.Command, name: str) -> Iterator[tuple[str, set[str]]]:
    """The name and the long options of a command and of its subcommands; of ``--on/--off``, the longer one."""
    given = [option.opts + option.secondary_opts for option in command.params if isinstance(option, click.Option)]
    options = {max(names, key=len) for names in given}
    if not isinstance(command, click.Group) or (options and name != "mlpa"):
        yield name, options
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):  # some are imported when they are asked for
            if member := command.get_command(context, inner):
                yield from commands(member, f"{name} {inner}")


def test_it_has_every_command_with_its_options() -> None:
    shown = {
        name: {option for option in options.split(", ") if option}
        for name, options, _ in table(section(8), "| command | options | does |")
    }
    assert shown == dict(commands(cli, "mlpa"))
