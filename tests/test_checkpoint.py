"""Checkpoints are whole or absent."""

import json

import pytest

from unigrpo.runs.checkpoint import latest_checkpoint, save_checkpoint


def save(run_dir, step, keep=3):
    return save_checkpoint(
        run_dir, step, {"wall_s": 1.5}, lambda folder: (folder / "weights.bin").write_bytes(b"w" * step), keep
    )


def test_the_newest_checkpoint_comes_back_with_its_state(tmp_path):
    save(tmp_path, 2)
    save(tmp_path, 10)
    found = latest_checkpoint(tmp_path)
    assert found.step == 10
    assert (found.state.wall_s, found.state.step) == (1.5, 10)
    assert (found.folder / "weights.bin").read_bytes() == b"w" * 10


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000003", "step_000004"]


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest"])
def test_a_damaged_one_is_passed_over(tmp_path, damage, caplog):
    save(tmp_path, 1)
    folder = save(tmp_path, 2).folder
    if damage == "cut":
        (folder / "weights.bin").write_bytes(b"w")
    elif damage == "flip":
        (folder / "weights.bin").write_bytes(b"wx")
    elif damage == "remove":
        (folder / "weights.bin").unlink()
    else:
        (folder / "manifest.json").write_text("{")
    assert latest_checkpoint(tmp_path).step == 1
    assert "damaged" in caplog.text


def test_a_save_that_fails_leaves_the_older_one_and_its_leftovers_go_with_the_next(tmp_path):
    save(tmp_path, 1)

    def full_disk(folder):
        (folder / "half").write_text("x")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 2, {}, full_disk, 3)
    assert latest_checkpoint(tmp_path).step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000001", "step_000003"]


def test_the_manifest_names_every_file(tmp_path):
    folder = save(tmp_path, 5).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest) == {"weights.bin", "state.json"}
