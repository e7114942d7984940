"""A file or folder is there whole or not at all."""

import subprocess
import sys

import pytest

from unigrpo.files import new_folder, replacing, sha256_of, write_atomically


class FullDiskError(OSError):
    pass


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    write_atomically(tmp_path / "a.txt", "one")
    write_atomically(tmp_path / "a.txt", "two")
    write_atomically(tmp_path / "b.bin", b"\xff\x00")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]
    assert (tmp_path / "a.txt").read_text() == "two"
    assert (tmp_path / "b.bin").read_bytes() == b"\xff\x00"


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path):
    write_atomically(tmp_path / "a.txt", "\ud800 é\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\\ud800 \xc3\xa9\n"


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FullDiskError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("ne")
        raise FullDiskError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_atomically(tmp_path / "whole", "x")
    with new_folder(tmp_path / "folder") as folder:
        pass
    (tmp_path / "plain folder").mkdir()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain folder").stat().st_mode
    assert not folder.exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("x")
        assert not out.exists()
    assert (out / "sub" / "a.txt").read_text() == "x"
    with pytest.raises(FullDiskError), new_folder(tmp_path / "other") as folder:
        (folder / "a.txt").write_text("x")
        raise FullDiskError
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    with pytest.raises(OSError, match="out"), new_folder(out) as folder:
        (folder / "b.txt").write_text("x")
    assert [path.name for path in out.iterdir()] == ["sub"]


def test_the_hash_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_writing_a_file_loads_neither_torch_nor_numpy():
    code = "import sys, unigrpo.files; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
