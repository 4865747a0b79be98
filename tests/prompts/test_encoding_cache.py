"""Encoded prompts in files: the same states, few files, and never a wrong or a damaged one."""

from pathlib import Path

import pytest
import torch

from triplaneturbo.errors import WeightsError
from triplaneturbo.prompts import ClipText, TextEncoder
from triplaneturbo.prompts.cache import EncodingCache, fingerprint


def encodings(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((3, 2), float(i)), torch.full((2,), -float(i))) for i in range(n)]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_was_added_is_found_by_another_process(tmp_path: Path) -> None:
    EncodingCache(tmp_path, "e").add(["a", "b\n\"'"], encodings(2))
    EncodingCache(tmp_path, "e").add(["c"], encodings(1))
    cache = EncodingCache(tmp_path, "e")
    tokens, pooled = cache.get("b\n\"'")
    assert torch.equal(tokens, torch.ones(3, 2))
    assert torch.equal(pooled, -torch.ones(2))
    assert len(cache) == 3
    assert cache.get("d") is None
    assert len(EncodingCache(tmp_path, "another encoder")) == 0


def test_a_cached_prompt_is_not_encoded(tmp_path: Path, encoders: tuple[str, str]) -> None:
    expected = TextEncoder(encoders[0]).encode(["a b", "c"])
    assert TextEncoder(encoders[0], cache_dir=tmp_path).precompute(["a b", "c", "a b"]) == 2
    encoder = TextEncoder(encoders[0], cache_dir=tmp_path)
    encoder.model.register_forward_pre_hook(lambda *_: pytest.fail("the text model ran"))
    for got, wanted in zip(encoder.encode(["a b", "c"]), expected, strict=True):
        assert torch.equal(got, wanted)
    assert encoder.precompute(["c"]) == 0


def test_prompts_are_gathered_into_few_files(tmp_path: Path, encoders: tuple[str, str]) -> None:
    encoder = TextEncoder(encoders[0], cache_dir=tmp_path)
    encoder._cache.shard_size = 4
    assert encoder.precompute([f"{a} {b}" for a in "abc" for b in "abc"]) == 9
    assert len(shards(tmp_path)) == 3


def test_the_fingerprint_follows_the_content(tmp_path: Path, encoders: tuple[str, str]) -> None:
    first, second = encoders
    (tmp_path / "copy").symlink_to(first)
    assert fingerprint(first, "kept") == fingerprint(tmp_path / "copy", "kept")
    assert len({fingerprint(first, "kept"), fingerprint(first, "lost"), fingerprint(second, "kept")}) == 3


def test_states_of_the_other_way_to_cut_a_prompt_are_not_taken(tmp_path: Path, encoders: tuple[str, str]) -> None:
    """The model reads 6 tokens. One cache holds what both ways of cutting give."""
    long = ["a b c d e f g h"]
    kept, lost = (TextEncoder(encoders[0], keep_end_token=keep).encode(long)[0] for keep in (True, False))
    assert not torch.equal(kept, lost)
    TextEncoder(encoders[0], cache_dir=tmp_path).precompute(long)
    assert torch.equal(TextEncoder(encoders[0], keep_end_token=False, cache_dir=tmp_path).encode(long)[0], lost)


@pytest.mark.parametrize("keep", [0, 20, -3])
def test_a_damaged_shard_is_named(tmp_path: Path, keep: int) -> None:
    EncodingCache(tmp_path, "e").add(["a"], encodings(1))
    (path,) = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{path.name}.*delete it"):
        EncodingCache(tmp_path, "e")


@pytest.mark.parametrize("text", [b"\0\0\x80\xbf", b"apple"])
def test_a_changed_number_or_prompt_is_never_returned(tmp_path: Path, text: bytes) -> None:
    EncodingCache(tmp_path, "e").add(["apple", "b"], encodings(2))
    (path,) = shards(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.rindex(text) + 3] ^= 1
    path.write_bytes(content)
    cache = EncodingCache(tmp_path, "e")
    for prompt in [p for p in ("apple", "appme", "b") if p in cache]:
        with pytest.raises(WeightsError, match=rf"{path.name}.*delete it"):
            cache.get(prompt)


def test_a_shard_is_compared_with_its_digest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EncodingCache(tmp_path, "e").add(["a", "b"], encodings(2))
    cache, read = EncodingCache(tmp_path, "e"), []
    monkeypatch.setattr("triplaneturbo.prompts.cache.read_safetensors", read.append)
    for prompt in ("a", "b", "a"):
        cache.get(prompt)
    assert read == shards(tmp_path)


def test_a_shard_that_vanished_is_named(tmp_path: Path) -> None:
    cache = EncodingCache(tmp_path, "e")
    cache.add(["a"], encodings(1))
    shards(tmp_path)[0].unlink()
    with pytest.raises(WeightsError, match="delete it"):
        cache.get("a")


def test_no_files_unless_asked_for(tmp_path: Path, encoders: tuple[str, str]) -> None:
    config = {"pretrained_model_name_or_path": encoders[0], "cache_dir": str(tmp_path / "cache")}
    assert ClipText(config).precompute(["a"]) == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("by_view", "count"), [(False, 4), (True, 4 + 8)])
def test_an_encoder_fills_the_cache_with_all_it_needs(
    tmp_path: Path, encoders: tuple[str, str], by_view: bool, count: int
) -> None:
    """Two prompts, the negative and the empty one; by view each prompt from four sides, too."""
    config = {
        "pretrained_model_name_or_path": encoders[0],
        "negative_prompt": "h",
        "by_view": by_view,
        "use_cache": True,
        "cache_dir": str(tmp_path),
    }
    assert ClipText(config).precompute(["a", "b"]) == count
    condition = ClipText(config)
    condition.encoder.model.register_forward_pre_hook(lambda *_: pytest.fail("the text model ran"))
    states = condition(["b"])
    assert (states.by_view is not None) == by_view
