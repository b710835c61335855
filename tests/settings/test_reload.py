"""A change is noticed once the file is at rest, however it came about."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.settings.reload import Watch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.yaml"
    path.write_text("one")
    return path


def watching(*files: Path) -> Watch:
    """A watch that has looked at the files as they are."""
    watch = Watch(map(str, files))
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, False]
    return watch


def test_the_first_look_at_rest_is_a_change(file: Path) -> None:
    """Between the reading of the file and the first look it may have been another."""
    watching(file)


def test_what_rests_is_no_change(file: Path) -> None:
    watch = watching(file)
    assert not any(watch.changed() for _ in range(10))


def test_a_file_that_is_still_written_is_left_alone(file: Path) -> None:
    watch = watching(file)
    for text in ("1", "12", "123"):
        file.write_text(text)
        assert not watch.changed()
    assert [watch.changed(), watch.changed()] == [True, False]


def test_a_file_of_the_same_size_and_time(file: Path) -> None:
    watch, before = watching(file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_file_that_is_renamed_into_place(file: Path) -> None:
    watch = watching(file)
    aside = file.with_name("aside")
    aside.write_text("two")
    aside.replace(file)
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_link_that_is_swapped(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: proxy.yaml -> ..data/proxy.yaml, ..data -> a folder of its own for each."""
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "proxy.yaml").write_text("text")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "proxy.yaml").symlink_to("..data/proxy.yaml")
    watch = watching(tmp_path / "proxy.yaml")
    (tmp_path / "..new").symlink_to("2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_file_that_goes_and_comes_back(file: Path) -> None:
    watch = watching(file)
    file.unlink()
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, False]
    file.write_text("one")
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, False]


def test_each_of_several_files_counts(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    watch = watching(file, secret)
    secret.write_text("sk-1")
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, False]


def test_a_pipe_is_the_same_though_it_is_used(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    watch = watching(pipe)
    os.utime(pipe)
    assert not any(watch.changed() for _ in range(3))


def test_a_name_that_is_no_files() -> None:
    watching(Path("a\0b"))


def test_no_file_at_all() -> None:
    watching()
