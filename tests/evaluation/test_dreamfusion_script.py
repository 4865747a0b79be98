"""scripts/eval/dreamfusion.sh from prompts to scores, with small random networks."""

import json
import os
import subprocess
import sys
from pathlib import Path

from triplaneturbo.weights.hub import CLIP, STABLE_DIFFUSION_2, STUDENT

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = ["bash", str(ROOT / "scripts/eval/dreamfusion.sh"), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)


def test_prompts_to_scores(tiny_stand_ins, tmp_path):
    prompts = ["a red cube", "ein grüner Würfel, groß", "left out"]
    (tmp_path / "few.json").write_text(json.dumps({"train": prompts, "val": [], "test": prompts}))
    base = "system.geometry.space_generator_config.pretrained_model_name_or_path"
    options = ["--gpu", "", "--out", tmp_path / "out", "--library", "few", "--limit", "2"]
    options += ["--weights", tiny_stand_ins / STUDENT.name, "--clip", tiny_stand_ins / CLIP.name]
    sizes = ["data.dim_gaussian=[6,4,8,8]", "system.geometry.isosurface_resolution=12"]
    sizes += ["system.background.hypernet_config.c_dim=32", "system.exporter.turntable_views=0"]
    folders = [f"data.prompt_library_dir={tmp_path}", f"{base}={tiny_stand_ins / STABLE_DIFFUSION_2.name}"]
    done = run(*options, "--", *folders, *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.read_text(): path.parent for path in (tmp_path / "out/views").glob("*/prompt.txt")}
    assert set(found) == set(prompts[:2])
    for folder in found.values():
        assert (tmp_path / "out/meshes" / folder.name / "model.obj").stat().st_size > 1000
        assert sorted(path.name for path in folder.glob("*.png")) == [f"rgb_{i}.png" for i in range(4)]
    scores = json.loads((tmp_path / "out/clip_scores.json").read_text())
    assert (scores["n_prompts"], scores["n_pictures"]) == (2, 8)
    assert "CLIP score" in done.stdout


def test_a_clip_model_that_is_missing_is_said_before_anything_is_exported(tmp_path):
    done = run("--clip", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"{tmp_path / 'nowhere'} is not a CLIP model" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_shows_what_there_is():
    done = run("--gpus", "0")
    assert done.returncode == 2
    assert "[--gpu 0,1] [--config YAML]" in done.stderr
