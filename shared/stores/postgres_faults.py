"""The meaning of an error of PostgreSQL or its driver: the server's state, or a fault in MLPA's statement.

Errors are told apart by SQLSTATE (PostgreSQL's manual, appendix A), since psycopg2's classes mix the two: a read-only
server is an ``InternalError``, a missing right a ``ProgrammingError``.
"""

from __future__ import annotations

import psycopg2
from psycopg2 import errorcodes

LOCK_NOT_AVAILABLE = errorcodes.LOCK_NOT_AVAILABLE
#: The driver's own words for a connection that could not be made or was lost.
CONNECTION_FAULTS = (psycopg2.OperationalError, psycopg2.InterfaceError, AssertionError, OSError, TimeoutError)

#: Classes of SQLSTATE that describe the server, whatever the statement.
_SERVER_CLASSES = (
    "08",  # connection exception
    "28",  # invalid authorization
    "3D",  # unknown database
    "3F",  # unknown schema
    "40",  # transaction rollback: deadlock, serialization
    "53",  # insufficient resources: disk, memory, connections
    "55",  # object not in prerequisite state: locked, in use
    "57",  # operator intervention: shutdown, starting up, cancelled
    "58",  # system error
    "72",  # snapshot too old
    "F0",  # configuration file error
    "XX",  # internal error, corrupted data
)
#: States of a database that ``mlpa migrate`` has not brought to the code's schema.
MISSING_SCHEMA = (
    errorcodes.UNDEFINED_TABLE,
    errorcodes.UNDEFINED_COLUMN,
    errorcodes.UNDEFINED_FUNCTION,
    errorcodes.UNDEFINED_OBJECT,
)
_SERVER_STATES = (
    errorcodes.READ_ONLY_SQL_TRANSACTION,  # a standby, a demoted primary, a disk that is full
    errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    errorcodes.INSUFFICIENT_PRIVILEGE,
    *MISSING_SCHEMA,
    errorcodes.INVALID_COLUMN_REFERENCE,  # ON CONFLICT without its index
    errorcodes.INVALID_SQL_STATEMENT_NAME,  # a pooler gave the connection to somebody else
)
#: States in which another server, or the same one over a new connection, may do what this one refuses.
_ELSEWHERE = (errorcodes.READ_ONLY_SQL_TRANSACTION, *("57P01", "57P02", "57P03"))


def is_unavailability(error: BaseException) -> bool:
    """Whether the server or the connection is at fault; otherwise the statement is."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        return error.pgcode[:2] in _SERVER_CLASSES or error.pgcode in _SERVER_STATES
    return isinstance(error, CONNECTION_FAULTS)


def wants_new_connection(error: BaseException) -> bool:
    """Whether connections to this server have become useless. A slow answer does not show that."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        return error.pgcode in _ELSEWHERE
    return isinstance(error, CONNECTION_FAULTS) and not isinstance(error, TimeoutError)


def reason(error: BaseException) -> str:
    """One line for the log. Of a statement only its SQLSTATE: the server's words may quote values."""
    if isinstance(error, psycopg2.Error) and error.pgcode:
        try:
            name = errorcodes.lookup(error.pgcode).lower()
        except KeyError:
            name = "error"
        return f"{name} (SQLSTATE {error.pgcode})"
    if isinstance(error, psycopg2.Error):
        return " ".join((str(error).strip() or "the connection was lost").splitlines()[0].split())
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection was lost"
