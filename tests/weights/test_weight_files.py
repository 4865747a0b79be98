"""Weight files: atomic writing, safe reading, and errors that name the file and the remedy."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from triplaneturbo.errors import WeightsError
from triplaneturbo.storage import replacing
from triplaneturbo.weights.files import describe_mismatch, load_exactly, load_tensors, save_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}


def test_tensors_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    save_tensors(path, TENSORS | {"view": torch.arange(6.0).reshape(2, 3).T}, metadata={"made_by": "test"})
    loaded = load_tensors(path)
    assert torch.equal(loaded["a.weight"], TENSORS["a.weight"])
    assert torch.equal(loaded["view"], torch.arange(6.0).reshape(2, 3).T)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]


def test_what_is_written_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), rename(a, b)))
    save_tensors(tmp_path / "x.safetensors", TENSORS)
    assert events == ["sync", "rename", "sync"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoints_are_read(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save({"state_dict": TENSORS, "epoch": 3} if wrapped else TENSORS, path)
    loaded = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], TENSORS[name]) for name in TENSORS)


class Dangerous:
    def __init__(self, witness: str) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (Path(self.witness),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    torch.save({"state_dict": TENSORS, "hook": Dangerous(str(witness))}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=r"x\.ckpt holds more than tensors.*torch\.save"):
        load_tensors(tmp_path / "x.ckpt")
    assert not witness.exists()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _text(path: Path) -> None:
    path.write_text("<html>please log in</html>")


@pytest.mark.parametrize("damage", [_empty, _half, _text])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_tensors(path, TENSORS)
    else:
        torch.save(TENSORS, path)
    damage(path)
    with pytest.raises(WeightsError, match=rf"x\{suffix}.*(fetch it again|refused)"):
        load_tensors(path)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"x\.pt does not exist; give the path"):
        load_tensors(tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="is a folder"):
        load_tensors(tmp_path)
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(WeightsError, match="is a folder"):
        load_tensors(tmp_path / "folder.ckpt")
    for content, message in (
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
        ({}, "no named tensors"),
        ({"state_dict": [1]}, "no named tensors"),
        ({"state_dict": {"name": "text", 3: torch.zeros(1)}}, "no named tensors"),
    ):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=message):
            load_tensors(tmp_path / "other.pt")


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".ckpt", ".pth"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page"),
        (b"\n <html>log in</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"1", "neither a safetensors file nor a PyTorch checkpoint"),
        (b"PK\x03\x04 a zip archive of something else", "damaged or cut short"),
        (b"\xff\0\0\0\0\0\0\0{", "damaged or cut short"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_tensors(tmp_path / f"x{suffix}")


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.ckpt", TENSORS)
    torch.save(TENSORS, tmp_path / "zip")
    torch.save(TENSORS, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "zip").rename(tmp_path / "y.safetensors")
    for name in ("x.ckpt", "y.safetensors", "old"):
        assert torch.equal(load_tensors(tmp_path / name)["a.weight"], TENSORS["a.weight"])


def test_mismatch_is_described_by_number_and_first_names() -> None:
    text = describe_mismatch([f"m{i}" for i in range(5)], ["u"], {"w": (torch.Size([2, 3]), torch.Size([3, 2]))})
    assert text == "5 missing (m0, m1, m2, ...), 1 unexpected (u), 1 of the wrong shape (w: (2, 3) instead of (3, 2))"
    assert describe_mismatch([], [], {}) == ""


def test_load_exactly_accounts_for_every_tensor() -> None:
    module = nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    load_exactly(module, good, "x.pt")
    assert torch.equal(module.weight, good["weight"])
    for dtype in (torch.float64, torch.bfloat16, torch.float8_e4m3fn):
        load_exactly(module, {name: (2 * tensor).to(dtype) for name, tensor in good.items()}, "x.pt")
        assert torch.equal(module.weight, 2 * good["weight"])
    for bad, message in (
        ({"weight": good["weight"]}, r"1 missing \(bias\)"),
        (good | {"more": torch.ones(1)}, r"1 unexpected \(more\)"),
        (good | {"bias": torch.ones(3)}, r"1 of the wrong shape \(bias: \(3,\) instead of \(2,\)"),
        (good | {"bias": torch.ones(2).int()}, r"1 of the wrong kind \(bias: torch\.int32 instead of torch\.float32"),
    ):
        with pytest.raises(WeightsError, match=r"x\.pt does not fit Linear: " + message):
            load_exactly(module, bad, "x.pt")
