"""Output files: where they may go, and what is left of runs that end early."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from q4hifi.errors import BadOptionError, Q4HifiError
from q4hifi.files.output_file import NewFile, check_destination, new_file
from synthetic import names_in

posix = pytest.mark.skipif(os.name != "posix", reason="links and devices of POSIX")


@pytest.fixture(params=["unnamed", "named"], autouse=True)
def temporary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both kinds of temporary files; a system without unnamed ones has the other only."""
    if request.param == "named":
        monkeypatch.setattr(NewFile, "_unnamed", lambda _: None)
    yield request.param


def write(path: Path, data: bytes = b"new", *, overwrite: bool = False) -> None:
    with new_file(path, overwrite=overwrite) as file:
        file.write(data)


def test_a_file_appears_when_it_is_complete(tmp_path: Path, temporary: str) -> None:
    with new_file(tmp_path / "a") as file:
        file.write(b"x" * 100_000)
        assert "a" not in names_in(tmp_path)
        parts = names_in(tmp_path)
        assert len(parts) == (1 if temporary == "named" else 0)
        assert all(name.startswith(".a.q4hifi-") and name.endswith(".part") for name in parts)
    assert names_in(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, BadOptionError])
def test_an_interrupted_file_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"precious")
    for name in ("a", "old"):
        with pytest.raises(error), new_file(tmp_path / name, overwrite=True) as file:
            file.write(b"half")
            raise error
    assert names_in(tmp_path) == {"old"}
    assert (tmp_path / "old").read_bytes() == b"precious"


def test_overwriting_must_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(BadOptionError, match="exists already"):
        write(tmp_path / "a")
    write(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names_in(tmp_path) == {"a"}


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="exists already"), new_file(tmp_path / "a") as file:
        file.write(b"new")
        (tmp_path / "a").write_bytes(b"precious")
    assert (tmp_path / "a").read_bytes() == b"precious"
    assert names_in(tmp_path) == {"a"}


def test_of_two_runs_the_first_to_end_wins_unless_overwriting(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="exists already"), new_file(tmp_path / "a") as first:
        first.write(b"first")
        write(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"second"
    with new_file(tmp_path / "a", overwrite=True) as first:
        first.write(b"first")
        write(tmp_path / "a", b"third", overwrite=True)
        assert (tmp_path / "a").read_bytes() == b"third"
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names_in(tmp_path) == {"a"}


# ---- links and special files ---------------------------------------------------------------------


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(there: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "disk" / "real")
    if there:
        (tmp_path / "disk" / "real").write_bytes(b"old")
        with pytest.raises(BadOptionError, match="one: exists already"):
            write(tmp_path / "one")
    write(tmp_path / "one", overwrite=there)
    assert os.readlink(tmp_path / "one") == "two" and (tmp_path / "two").is_symlink()
    assert (tmp_path / "disk" / "real").read_bytes() == b"new"
    assert names_in(tmp_path / "disk") == {"real"}


@posix
@pytest.mark.parametrize("folder", ["folder", "link"])
def test_a_relative_path_through_a_linked_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    write(Path(folder, "sub", "..", "a"))
    assert (tmp_path / "folder" / "a").read_bytes() == b"new"


@posix
def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BadOptionError, match="circle"):
        write(tmp_path / "a", overwrite=True)
    assert names_in(tmp_path) == {"a", "b"}


@posix
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_what_is_no_place_for_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    path = tmp_path / name if name == "link" else Path(name)
    before = names_in(Path("/dev"))
    with pytest.raises(BadOptionError, match="cannot be streamed"):
        write(path, overwrite=True)
    assert names_in(Path("/dev")) == before


def test_the_name_of_a_folder_is_not_that_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadOptionError, match="is the name of a folder; add that of the file"):
        check_destination(f"{tmp_path / 'new'}/")


@posix
def test_pipes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(BadOptionError, match="exists and is not a file"):
            write(tmp_path / name, overwrite=True)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink", "dots"])
def test_a_source_is_refused_under_every_name(link: str, tmp_path: Path) -> None:
    source, dst = tmp_path / "source", tmp_path / "dst"
    source.write_bytes(b"precious")
    if link == "symlink":
        dst.symlink_to(source)
    elif link == "hardlink":
        dst.hardlink_to(source)
    else:
        (tmp_path / "folder").mkdir()
        dst = source if link == "same" else tmp_path / "folder" / ".." / "source"
    with pytest.raises(BadOptionError, match=r"is the source .* itself; choose another destination"):
        check_destination(dst, True, [tmp_path / "not there", source])


def test_a_hard_link_to_another_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"precious")
    (tmp_path / "a").hardlink_to(tmp_path / "other")
    write(tmp_path / "a", overwrite=True)
    assert (tmp_path / "other").read_bytes() == b"precious"


@posix
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o604)
    write(tmp_path / "a", overwrite=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o604


# ---- accidents -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "n" * 256])
def test_long_names(name: str, tmp_path: Path) -> None:
    if len(name) > 255:
        with pytest.raises(BadOptionError, match=r"[Ff]ile name too long"):
            write(tmp_path / name)
    else:
        write(tmp_path / name)
        assert names_in(tmp_path) == {name}


@posix
def test_the_folder_may_vanish_meanwhile(tmp_path: Path, temporary: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        pytest.raises(Q4HifiError, match=f"{folder} was removed meanwhile") as caught,
        new_file(folder / "a"),
    ):
        shutil.rmtree(folder)
    assert not isinstance(caught.value, BadOptionError)  # the command's exit status is 1


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be removed on Windows")
def test_what_killed_runs_left_is_removed_and_what_lives_is_not(tmp_path: Path, temporary: str) -> None:
    if temporary == "unnamed":
        pytest.skip("they leave nothing")
    abandoned = tmp_path / ".a.q4hifi-0123abcd.part"
    abandoned.write_bytes(b"half")
    others = [".b.q4hifi-0123abcd.part", ".a.q4hifi-0123abcd", ".a.0123abcd.part", "a.part"]
    for name in others:
        (tmp_path / name).write_bytes(b"somebody's")
    with new_file(tmp_path / "a") as file:
        assert not abandoned.exists()
        (alive,) = names_in(tmp_path) - set(others)
        write(tmp_path / "a", b"second")
        assert (tmp_path / alive).exists()
        file.write(b"first")
        (tmp_path / "a").unlink()
    assert names_in(tmp_path) == {"a", *others}


KILLED = """
import os, signal, sys
from q4hifi.files.output_file import NewFile, new_file
if sys.argv[2] == "named":
    NewFile._unnamed = lambda _: None
with new_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_a_killed_run_leaves_nothing_for_the_next(tmp_path: Path, temporary: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a"), temporary], check=False)
    assert len(names_in(tmp_path)) == (1 if temporary == "named" else 0)
    write(tmp_path / "a")
    assert names_in(tmp_path) == {"a"}


@pytest.mark.parametrize("call", ["open", "link", "replace", "unlink", "fsync", "fchmod"])
@pytest.mark.parametrize("there", [True, False])
def test_whatever_fails_is_a_message_and_leaves_the_old_file(
    call: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call after the other fails, as on a file system that became read-only."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    if there:
        (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, call, fail)
    try:
        write(tmp_path / "a", overwrite=True)
    except Q4HifiError as error:
        assert "a: cannot be written: Read-only file system" in str(error)
        assert names_in(tmp_path) - {"a"} == set() or call == "unlink"
        assert not there or (tmp_path / "a").read_bytes() == b"old"
    else:
        assert (tmp_path / "a").read_bytes() == b"new"
