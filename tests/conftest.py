"""Puts the engine on the path as `engine`, the very files that are rendered; and its log lines where tests see them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "template" / "src" / "{{ package_name }}"
sys.path.insert(0, str(PACKAGE))


@pytest.fixture(autouse=True)
def logger_level_as_before() -> Iterator[None]:
    """Undo `tests.parity.framework.quiet`, which would make the engine's log lines unseen by later tests."""
    logger = logging.getLogger("engine")
    level = logger.level
    logger.setLevel(logging.NOTSET)
    yield
    logger.setLevel(level)
