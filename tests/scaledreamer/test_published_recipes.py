"""The eight published configurations as whole systems, on the meta device: full size, no memory, no weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "custom/scaledreamer/configs").glob("asd_*.yaml"))
# Trained parameters of geometry and background; steps; prompts in a step; views of each.
SIZES = {
    "asd_sd_hyper_iNGP_50k": (12_948_464, 342_336, 50_000, 1, 1),
    "asd_sd_3dconv_net_50k": (88_686_923, 448, 50_000, 1, 1),
    "asd_sd_3dconv_net_100k": (88_686_923, 448, 100_000, 1, 1),
    "asd_sd_3dconv_net_300k": (144_798_155, 448, 300_000, 1, 1),
    "asd_mv_triplane_transformer_10k": (120_564_480, 448, 100_000, 2, 4),
    "asd_mv_triplane_transformer_10k_1GPU": (120_564_480, 448, 50_000, 8, 4),
    "asd_sd_nerf": (12_604_272, 1_581_616, 25_000, 1, 1),
    "asd_mv_nerf": (12_604_272, 1_581_616, 25_000, 1, 4),
}


def experiment(path: Path) -> Any:
    import_extensions(ROOT / "custom")
    return load_config([path], [] if "nerf" in path.stem else ["data.prompt_library=some_library"])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_at_its_published_size_and_trains_all_of_it(path: Path) -> None:
    config = experiment(path)
    with torch.device("meta"):
        system = config.system.build()
    system.configure_optimizers()
    trained = {id(p) for group in system.scheduled_optimizer.optimizer.param_groups for p in group["params"]}
    counts = []
    for part in (system.geometry, system.background):
        counts.append(sum(p.numel() for p in part.parameters()))
        assert all(id(p) in trained for p in part.parameters())
    data = config.data.cfg
    n_view = data.cameras.cfg.n_view
    prompts = data.batch_size // n_view * config.system.cfg.gradient_accumulation_steps
    assert (*counts, config.trainer["max_steps"], prompts, n_view) == SIZES[path.stem]


def test_all_eight_are_there() -> None:
    assert {path.stem for path in RECIPES} == SIZES.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_timesteps_fall_over_the_whole_run(path: Path) -> None:
    config = experiment(path)
    ((_, teacher),) = as_tree(config.system)["guidance"]["teachers"].items()
    start = 1 if "300k" in path.stem else 0
    assert teacher["min_timestep"] == [start, 0.5, 0.02, config.trainer["max_steps"]]
    assert teacher["max_timestep"] == [start, 0.98, 0.5, config.trainer["max_steps"]]
    assert teacher["rule"].items() >= {"type": "asd", "ratio": 0.1, "random": True, "weighting": "sds"}.items()
    single_views = teacher["type"] == "stable-diffusion"
    assert single_views == teacher["text_by_view"] == ("_sd_" in path.stem)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_camera_sees_the_object(path: Path) -> None:
    """Rays are followed to behind the start shape, of radius 0.8 at most, from the farthest camera."""
    config = experiment(path)
    cameras = config.data.cfg.cameras.cfg
    farthest = cameras.distance[1]
    if cameras.relative_distance:
        farthest /= math.tan(math.radians(cameras.fovy[0]) / 2)
    renderer = as_tree(config.system)["renderers"]["volume"]
    in_box = renderer["ray_range"] == "box" and renderer["estimator"] == "importance"  # the planes do not matter
    assert in_box or renderer["far_plane"] >= farthest + 0.8


def test_one_recipe_says_everything_and_the_others_what_differs() -> None:
    lengths = {path.stem: len(path.read_text().splitlines()) for path in RECIPES}
    assert lengths.pop("asd_sd_hyper_iNGP_50k") <= 80
    assert max(lengths.values()) <= 45
