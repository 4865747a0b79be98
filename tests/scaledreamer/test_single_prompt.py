"""One prompt as the original trains it, in the miniature world: density, occupancy grid, single views, negatives of
other sides, pictures that grow."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import launch
from triplaneturbo.systems.checkpoint import newest_checkpoint
from triplaneturbo.weights.files import read_checkpoint

GRID = {"n_levels": 3, "base_resolution": 4, "log2_hashmap_size": 8}
CONFIG = {
    "base": "shapeworld/tiny.yaml",
    "data": {
        "batch_size": 2,
        "camera_sets": 1,
        "cameras": {
            "type": "random-views",
            "ring": False,
            "n_view": 2,
            "elevation": [-10, 80],
            "camera_jitter": 0.1,
            "progressive_until": 2,
            "milestones": [1],
            "later_views": [1],
        },
        "ray_height": 8,
        "ray_width": 8,
        "milestones": [1],
        "later_ray_sizes": [[12, 12]],
        "conditions": {"text": {"by_view": True}},
    },
    "system": {
        "type": "scene-distillation",
        "geometry": {"type": "free-parameters", "field": {"type": "hash-grid", "kind": "density", "encoding": GRID}},
        "renderers": {
            "volume": {
                "type": "volume",
                "estimator": "occupancy",
                "num_samples_per_ray": 24,
                "near_plane": 0.0,
                "far_plane": 100.0,
                "normalize_z_variance": True,
            }
        },
        "guidance": {
            "teachers": {
                "stable_diffusion": {
                    "type": "stable-diffusion",
                    "path": "load/shapeworld/stable_diffusion",
                    "image_size": 64,
                    "all_views": True,
                    "text_by_view": True,
                    "max_timestep_included": True,
                    "perp_neg": {"strength": 0.5},
                    "rule": {"type": "asd", "ratio": 0.1},
                }
            }
        },
        "losses": {"volume": {"sparsity": 1.0, "opaque": [1, 0.0, 1.0, 2], "orient": 0.1, "z_variance": 0.1}},
        "optimizer": {"name": "AdamW", "params": {"geometry": {"lr": 1e-2}}},
    },
    "checkpoint": {"every_n_train_steps": 1},
}


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(CONFIG))

    def train(tag: str, steps: int, *more: str) -> Path:
        options = ["trainer.accelerator=cpu", "exp_root_dir=out", f"tag={tag}", "use_timestamp=false", *more]
        limits = ["trainer.limit_test_batches=0", f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1"]
        common = ["--config", "mine.yaml", "--prompt=a red cube", "--train"]
        assert launch.main([*common, *options, *limits]) == 0
        return tmp_path / "out/shapeworld-tiny" / tag

    whole, part = train("whole", 3), train("part", 2)
    train("part", 3, "resume=auto")
    rows = [
        [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()] for folder in (whole, part)
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows[0])
    first, second = (read_checkpoint(newest_checkpoint(folder / "ckpts"))["state_dict"] for folder in (whole, part))
    assert first["renderers.volume.occupancy.opacity"].max() > 0
    assert all(torch.equal(value, second[name]) for name, value in first.items())
