"""Prompt libraries, and the order in which prompts are seen."""

import itertools
import json
from collections import Counter

import pytest

from triplaneturbo.data.library import DEFAULT_FOLDERS, Position, PromptLibrary, micro_batches, prompt_index
from triplaneturbo.errors import ConfigError


def write(folder, content, name="some"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_reads_the_three_splits(tmp_path):
    write(tmp_path, {"train": ["a cat", "a dog"], "val": ["a cow"], "test": []})
    library = PromptLibrary.read("some", str(tmp_path))
    assert library == PromptLibrary(("a cat", "a dog"), ("a cow",), ())


def test_looks_in_load_then_in_datasets(tmp_path, monkeypatch):
    folders = tuple(tmp_path / folder.name for folder in DEFAULT_FOLDERS)
    monkeypatch.setattr("triplaneturbo.data.library.DEFAULT_FOLDERS", folders)
    write(tmp_path / "datasets", {"train": ["from datasets"]})
    assert PromptLibrary.read("some").train == ("from datasets",)
    write(tmp_path / "load", {"train": ["from load"]})
    assert PromptLibrary.read("some").train == ("from load",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('"a cat"', "mapping"),
        ("null", "mapping"),
        ({}, "no training prompts"),
        ({"train": ["a cat", None]}, "but None is in it"),
        (["a cat"], "mapping"),
        ({"train": "a cat"}, "'train'"),
        ({"train": ["a cat", 3]}, "'train'"),
        ({"train": ["a cat", "  "]}, "'train'"),
        ({"train": [], "val": ["a cat"]}, "no training prompts"),
        ({"train": ["a cat"], "test": {"a": "cat"}}, "'test'"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, content, message):
    write(tmp_path, content)
    with pytest.raises(ConfigError, match=message):
        PromptLibrary.read("some", str(tmp_path))


def test_names_the_places_it_looked_at(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json.*allowed: none"):
        PromptLibrary.read("nowhere", str(tmp_path))


def test_a_name_that_does_not_exist_has_neighbours(tmp_path):
    for name in ("solids_library", "animals"):
        write(tmp_path, {"train": ["a cat"]}, name)
    for mistake in ("solid_library", "solids_library.json"):
        with pytest.raises(ConfigError, match="did you mean 'solids_library'"):
            PromptLibrary.read(mistake, str(tmp_path))


def test_a_file_that_is_not_text_and_a_folder(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'{"train": ["caf\xe9"]}')
    with pytest.raises(ConfigError, match=r"latin\.json is not valid JSON"):
        PromptLibrary.read("latin", str(tmp_path))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="no prompt library 'folder'"):
        PromptLibrary.read("folder", str(tmp_path))


def test_fingerprint_changes_with_prompts_and_their_order():
    prints = {PromptLibrary.of(p).fingerprint for p in (["a", "b"], ["b", "a"], ["a", "b", "c"], ["a, b"], ["a b"])}
    assert len(prints) == 5
    assert PromptLibrary.of(["a", "b"]).fingerprint == PromptLibrary.of(["a", "b"]).fingerprint


def test_every_epoch_sees_each_prompt_once_in_another_order():
    epochs = [[prompt_index(7, 10 * epoch + i, 10) for i in range(10)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert [prompt_index(8, i, 10) for i in range(10)] != epochs[0]


def first(n, *arguments):
    return list(itertools.islice(micro_batches(*arguments), n))


def test_processes_share_the_samples_of_a_micro_batch():
    whole = [(batch, list(samples)) for batch, samples in first(5, Position(), 6, 0, 1)]
    parts = [first(5, Position(), 2, rank, 3) for rank in range(3)]
    joined = [(batch, [s for rank in parts for s in rank[batch][1]]) for batch in range(5)]
    assert joined == whole


def test_the_stream_continues_anywhere_even_on_another_number_of_processes():
    before = first(3, Position(), 6, 0, 1)
    after = [first(4, Position(batches=3, samples=18), 2, rank, 3) for rank in range(3)]
    seen = Counter(s for _, samples in before for s in samples)
    seen.update(s for rank in after for _, samples in rank for s in samples)
    assert seen == Counter(range(18 + 24))
    assert [batch for batch, _ in after[0]] == [3, 4, 5, 6]
