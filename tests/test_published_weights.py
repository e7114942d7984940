"""Published weights: hashes are checked, pickled code never runs, and conversion happens once."""

import hashlib
import os

import huggingface_hub.constants
import pytest
import torch
from clip_specimens import hub_snapshot
from safetensors.torch import load_file, save_file

from unigrpo.files import sha256_of
from unigrpo.rewards.vision import published_weights
from unigrpo.rewards.vision.published_weights import (
    PUBLISHED,
    PublishedFile,
    WeightsError,
    cache_folder,
    open_published,
)

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1], dtype=torch.int64)}


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def saved(path, content=STATE, **options):
    torch.save(content, path, **options)
    return path


def record_of(converted):
    return converted.with_name(f"{converted.name}.sha256")


class RunsCode:
    """Would make a folder if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_tensors_become_safetensors(tmp_path, suffix, is_zip):
    path = saved(tmp_path / f"w{suffix}", _use_new_zipfile_serialization=is_zip)
    converted = open_published(path)
    assert converted.suffix == ".safetensors"
    loaded = load_file(converted)
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)
    assert sorted(tmp_path.glob("cache/unigrpo/weights/*")) == [converted, record_of(converted)]
    assert record_of(converted).read_text() == f"{hashlib.sha256(converted.read_bytes()).hexdigest()}\n"


def test_state_dict_of_a_training_checkpoint_is_found_and_tied_tensors_are_kept_twice(tmp_path):
    tied = torch.ones(2, 2)
    content = {"epoch": 3, "state_dict": {"one": tied, "two": tied, "slice": tied[0], "step": 7}, "optimizer": {}}
    loaded = load_file(open_published(saved(tmp_path / "w.pt", content)))
    assert sorted(loaded) == ["one", "slice", "two"]
    assert torch.equal(loaded["two"], tied)


def test_second_opening_converts_nothing_and_new_content_is_converted_again(tmp_path):
    path = saved(tmp_path / "w.pt")
    first = open_published(path)
    stamp = first.stat().st_mtime_ns
    assert open_published(str(path)) == first
    assert first.stat().st_mtime_ns == stamp
    saved(path, {"a.weight": torch.zeros(1)})
    assert open_published(path) != first
    assert cache_folder() == tmp_path / "cache" / "unigrpo" / "weights"


def tampered(converted):
    save_file({"a.weight": torch.zeros(2, 3), "b": STATE["b"]}, converted)


def cut_short(converted):
    converted.write_bytes(converted.read_bytes()[:20])


def unrecorded(converted):
    tampered(converted)
    record_of(converted).unlink()


def badly_recorded(converted):
    tampered(converted)
    record_of(converted).write_bytes(b"\xff\x00")


@pytest.mark.parametrize("damage", [tampered, cut_short, unrecorded, badly_recorded])
def test_kept_copy_that_is_not_as_it_was_written_is_made_anew(tmp_path, damage, caplog):
    path = saved(tmp_path / "w.pt")
    converted = open_published(path)
    before = converted.read_bytes()
    damage(converted)
    assert open_published(path) == converted
    assert "converted again" in caplog.text
    assert converted.read_bytes() == before
    assert torch.equal(load_file(converted)["a.weight"], STATE["a.weight"])
    caplog.clear()
    open_published(path)
    assert caplog.text == "", "the new copy has its hash"


def test_pickled_code_is_refused_unrun_with_the_line_that_converts(tmp_path):
    path = saved(tmp_path / "evil.pt", {"state_dict": RunsCode(str(tmp_path / "made"))})
    with pytest.raises(WeightsError, match=r"refused.*safetensors\.torch.*weights_only=False.*evil\.safetensors"):
        open_published(path)
    assert not (tmp_path / "made").exists()
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04broken", b"\x80\x02garbage"])
def test_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pt"):
        open_published(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"step": 1}}])
def test_checkpoint_without_tensors_is_refused(tmp_path, content):
    with pytest.raises(WeightsError, match="holds no tensors"):
        open_published(saved(tmp_path / "w.pt", content))


def test_hash_behind_a_path_is_checked(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    assert open_published(f"{path}@{sha256_of(path)}") == path
    assert open_published(f"{path}@{sha256_of(path).upper()}") == path
    with pytest.raises(WeightsError, match=r"has sha256 [0-9a-f]{64}; wanted 0{64}"):
        open_published(f"{path}@{'0' * 64}")


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (b"", b"version https://git-lfs", b"\x05" + bytes(7) + b"hello"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="no safetensors file"):
            open_published(path)


def test_published_file_of_another_size_or_hash_is_refused(tmp_path, monkeypatch):
    file = hub_snapshot(tmp_path / "hub", "someone/scorer") / "w.pt"
    saved(file)
    size, sha256 = file.stat().st_size, sha256_of(file)
    for num_bytes, wanted, match in ((size + 1, sha256, "bytes; the published file has"), (size, "f" * 64, "wanted f")):
        entry = PublishedFile(hub_id="someone/scorer", file="w.pt", num_bytes=num_bytes, sha256=wanted)
        monkeypatch.setattr(published_weights, "PUBLISHED", {"scorer": entry})
        for name in ("scorer", "hf-hub:someone/scorer/w.pt"):
            with pytest.raises(WeightsError, match=match):
                open_published(name)
    entry = PublishedFile(hub_id="someone/scorer", file="w.pt", num_bytes=size, sha256=sha256)
    monkeypatch.setattr(published_weights, "PUBLISHED", {"scorer": entry})
    assert load_file(open_published("scorer")).keys() == STATE.keys()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_weights_that_are_not_here_fail_at_once_with_the_way_out(name):
    with pytest.raises(FileNotFoundError, match=r"not in the cache.*give the path of a local copy"):
        open_published(name)


def test_names_that_mean_nothing_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="one of image_reward, aesthetics"):
        open_published(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="hf-hub:OWNER/NAME/FILE"):
        open_published("hf-hub:owner/name")


def test_known_hashes_are_hashes():
    hashes = [entry.sha256 for entry in PUBLISHED.values() if entry.sha256]
    assert len(hashes) == len(set(hashes)) >= 2
    assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in hashes)
