import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from triplaneturbo.evaluation import clip_score
from triplaneturbo.evaluation.bootstrap import mean_interval
from triplaneturbo.evaluation.clip_models import ClipJudge
from triplaneturbo.evaluation.clip_score import (
    Judgement,
    caption_of,
    evaluate,
    main,
    picture_protocol,
    read_views,
    summarise,
)

# Texts of the colour model below, each a direction in the space of colours.
DIRECTIONS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "pink": (2, 1, 1)}


def colour_model(prefix: str, max_tokens: int = 2) -> ClipJudge:
    """A picture's vector is its mean colour, a text's the direction of its word; texts have one token and an end."""
    words = list(DIRECTIONS)
    table = torch.tensor([*DIRECTIONS.values(), (0, 0, 0)]).float()
    return ClipJudge(
        embed_images=lambda pixels: pixels.mean((2, 3)),
        embed_tokens=lambda ids: table[ids[:, 0]],
        tokenize=lambda texts: [[words.index(text.removeprefix(prefix)), len(words)] for text in texts],
        pad_token=len(words),
        max_tokens=max_tokens,
        image_size=8,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        device="cpu",
    )


def write_pictures(folder: Path, prompt: str, *colours: tuple[int, int, int], name: str | None = None) -> None:
    """folder/NAME/rgb_k.png, each of one colour, and prompt.txt unless the folder has another name than the prompt."""
    own = folder / (name or prompt)
    own.mkdir(parents=True)
    for k, colour in enumerate(colours):
        Image.new("RGB", (12, 12), colour).save(own / f"rgb_{k}.png")
    if name is None:
        (own / "prompt.txt").write_text(prompt)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.fixture
def colours(tmp_path):
    """Six pictures of three prompts: three right, one of green that is nearer to red, two of blue that are nearer to
    pink and red."""
    write_pictures(tmp_path, "red", (200, 0, 0), (200, 50, 0))
    write_pictures(tmp_path, "green", (0, 90, 30), (200, 100, 0))
    write_pictures(tmp_path, "blue", (100, 50, 50), (255, 0, 0))
    return tmp_path


def test_known_cosines_give_exact_scores(colours):
    found = evaluate([colours], colour_model("a "), prefix="a ", protocol="right")
    assert found.captions == ["a blue", "a green", "a red"]
    pairs = [((100, 50, 50), "blue"), ((255, 0, 0), "blue"), ((0, 90, 30), "green"), ((200, 100, 0), "green")]
    pairs += [((200, 0, 0), "red"), ((200, 50, 0), "red")]
    expected = torch.tensor([cosine(colour, DIRECTIONS[name]) for colour, name in pairs])
    torch.testing.assert_close(found.judgement.cosine, expected)
    assert found.judgement.correct.tolist() == [False, False, True, False, True, True]
    summary = summarise(found)
    assert summary["clip_score"] == pytest.approx(250 * expected.mean().item())
    assert summary["r_at_1"] == pytest.approx(0.5)
    assert (summary["n_prompts"], summary["n_pictures"]) == (3, 6)
    assert summary["intervals"]["clip_score"] == mean_interval(found.judgement.score, found.judgement.owner)
    assert summary["intervals"]["r_at_1"] == pytest.approx((0, 1))  # three equal draws are not rare
    others = [cosine(colour, d) for colour, own in pairs for word, d in DIRECTIONS.items() if word not in (own, "pink")]
    assert summary["chance"]["clip_score"] == pytest.approx(250 * sum(others) / len(others))
    assert summary["chance"]["r_at_1"] == pytest.approx(1 / 3)


def test_negative_cosines_count_as_nothing():
    similarity = torch.tensor([[0.6, 0.8, 0], [-1, -0.5, -0.2], [0, 0, 1]])
    found = Judgement(similarity, torch.tensor([0, 0, 2]))
    torch.testing.assert_close(found.score, torch.tensor([150.0, 0, 250]))
    assert found.correct.tolist() == [False, False, True]
    assert found.nearest.tolist() == [1, 2, 2]
    assert found.score_of_others == pytest.approx(200 / 6)
    assert Judgement(similarity[:, :1], torch.zeros(3, dtype=torch.long)).score_of_others is None


def test_shuffled_captions_are_chance():
    """Perfect retrieval, captions dealt out anew 400 times: the number of right prompts has mean 1 and variance 1."""
    generator = torch.Generator().manual_seed(0)
    n = 60
    captions = torch.nn.functional.normalize(torch.randn(n, 64, generator=generator), dim=1)
    owner = torch.arange(n).repeat_interleave(4)
    pictures = captions[owner] + 0.05 * torch.randn(4 * n, 64, generator=generator)
    found = Judgement(torch.nn.functional.normalize(pictures, dim=1) @ captions.T, owner)
    assert found.correct.all()
    dealt = [replace(found, owner=torch.randperm(n, generator=generator)[owner]) for _ in range(400)]
    recall = torch.stack([d.correct.double().mean() for d in dealt])
    assert abs(recall.mean() - 1 / n) < 4 / n / 400**0.5
    score = torch.stack([d.score.double().mean() for d in dealt])
    others, own = found.score_of_others, found.score.mean().item()
    assert abs(score.mean() - (others + (own - others) / n)) < 4 * score.std() / 400**0.5


def test_a_model_that_knows_nothing_is_at_chance():
    """Independent random vectors: the right answers of one picture a prompt are binomial."""
    generator = torch.Generator().manual_seed(1)
    n = 2000
    similarity = torch.randn(n, 16, generator=generator) @ torch.randn(16, 40, generator=generator)
    found = Judgement(similarity, torch.randint(40, (n,), generator=generator))
    assert abs(found.correct.float().mean() - 1 / 40) < 4 * (1 / 40 * 39 / 40 / n) ** 0.5


def test_captions():
    prompt = "a cat, asleep. on_it"
    assert caption_of(prompt, "A photo depicts ", "right") == "A photo depicts a cat, asleep. on_it"
    assert caption_of(prompt, "A photo depicts ", "original") == "A photo depictsa cat asleep on it"
    assert caption_of(prompt, "", "original") == "a cat asleep on it"


def test_the_original_reads_prompts_from_folder_names_and_takes_all_pictures(tmp_path):
    write_pictures(tmp_path, "a cat asleep", (1, 2, 3), name="a_cat_asleep")
    Image.new("RGB", (12, 12)).save(tmp_path / "a_cat_asleep" / "normal_0.jpg")
    with pytest.raises(ValueError, match=r"a_cat_asleep has no prompt\.txt"):
        read_views(tmp_path, "right")
    found = read_views(tmp_path, "original")
    assert [view.path.name for view in found] == ["normal_0.jpg", "rgb_0.png"]
    assert {caption_of(view.prompt, "A photo depicts ", "original") for view in found} == {
        "A photo depictsa cat asleep"
    }


def test_prompts_that_the_original_cannot_tell_apart_are_one(tmp_path):
    for name, text in (("x", "red"), ("y", "red.")):
        write_pictures(tmp_path, text, (200, 0, 0), name=name)
        (tmp_path / name / "prompt.txt").write_text(text)
    found = evaluate([tmp_path], colour_model("a"), prefix="a ", protocol="original")
    assert found.captions == ["ared"]
    assert found.judgement.owner.tolist() == [0, 0]


def test_what_the_original_prints(colours, monkeypatch, capsys):
    """The mean over the pictures of the last folder, red; its R@1 over all."""
    monkeypatch.setattr(clip_score, "load_clip", lambda name, device: colour_model("A photo depicts"))
    out = colours / "out.json"
    main(["--result_dir", str(colours), "--protocol", "original", "--json", str(out)])
    report = json.loads(out.read_text())
    last = 1.25 * (1 + cosine((200, 50, 0), (1, 0, 0)))
    assert report["printed_by_original"] == pytest.approx(100 * last)
    assert report["r_at_1"] == pytest.approx(0.5)
    assert f"the original prints       {last:.4f}" in capsys.readouterr().out


def test_long_captions_are_refused_or_cut_as_in_the_original(colours):
    model = colour_model("a ", max_tokens=1)
    with pytest.raises(ValueError, match=r"3 of 3 captions are longer than the 1 tokens.*'a blue'.*--prefix ''"):
        evaluate([colours], model, prefix="a ", protocol="right")
    found = evaluate([colours], replace(model, tokenize=lambda t: [[0, 4]] * len(t)), prefix="", protocol="original")
    assert torch.equal(found.judgement.similarity, torch.zeros(6, 3))  # only the end token is left


def test_command(colours, monkeypatch, capsys):
    monkeypatch.setattr(clip_score, "load_clip", lambda name, device: colour_model("A photo depicts "))
    main(["--result_dir", str(colours), "--json", str(colours / "out.json")])
    first = capsys.readouterr().out
    summary = json.loads((colours / "out.json").read_text())
    with (colours / "clip_scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert summary["clip_score"] == pytest.approx(sum(float(row["clip_score"]) for row in rows) / 6)
    assert summary["r_at_1"] == pytest.approx(sum(int(row["correct"]) for row in rows) / 6)
    assert [row["nearest"] for row in rows[:2]] == ["A photo depicts red"] * 2
    assert f"CLIP score{summary['clip_score']:22.2f}   " in first
    assert first.splitlines()[2].endswith("50.00   0.00 .. 100.00    33.33")
    assert "3 prompts, 6 pictures, of another program" in first
    main(["--result_dir", str(colours), "--json", str(colours / "again.json")])
    assert (colours / "again.json").read_text() == (colours / "out.json").read_text()


def test_paired_comparison(colours, tmp_path_factory, monkeypatch, capsys):
    """Another method that is perfect on green and equal elsewhere: one of three prompts gains one of two pictures."""
    other = tmp_path_factory.mktemp("other")
    write_pictures(other, "red", (200, 0, 0), (200, 50, 0))
    write_pictures(other, "green", (0, 90, 30), (0, 255, 0))
    write_pictures(other, "blue", (100, 50, 50), (255, 0, 0))
    monkeypatch.setattr(clip_score, "load_clip", lambda name, device: colour_model("A photo depicts "))
    main(["--result_dir", str(other), "--compare", str(colours), "--json", str(other / "out.json")])
    report = json.loads((other / "out.json").read_text())["compare"]
    assert report["r_at_1"] == pytest.approx(0.5)
    assert report["difference"]["r_at_1"] == pytest.approx(1 / 6)
    assert report["difference"]["intervals"]["r_at_1"] == pytest.approx([0, 0.5])
    gain = 250 * (1 - cosine((200, 100, 0), (0, 1, 0))) / 6
    assert report["difference"]["clip_score"] == pytest.approx(gain)
    assert "difference, paired" in capsys.readouterr().out


def test_seeds_are_pooled_and_must_have_the_same_prompts(colours, tmp_path_factory):
    second = tmp_path_factory.mktemp("second")
    for prompt in ("red", "green"):
        write_pictures(second, prompt, (0, 200, 0))
    model = colour_model("")
    with pytest.raises(ValueError, match=r"have different prompts: 'blue' is in .* alone"):
        evaluate([colours, second], model, prefix="", protocol="right")
    write_pictures(second, "blue", (0, 0, 255))
    found = evaluate([colours, second], model, prefix="", protocol="right")
    assert found.judgement.owner.tolist() == [0, 0, 1, 1, 2, 2, 0, 1, 2]
    assert found.judgement.correct.tolist() == [False, False, True, False, True, True, True, True, False]


def test_pictures_of_different_protocols_are_not_mixed(colours, tmp_path_factory, monkeypatch, capsys):
    def render_by(folder, protocol):
        for own in folder.iterdir():
            (own / "views.json").write_text(json.dumps({"protocol": protocol, "size": 12}))

    other = tmp_path_factory.mktemp("other")
    for prompt in ("red", "green", "blue"):
        write_pictures(other, prompt, (0, 0, 0), (1, 1, 1))
    render_by(colours, "right")
    render_by(other, "original")
    assert picture_protocol(read_views(colours, "right")) == "right"
    monkeypatch.setattr(clip_score, "load_clip", lambda name, device: colour_model("A photo depicts "))
    with pytest.raises(SystemExit):
        main(["--result_dir", str(colours), "--compare", str(other)])
    assert "rendered by different protocols, original and right" in capsys.readouterr().err
    (colours / "red" / "views.json").unlink()
    with pytest.raises(ValueError, match=r"rendered in different ways.*--force"):
        picture_protocol(read_views(colours, "right"))


def test_a_model_in_a_folder(colours, clip_folder, capsys):
    main(["--result_dir", str(colours), "--model", str(clip_folder), "--prefix", ""])
    assert "3 prompts" in capsys.readouterr().out


def test_folders_without_pictures_or_prompts(colours, clip_folder, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(SystemExit):
        main(["--result_dir", str(empty), "--model", str(clip_folder)])
    assert "mesh_visualize" in capsys.readouterr().err.split("there are no pictures")[1]
    (colours / "red" / "prompt.txt").unlink()
    with pytest.raises(SystemExit):
        main(["--result_dir", str(colours), "--model", str(clip_folder)])
    assert "red has no prompt.txt" in capsys.readouterr().err
