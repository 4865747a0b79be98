"""A plain Lightning module and its data, registered as an extension would, and a configuration that trains them."""

from pathlib import Path
from typing import Any

import yaml

MODULE = """
import pytorch_lightning as pl
import torch
from dataclasses import dataclass
from triplaneturbo.base import Component
from triplaneturbo.registry import register

@register("toy-data")
class ToyData(Component, pl.LightningDataModule):
    @dataclass(kw_only=True)
    class Config:
        size: int = 4
        seed: int = -1
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(1000, 3), batch_size=self.cfg.size)

@register("toy-system")
class ToySystem(Component, pl.LightningModule):
    @dataclass(kw_only=True)
    class Config:
        lr: float = 0.1
    def configure(self):
        self.layer = torch.nn.Linear(3, 1)
    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.cfg.lr)
"""


def write_toy(folder: Path) -> Path:
    """The module in folder/toy_extensions, and the configuration, whose path is returned."""
    (folder / "toy_extensions").mkdir()
    (folder / "toy_extensions" / "toy.py").write_text(MODULE)
    config: dict[str, Any] = {
        "name": "toy",
        "tag": "t",
        "exp_root_dir": str(folder / "out"),
        "use_timestamp": False,
        "data_type": "toy-data",
        "system_type": "toy-system",
        "trainer": {"max_steps": 6, "log_every_n_steps": 2, "accelerator": "cpu"},
        "checkpoint": {"every_n_train_steps": 2, "save_top_k": 2},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_distribution(folder: Path, source: str) -> Path:
    """What an installed package with an extension looks like on disk; returns `folder`, for the path."""
    (folder / "toys").mkdir(parents=True)
    (folder / "toys" / "__init__.py").touch()
    (folder / "toys" / "toy.py").write_text(source)
    about = folder / "many_toys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: many-toys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[triplaneturbo.extensions]\ntoy = toys.toy\n")
    return folder
