"""Starts LiteLLM's proxy as its command ``litellm`` does, in less time. Runs inside LiteLLM's own environment.

Most of its start goes into importing modules that build large, long-lived objects, which the garbage collector then
walks again and again. So it is off until the imports are over, and skips their objects afterwards.
"""

from __future__ import annotations

import gc
import sys

gc.disable()

# In a venv of its own, hence not found; the server's module is imported for the time that it takes
import litellm.proxy.proxy_server  # type: ignore[import-not-found]  # noqa: E402, F401
from litellm import run_server  # noqa: E402

gc.freeze()
gc.enable()
sys.exit(run_server())
