"""The base of every callback, under the path where it is looked for; it is defined with the hooks."""

from __future__ import annotations

from ..hooks import Callback as Callback
