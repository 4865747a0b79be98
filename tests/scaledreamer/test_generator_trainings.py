"""Every generator in the miniature world: two steps of training, and an export of what they made."""

import json
from pathlib import Path

import pytest
import trimesh
import yaml
from torch import Tensor

import launch
from triplaneturbo.ops.cavities import cavities

TEXT = 128  # the width of the miniature world's text states
GRID = {"n_levels": 4, "base_resolution": 4, "log2_hashmap_size": 10}
VOLUME = {"type": "volume", "ray_range": "box", "num_samples_per_ray": 8, "num_samples_per_ray_importance": 12}
MVDREAM = {
    "type": "mvdream",
    "path": "load/shapeworld/mvdream",
    "vae_path": "load/shapeworld/stable_diffusion",
    "image_size": 64,
    "rule": {"type": "asd", "ratio": 0.1, "random": True, "weighting": "sds"},
}
SHARED = {"type": "environment", "random_color": 0.5}
TRANSFORMER = {"text_width": TEXT, "width": 16, "n_heads": 2, "n_layers": 1, "token_resolution": 4, "channels": 4}
SYSTEMS = {
    "hyper-ingp": {
        "geometry": {"hypernet": {"text_width": TEXT, "n_neurons": 8}, "field": {"encoding": GRID}},
        "background": {
            "type": "text-environment",
            "encoding": GRID,
            "hypernet": {"text_width": TEXT},
            "random_color": 0.5,
        },
    },
    "conv3d-net": {
        "geometry": {"space_generator": {"text_width": TEXT, "style_width": 8, "widths": [8, 8], "channels": 4}},
        "background": SHARED,
    },
    "triplane-transformer": {"geometry": {"space_generator": TRANSFORMER}, "background": SHARED},
    # Its density is less than a trained one's, so that the surface is where there is little.
    "free-parameters": {
        "geometry": {
            "field": {"type": "hash-grid", "kind": "density", "encoding": GRID, "level": 2.0, "radius": 1.0},
            "fill_cavities": 0.25,
        },
        "background": {**SHARED, "encoding": GRID},
    },
}


def spied(patch: pytest.MonkeyPatch) -> list[int]:
    """Which openings an export closes, in points, as it does so."""
    found: list[int] = []

    def spy(empty: Tensor, opening: int) -> Tensor:
        found.append(opening)
        return cavities(empty, opening)

    patch.setattr("triplaneturbo.scenes.isosurface.cavities", spy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_generator_trains_and_exports(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    single = name == "free-parameters"
    prompts = ("a red cube",) if single else ("a red cube", "a blue sphere")
    system = {
        "type": "scene-distillation",
        "geometry": {"type": name, "resolution": 20, **SYSTEMS[name]["geometry"]},
        "background": SYSTEMS[name]["background"],
        "renderers": {"volume": {**VOLUME, **({"estimator": "occupancy"} if single else {"law": "volsdf"})}},
        "guidance": {"teachers": {"mvdream": MVDREAM}},
        "losses": {"volume": {"sparsity": 1.0} if single else {"sparsity": 1.0, "eikonal": 0.1}},
        "optimizer": {
            "name": "Adam",
            "args": {"betas": [0.0, 0.99], "eps": 1e-8},
            "params": {"geometry": {"lr": 1e-3}, "background": {"lr": 1e-3}},
        },
    }
    data = {"camera_sets": 1, "batch_size": 4 * len(prompts)}
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"base": "shapeworld/tiny.yaml", "data": data, "system": system})
    )
    monkeypatch.chdir(tmp_path)
    options = ["trainer.accelerator=cpu", "trainer.max_steps=2", "exp_root_dir=out", "tag=t", "use_timestamp=false"]
    common = ["--config", "mine.yaml", *options, *(f"--prompt={prompt}" for prompt in prompts)]
    training = ["--train", "trainer.limit_test_batches=0", "trainer.log_every_n_steps=1"]
    assert launch.main([*common, *training]) == 0, caplog.text
    rows = [json.loads(line) for line in (tmp_path / "out/shapeworld-tiny/t/losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in rows)
    with monkeypatch.context() as patch:
        openings = spied(patch)
        assert launch.main([*common, "--export", "--out", "meshes", "resume=auto"]) == 0, caplog.text
    assert openings == ([1] if single else [])  # .25 between walls, of 19 cells in 2.0
    meshes = [trimesh.load(path, force="mesh") for path in tmp_path.glob("meshes/*/model.glb")]
    assert len(meshes) == len(prompts)
    assert all(mesh.volume > 0.01 for mesh in meshes)
