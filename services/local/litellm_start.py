"""Start LiteLLM's proxy as its command ``litellm`` does, in less time. Runs inside LiteLLM's own environment.

Most of the start is spent on importing modules that build large, long-lived objects, which the garbage collector would
walk again and again. So it is off until the imports are over, and skips their objects afterwards.
"""

from __future__ import annotations

import gc
import sys

gc.disable()

# Not found, since it is in a venv of its own. The server's module takes most of the time.
import litellm.proxy.proxy_server  # type: ignore[import-not-found]  # noqa: E402, F401
from litellm import run_server  # noqa: E402

gc.freeze()
gc.enable()
sys.exit(run_server())
