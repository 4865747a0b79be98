"""The rows of the ablations' tables: what they change of configs/shapeworld/prd.yaml, and for which seeds."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from custom.shapeworld.lengths import stretched
from custom.shapeworld.runs import ROOT
from triplaneturbo.base import as_tree
from triplaneturbo.config import ExperimentConfig, load_config
from triplaneturbo.schedule import Schedule

CONFIGS = ROOT / "configs" / "shapeworld"
SUBSET = 600  # captions
BASE = "base"  # the key of prd.yaml itself
THREE = (0, 1, 2)
TEACHERS = ("richdreamer", "mvdream", "stable_diffusion")

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Trainings of several seeds that are measured together.

    options: what differs from `config`, in the units of its own schedules. captions: how many are learned; None: all.
    """

    name: str
    options: Tree = field(default_factory=dict)
    captions: int | None = SUBSET
    seeds: tuple[int, ...] = (0,)
    config: str = "prd"

    @property
    def key(self) -> str:
        """Of its files; rows that are the same recipe have the same."""
        same = not self.options and self.config == "prd" and self.captions == SUBSET
        return BASE if same else re.sub(r"[^A-Za-z0-9.=]+", "-", f"{self.config}-{self.name}")

    @property
    def trainings(self) -> list["Training"]:
        return [Training(self, seed) for seed in self.seeds]


@dataclass(frozen=True)
class Training:
    """One of a row's."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name} seed{self.seed}"


def system(**options: Any) -> Tree:
    return {"system": options}


def teachers(**options: Any) -> Tree:
    return system(guidance={"teachers": options})


def of_all_teachers(rule: Tree) -> Tree:
    return teachers(**{name: {"rule": rule} for name in TEACHERS})


def _rule(name: str, **options: Any) -> Tree:
    return {"type": name, **options, "weighting": "dmd", "eps": 0.1}


def _generator(**options: Any) -> Tree:
    return system(geometry={"space_generator": options})


@lru_cache
def _recipe(name: str) -> ExperimentConfig:
    return load_config([CONFIGS / f"{name}.yaml"])


def _times(schedule: Schedule, factor: float) -> Any:
    """A schedule with all values times a factor, as it is written."""
    return replace(schedule, points=tuple((time, value * factor) for time, value in schedule.points)).as_written()


def steps() -> list[Row]:
    def rounds(k: int) -> Tree:
        return system(rounds=k, training_timesteps=k, inference_steps=k)

    return [Row(name=f"K={k}", options={} if k == 4 else rounds(k), seeds=THREE) for k in (1, 2, 4)]


def adapters() -> list[Row]:
    plain = _generator(self_attention="shared_lora", decoder_attention="shared_lora")
    groups = _recipe("prd").system.cfg.optimizer.params
    slower = {part: {"lr": _times(group.lr, 0.1)} for part, group in groups.items()}
    careful = {"system": {**_generator(full=True)["system"], "optimizer": {"params": slower}}}
    return [
        Row(name="plane-wise adapters", seeds=THREE),
        Row(name="plain LoRA", options=plain, seeds=THREE),
        Row(name="full fine-tuning", options=_generator(full=True), seeds=THREE),
        Row(name="full fine-tuning, learning rates / 10", options=careful, seeds=THREE),
    ]


def without_teachers() -> list[Row]:
    names = {"Stable Diffusion": "stable_diffusion", "MVDream": "mvdream", "normal-depth": "richdreamer"}
    left_out = [Row(name=f"without {said}", options=teachers(**{name: None})) for said, name in names.items()]
    return [Row(name="all three"), *left_out]


def renderers() -> list[Row]:
    mesh_alone = system(renderers={"volume": None}, losses={"volume": None})
    return [
        Row(name="both"),
        Row(name="volume alone", options=system(renderers={"mesh": None})),
        Row(name="mesh alone", options=mesh_alone),
    ]


def rules() -> list[Row]:
    return [
        Row(name=name.upper(), options={} if name == "sds" else of_all_teachers(_rule(name)), seeds=THREE)
        for name in ("sds", "csd", "asd")
    ]


def prompts() -> list[Row]:
    return [Row(name=f"{n or 'all'} captions", captions=n) for n in (10, 100, 1000, None)]


def guidance() -> list[Row]:
    return [
        Row(
            name=f"scale {scale:g}, weight {weight:g}",
            options={}
            if (scale, weight) == (2.5, 1)
            else teachers(mvdream={"guidance_scale": scale, "weight": weight}),
        )
        for scale in (1.0, 2.5, 10.0)
        for weight in (0.5, 1.0, 2.0)
    ]


def bound() -> list[Row]:
    return [Row(name="three teachers"), Row(name="exact pictures in place of teachers", config="bound")]


def recipe() -> list[Row]:
    """What is changed is taken from published.yaml, as it is in as many updates as prd.yaml has."""
    prd = _recipe("prd")
    published = stretched(_recipe("published"), prd.trainer["max_steps"] / _recipe("published").trainer["max_steps"])
    judges = {name: as_tree(teacher.cfg) for name, teacher in published.system.cfg.guidance.cfg.teachers.items()}
    published_rules = {name: {"rule": judge["rule"]} for name, judge in judges.items()}
    scales = {name: {"guidance_scale": judge["guidance_scale"]} for name, judge in judges.items()}
    given, groups = published.system.cfg.optimizer, prd.system.cfg.optimizer.params
    parts = {part: as_tree(given.params[part]) if part in given.params else None for part in groups}
    adan = {"name": given.name, "args": as_tree(given.args), "params": parts}
    environment = as_tree(published.system.cfg.background)
    as_geometry = {"params": {"background": as_tree(groups["geometry"])}}
    return [
        Row(name="prd.yaml"),
        Row(name="published rules", options=teachers(**published_rules)),
        Row(name="Adan", options=system(optimizer=adan)),
        Row(name="one update for all rounds", options=system(update_every_round=False)),
        Row(name="published guidance scales", options=teachers(**scales)),
        Row(name="without EMA", options=system(ema_decay=0.0)),
        Row(name="background from the prompt", options=system(background=environment, optimizer=as_geometry)),
        Row(name="published.yaml", config="published"),
    ]


TABLES: Mapping[str, Callable[[], list[Row]]] = {
    "steps": steps,
    "adapters": adapters,
    "teachers": without_teachers,
    "renderers": renderers,
    "rules": rules,
    "bound": bound,
    "prompts": prompts,
    "guidance": guidance,
    "recipe": recipe,
}
