"""Terms of the loss of given pictures, and their sum with weights that follow schedules."""

import pytest
import torch
from golden_case import Case
from workbench import Workbench

from custom.scaledreamer.losses import translate_losses
from triplaneturbo.losses.base import LossConfig, Objective
from triplaneturbo.types import Views

# What the pictures are differentiated by: names in a case, and of what stands in `Views.extras`.
_EXTRAS = ("sdf_grad", "normal", "weights", "t_dirs", "z_variance", "inv_std")
# The fixed weight of the normal picture's distillation, which the stage coarse+geometry adds.
_OF_NORMALS = {"multi": 0.2, "single": 0.5}


def scene_losses(case: Case, workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = case.meta
    inputs = {name: case[f"in_{name}"].clone().requires_grad_() for name in case.with_prefix("in_")}
    opacity = inputs["opacity"]
    views = Views(
        rgb=inputs["comp_rgb"],
        normal=inputs["comp_normal"],
        disparity=torch.zeros_like(opacity),
        opacity=opacity,
        depth=torch.zeros_like(opacity),
        extras={name: inputs[name] for name in _EXTRAS},
    )
    config = LossConfig.parse(translate_losses(meta["lambdas"], "loss"), "losses")
    score, progress = config.score(case.progress), case.progress
    weights = {f"lambda_{name}": term.cfg.weight(progress) for name, term in config.terms.items()}
    weights["lambda_asd"] = score
    for name, recorded in meta["weights_now"].items():
        case.require(f"weights_now: {name}", abs(weights[name] - recorded) <= 1e-9 * max(1.0, abs(recorded)))
    case.require("weights_now", weights.keys() == meta["weights_now"].keys())

    terms, values = Objective(config)(views, progress)
    case.require("terms", {*values, "asd"} >= set(case.with_prefix("term_")))
    for name, value in values.items():
        case.close(f"term_{name}", value, 1e-5)
    case.close("term_asd", torch.tensor(meta["loss_asd"]), 1e-5)
    distilled = meta["loss_asd"]
    if case.option("stage", "coarse", "coarse+geometry") == "coarse+geometry":
        distilled *= 1 + _OF_NORMALS[meta["which"]]
    case.option("which", *_OF_NORMALS)
    total = score * distilled + terms
    case.close("total", total, 1e-5)
    total.backward()
    for name in case.with_prefix("grad_"):
        case.close(f"grad_{name}", inputs[name].grad, 1e-5)
