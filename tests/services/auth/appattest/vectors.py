"""Real objects of Apple's devices, which are not part of this repository: where they are found.

APP_ATTEST_VECTORS names the folder; the default lies beside the repository. Tests that need them are skipped
where there are none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_BESIDE = Path(__file__).parents[4].parent / "shared" / "vectors"

FILES = sorted(Path(os.environ.get("APP_ATTEST_VECTORS", _BESIDE)).glob("real_*.json"))


def load() -> list[dict[str, Any]]:
    """All vectors, each laid over its file's defaults."""
    documents = [json.loads(file.read_text()) for file in FILES]
    return [{**document["defaults"], **vector} for document in documents for vector in document["vectors"]]
