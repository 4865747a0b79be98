"""Files of tensors that are not what was written: refused, whatever byte was hit."""

import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from custom.shapeworld.scorer import Scorer
from triplaneturbo import TextToMeshPipeline
from triplaneturbo.errors import WeightsError
from triplaneturbo.evaluation.clip_models import load_clip
from triplaneturbo.prompts import TextEncoder
from triplaneturbo.weights.checksums import say_unverified
from triplaneturbo.weights.files import load_tensors, read_checkpoint, read_safetensors, save_checkpoint, save_tensors
from triplaneturbo.weights.folders import load_unet

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "s": torch.tensor(3.5).half()}
ROOT = Path(__file__).parents[2]


def same(found: dict, wanted: dict) -> bool:
    return found.keys() == wanted.keys() and all(
        found[n].dtype == wanted[n].dtype and torch.equal(found[n], wanted[n]) for n in wanted
    )


def fates(path: Path, wanted: dict) -> tuple[int, int]:
    """Change every byte, one at a time; returns how many changes were refused and how many changed nothing."""
    good, dice, refused = path.read_bytes(), random.Random(0), 0
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ dice.randrange(1, 256)]) + good[i + 1 :])
        try:
            found = load_tensors(path)
        except WeightsError:
            refused += 1
        else:
            assert same(found, wanted), f"byte {i}"
    path.write_bytes(good)
    return refused, len(good) - refused


def test_every_changed_byte_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"format": "pt"})
    assert fates(path, TENSORS)[1] <= 2  # a space after the header that became another white space


def test_every_changed_byte_of_a_checkpoint_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    wanted = {"a": TENSORS["a"]}
    save_checkpoint(path, wanted)
    refused, harmless = fates(path, wanted)
    assert refused > 800
    assert harmless > 0  # times, versions and padding of the archive


def test_an_entry_that_is_marked_as_a_folder_is_refused(tmp_path: Path) -> None:
    # PyTorch gives memory as it finds it for such an entry, and zipfile finds its CRC right.
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, TENSORS)
    content = bytearray(path.read_bytes())
    directory_entry = content.rindex(b"archive/data/1") - 46
    content[directory_entry + 38] |= 0x10
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.ckpt.*marked as a folder"):
        read_checkpoint(path)


def test_two_checkpoints_in_one_file_are_refused(tmp_path: Path) -> None:
    # zipfile would verify the second, PyTorch read the numbers of the first. Newer Pythons already find the file odd.
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_checkpoint(tmp_path / name, {"w": torch.full((4,), value)})
    both = tmp_path / "both.ckpt"
    both.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    with pytest.raises(WeightsError, match=r"belongs to another file|is damaged"):
        read_checkpoint(both)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_entries_of_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, TENSORS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(WeightsError, match=r"x\.ckpt.*the same name"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"a": TENSORS["a"].T},
        {"a": TENSORS["a"].reshape(3, 2)},
        {"b": TENSORS["b"].double()},
        {"b": TENSORS["b"].view(torch.float64)},
        {"a": TENSORS["a"].nextafter(torch.tensor(9.0))},
        {"more": torch.zeros(0)},
    ],
)
def test_the_digest_covers_names_kinds_shapes_and_numbers(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS)
    tensors, metadata = read_safetensors(path)
    save_file(tensors, path, metadata)
    assert same(load_tensors(path), TENSORS)
    save_file({name: tensor.contiguous() for name, tensor in (tensors | change).items()}, path, metadata)
    with pytest.raises(WeightsError, match="does not fit the digest"):
        load_tensors(path)


def test_the_digest_covers_the_metadata_and_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, {"prompts": "a"})
    tensors, metadata = read_safetensors(path)
    (key,) = metadata.keys() - {"prompts"}
    for other in (
        {**metadata, "prompts": "b"},
        {**metadata, "more": ""},
        {key: metadata[key]},
        {"prompts": "a", "another": metadata[key]},
        {"prompts": "a", key: ""},
    ):
        save_file(tensors, path, other)
        with pytest.raises(WeightsError, match="does not fit the digest"):
            load_tensors(path)


def test_a_file_without_a_checksum_is_loaded_with_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_unverified.cache_clear()
    save_file(TENSORS, tmp_path / "published.safetensors", {"format": "pt"})
    torch.save(TENSORS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_tensors(tmp_path / "ours.safetensors", TENSORS)
    save_checkpoint(tmp_path / "ours.ckpt", TENSORS)
    for _ in range(2):
        assert all(same(load_tensors(path), TENSORS) for path in sorted(tmp_path.iterdir()))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in lines] == [str(tmp_path / name) for name in ("old.pt", "published.safetensors")]
    assert all("carries no checksum" in line for line in lines)


def test_a_long_reading_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.ckpt"
    save_checkpoint(path, {"w": torch.zeros(1 << 20)})
    with caplog.at_level("INFO", logger="triplaneturbo"):
        read_checkpoint(path)
        assert not caplog.records
        monkeypatch.setattr("triplaneturbo.weights.checksums._PATIENCE", 0.0)
        read_checkpoint(path)
    assert f"reading {path}: " in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("file", "load"),
    [
        ("student.safetensors", lambda folder: TextToMeshPipeline.from_pretrained(folder, "cpu")),
        ("stable_diffusion/unet", lambda folder: TextToMeshPipeline.from_pretrained(folder, "cpu")),
        ("stable_diffusion/vae", lambda folder: TextToMeshPipeline.from_pretrained(folder, "cpu")),
        ("stable_diffusion/text_encoder", lambda folder: TextEncoder(folder / "stable_diffusion")),
        ("richdreamer/unet", lambda folder: load_unet(folder / "richdreamer")),
        ("scorer", lambda folder: Scorer.load(folder / "scorer")),
        ("scorer", lambda folder: load_clip(str(folder / "scorer"), "cpu")),
    ],
)
def test_a_changed_bit_is_refused_wherever_weights_are_loaded(tmp_path: Path, file: str, load: Callable) -> None:
    shutil.copytree(ROOT / "load/shapeworld", tmp_path, dirs_exist_ok=True)
    (path,) = [tmp_path / file] if file.endswith(".safetensors") else (tmp_path / file).glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{path} is damaged"):
        load(tmp_path)


def test_the_shipped_files_carry_digests(caplog: pytest.LogCaptureFixture) -> None:
    say_unverified.cache_clear()
    paths = sorted((ROOT / "load/shapeworld").rglob("*.safetensors"))
    assert len(paths) == 7
    assert all(same(load_tensors(path), load_file(path)) for path in paths)
    assert not caplog.records
