"""Fixtures of several test files."""

import signal
from collections.abc import Iterator

import pytest

from command import run

__all__ = ["run"]


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let as many threads be used as are asked for, up to eight."""
    monkeypatch.setattr("q4hifi.threads.usable_cores", lambda: 8)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heeded() -> Iterator[None]:
    """Also where pytest was started in the background, as by nohup, and inherits that it is not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
