"""The shipped configuration of LiteLLM keeps its promises to the gateways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.deploy.declarations import ROOT


def _names(value: Any) -> Iterator[str]:
    """The names of all members, at any depth."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _names(item)


def test_no_other_model_answers_than_the_one_whose_price_is_reserved() -> None:
    names = set(_names(yaml.safe_load((ROOT / "deploy" / "litellm_config.yaml").read_text())))
    assert "model_list" in names
    assert not [name for name in names if "fallback" in name]
