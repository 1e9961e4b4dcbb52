"""Fixtures of several test files."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from command import run

__all__ = ["run"]


@pytest.fixture(scope="session")
def short_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model with two of its eight layers; nobody may change the file."""
    from synthetic import write_first_layers  # it imports gguf, and tests want to see q4hifi do without

    return write_first_layers(tmp_path_factory.mktemp("short") / "model.gguf")


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let as many threads be used as are asked for, up to eight."""
    monkeypatch.setattr("q4hifi.threads.usable_cores", lambda: 8)


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heeded() -> Iterator[None]:
    """Also where pytest was started in the background or by nohup, and inherits that they are not."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
