"""Whether Redis can run scripts, and the user may do what they do."""

from __future__ import annotations

from collections.abc import Collection

from redis.exceptions import ResponseError

from shared.service.health import CheckFailed
from shared.state.layout import SHARD_KEYS
from shared.state.script import Script
from shared.stores.redis import Client

_RIGHTS = Script("rights")


async def check(client: Client, scripts: Collection[Script]) -> None:
    """Run a script that asks for the rights of others. It needs all that these need of the server.

    :raises CheckFailed: the server runs no such script, or the user lacks the right to a command or a key.
    :raises RedisError: the server could not be asked.
    """
    shard = SHARD_KEYS[0]
    wanted = {(command, "") for script in scripts for command in script.commands}
    for place in {getattr(shard, name) for script in scripts for name in script.keys}:
        wanted.add(("EXISTS", place if isinstance(place, str) else place("")))
    each = [_RIGHTS.item(command=command, key=key) for command, key in sorted(wanted)]
    call = _RIGHTS.call(user=shard.user(""), each=each)
    try:
        sha = await client.script_load(call.script.source)
        missing = await client.evalsha(sha, len(call.keys), *call.keys, *call.argv(""))
    except ResponseError as error:
        raise CheckFailed(f"the server runs no scripts: {error}") from error
    if missing:
        raise CheckFailed(f"the user has no right to: {', '.join(one.decode() for one in missing)}")
