"""Copied into a rendered project in the place of its science."""

from .task import Task

__all__ = ["Task"]
