"""The full-size recipe with random stand-ins for the weights: what is overridden to try it."""

from pathlib import Path

from .common import write_json

PROMPTS = (
    "a wooden rocking chair with a red cushion",
    "a blue teapot shaped like a whale",
    "a pine tree covered with snow",
    "a small robot that waters a flower",
    "a stack of old leather books",
    "a yellow rubber boot full of tulips",
    "a stone lighthouse on a rock",
    "a knitted owl with button eyes",
)
LIBRARY = "full_size_prompts"
# Sizes that fit the stand-ins of `random_weights.py --width tiny`.
TINY = (
    "system.background.hypernet_config.c_dim=32",
    "data.width=32",
    "data.height=32",
    "data.ray_width=24",
    "data.ray_height=24",
    "data.dim_gaussian=[6,4,8,8]",
    "data.n_steps=1",
    "system.num_parts_training=1",
    "system.guidance.mv_image_size=64",
    "system.guidance.sd_image_size=64",
    "system.guidance.rd_image_size=8",
    "system.geometry.isosurface_resolution=16",
    "system.renderer.isosurface_resolution=16",
    "system.renderer_2nd.patch_size=8",
    "system.renderer_2nd.base_renderer.num_samples_per_ray=8",
    "system.renderer_2nd.base_renderer.num_samples_per_ray_importance=8",
)


def stand_in_overrides(pretrained: Path, prompts: Path, *, tiny: bool = False) -> list[str]:
    """Overrides of a full-size recipe: weights from the folder `pretrained`, prompts from that of `write_prompts`."""
    base, guidance = pretrained / "stable-diffusion-2-1-base", "system.guidance"
    processor = "data.guidance_processor.pretrained_model_name_or_path"
    return [
        f"system.geometry.space_generator_config.pretrained_model_name_or_path={base}",
        f"{processor}={pretrained / 'stable-diffusion-v1-5'}",
        f"{processor}_2nd={base}",
        f"{guidance}.mv_ckpt_path={pretrained / 'sd-v2.1-base-4view.pt'}",
        f"{guidance}.rd_ckpt_path={pretrained / 'nd_mv_ema.ckpt'}",
        f"{guidance}.sd_model_name_or_path={base}",
        f"data.prompt_library_dir={prompts}",
        f"data.prompt_library={LIBRARY}",
        *(TINY if tiny else ()),
    ]


def write_prompts(folder: Path, source: Path | None = None) -> None:
    """A prompt library in `folder`, of the lines of `source` or of ours."""
    lines = [line for line in source.read_text().splitlines() if line.strip()] if source else list(PROMPTS)
    write_json(folder / f"{LIBRARY}.json", {"train": lines, "val": lines[:1], "test": lines})
