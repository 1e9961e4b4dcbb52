"""Fixtures of several test files."""

from command import run

__all__ = ["run"]
