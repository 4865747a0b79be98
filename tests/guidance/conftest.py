"""Tiny teachers in diffusers folders."""

import pytest
import torch
from miniature import unet, vae
from tiny_teachers import write_scheduler


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the three teachers, by the prefix of their options."""
    root = tmp_path_factory.mktemp("teachers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name in ("sd", "mv", "rd"):
            unet(camera=name != "sd").save_pretrained(root / name / "unet")
            write_scheduler(root / name)
            if name != "rd":
                vae().save_pretrained(root / name / "vae")
    return {name: str(root / name) for name in ("sd", "mv", "rd")}
