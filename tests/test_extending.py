"""Every example of docs/extending.md, added as a stranger would: two steps of training, and an export."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import launch
from triplaneturbo import launcher
from triplaneturbo.registry import ROLES

DOCUMENT = (Path(__file__).parents[1] / "docs/extending.md").read_text()
SECTIONS = {
    section.split("\n")[0]: dict(re.findall(r"^```(python|yaml)\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    for section in re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
}
PROMPTS = ("a red cube", "a blue sphere")
# What an example says of itself in the log of losses.
LOGGED = {
    "Loss term": "loss_centred_volume",
    "Teacher": "red_error_volume",
    "Teacher that is trained": "stable_diffusion_training_loss_mesh",
    "Guidance": "stable_diffusion_grad_norm_mesh",
    "System": "loss_held",
}


def test_every_role_has_an_example():
    named = set(re.findall(r"^\| ([a-z]+)", DOCUMENT, re.MULTILINE)) - {"role"}
    assert named == ROLES.keys()
    titles = " ".join(SECTIONS).lower()
    assert [role for role in ROLES if role not in titles] == []


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_is_short(title):
    assert len(SECTIONS[title]["python"].splitlines()) <= 40


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_trains_and_exports(title, tmp_path, monkeypatch, caplog):
    source, recipe = SECTIONS[title]["python"], SECTIONS[title]["yaml"]
    folder = tmp_path / f"examples_{title.lower().replace(' ', '_').replace(':', '')}"
    folder.mkdir()
    (file,) = re.findall(r"^# custom/(\w+\.py)$", source, re.MULTILINE)
    (folder / file).write_text(source)
    monkeypatch.setattr(launcher, "CUSTOM_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe)
    for prompt in PROMPTS:
        Image.new("RGB", (20, 20), "red").save(tmp_path / f"{prompt.replace(' ', '_')}.png")
    (tmp_path / "cameras.json").write_text(json.dumps([[15, 30 * k, 3.0, 40] for k in range(12)]))
    views = [[15, 90 * k, 3.0, 40] for k in range(4)]
    (tmp_path / "views.json").write_text(json.dumps({"prompt": PROMPTS[0], "views": views}))
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    files = {
        "Condition: an image": "data.conditions.picture.picture_dir=.",
        "Cameras": "data.cameras.path=cameras.json",
    }
    files |= {"Data: prompts": "data.lines_path=prompts.txt", "Data: a stream": "data.path=views.json"}
    options = [*([files[title]] if title in files else []), "exp_root_dir=out", "tag=t", "use_timestamp=false"]
    if "scene-distillation" not in recipe:
        options += ["system.rounds=1", "data.camera_sets=1"]
    if not title.startswith("Data"):
        options += [f"--prompt={prompt}" for prompt in PROMPTS]
    common = ["--config", "mine.yaml", "trainer.accelerator=cpu", "trainer.max_steps=2", *options]
    assert launch.main([*common, "--train", "trainer.limit_test_batches=0", "trainer.log_every_n_steps=1"]) == 0, (
        caplog.text
    )
    (log,) = tmp_path.glob("out/*/t/losses.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[-1]["step"] >= 2
    assert all(row["grad_norm"] > 0 for row in rows)
    assert LOGGED.get(title, "grad_norm") in set().union(*rows)
    mode = "--test" if title == "Measure" else "--export"
    where = ["trainer.limit_test_batches=1"] if title == "Measure" else ["--out", "meshes"]
    assert launch.main([*common, mode, *where, "resume=auto"]) == 0, caplog.text
    suffix = {"Exporter": "meshes/*.ply", "Measure": "out/*/t/save/it*-test.jsonl"}.get(title, "meshes/*/model.glb")
    assert len(list(tmp_path.glob(suffix))) == (1 if title in ("Measure", "Data: a stream") else 2)
