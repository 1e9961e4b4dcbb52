"""Threads: never more than cores, 0 is all of them, and the command says when it takes fewer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import q4hifi
from command import Run
from q4hifi import BadOptionError, threads
from q4hifi.threads import thread_count, usable_cores, used_threads
from synthetic import EXAMPLE


def test_never_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    assert [used_threads(n) for n in (None, 0, 1, 3, 4, 5, 1024, 10**9)] == [4, 4, 1, 3, 4, 4, 4, 4]
    assert [thread_count(n) for n in (None, 0, 1, 3, 4, 5)] == [0, 0, 1, 3, 0, 0]
    with pytest.raises(BadOptionError, match="`threads` is -1"):
        used_threads(-1)


def test_the_affinity_of_the_process_counts() -> None:
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from q4hifi.threads import usable_cores
print(usable_cores())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 100000"}, 2),
        ("0::/not/there", {}, None),
        ("4:memory:/x\n1:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "1"
         "00000"}, 4),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_limit_of_a_container_counts(
    groups: str, files: dict[str, str], cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "self").write_text(groups + "\n")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "self")
    threads._container_limit.cache_clear()
    try:
        assert threads._container_limit() == cores
    finally:
        threads._container_limit.cache_clear()


@pytest.mark.parametrize("many", [1024, 10**8])
def test_the_command_says_that_it_takes_fewer(many: int, run: Run, tmp_path: Path) -> None:
    cores = usable_cores()
    note = f"using {cores} thread{'s' * (cores > 1)}: this machine has {cores} core{'s' * (cores > 1)}\n"
    out = tmp_path / "out.gguf"
    by_option = run("quantize", EXAMPLE, out, "Q8_0", "-t", many)
    assert (by_option.status, by_option.err) == (0, note)
    written = out.read_bytes()
    by_position = run("quantize", EXAMPLE, out, "Q8_0", many, "--overwrite")
    assert (by_position.status, by_position.err) == (0, note)
    assert out.read_bytes() == written


@pytest.mark.parametrize("arguments", [["-t", "0"], ["0"], ["-t", "1"], ["1"]])
def test_zero_is_all_cores_and_nothing_is_said_where_all_are_used(
    arguments: list[str], run: Run, tmp_path: Path
) -> None:
    outcome = run("quantize", EXAMPLE, tmp_path / "out.gguf", "Q8_0", *arguments)
    assert (outcome.status, outcome.err) == (0, "")


def test_zero_is_all_cores_in_python() -> None:
    text = list(range(20))
    one, all_, many = (q4hifi.Model(EXAMPLE, threads=n).logits(text) for n in (1, 0, 10**6))
    assert (one == all_).all() and (one == many).all()
    assert len(os.listdir("/proc/self/task")) < 200
    (speed,) = q4hifi.bench(EXAMPLE, n_prompt=4, n_gen=0, repetitions=1, threads=10**6)
    assert speed.n_threads == usable_cores()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """It has none of its parent's threads, so work that was given to them would never end."""
    program = f"""
import os, signal, sys
import numpy as np, q4hifi

weights, tokens = np.ones((64, 4096), np.float32), np.arange(1, 40)
model, other = q4hifi.Model({str(EXAMPLE)!r}, threads=2), q4hifi.LlamaModel({str(EXAMPLE)!r}, n_ctx=64)

def work(n):
    sequence = model.sequence()
    for part in (tokens, tokens[:1]):
        logits = sequence.evaluate(part)
    return q4hifi.quantize(weights, "Q4_K", threads=n).data.tobytes(), logits.tobytes()

expected = work(2)
other.logits(tokens)
child = os.fork()
if child == 0:
    signal.alarm(100)
    right = all(work(n) == expected for n in (1, 2, 0))
    try:
        other.logits(tokens)
    except q4hifi.UnavailableError as error:
        right &= "'spawn'" in str(error)
    del model, other
    os._exit(0 if right else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
