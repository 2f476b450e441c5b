"""Rendered projects for the validators, by the fixtures of the rendering tests."""

from __future__ import annotations

from template.conftest import render, template

__all__ = ["render", "template"]
