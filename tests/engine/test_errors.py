"""The words that errors share."""

from __future__ import annotations

import importlib.util

import pytest
from engine.errors import MissingExtraError, require


@pytest.mark.parametrize(("pip", "command"), [(object(), "`pip install"), (None, "`uv pip install")])
def test_a_missing_extra_names_a_command_that_the_environment_has(
    pip: object, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pip)
    with pytest.raises(MissingExtraError) as raised:
        require("no_such_module", "some", "`Nobody`")
    assert f"{command} -e '.[some]'`" in str(raised.value)
