"""Launch with one mistake in the configuration after the other, and see that each is refused with one message.

    python scripts/test/config_storm.py CONFIG.yaml --out DIR [--every N] [key=value ...]

Mistakes are made from the configuration classes, for every option of every component that CONFIG names: a value of
another type, null, a number that is not finite, far outside or just outside what is declared, a list for a number, a
misspelt name; and by hand, for what no class declares: the trainer, files, extensions, interpolations. Each is
launched in this process, through the command line, up to where training would start. Outcomes:

    refused     exit code 2 and a message
    ran         training would have started
    traceback   another exception: its last line is shown

Succeeds if everything was refused. --every N: only each N-th of the mistakes that the classes give.
"""

import argparse
import contextlib
import io
import logging
import math
import sys
import traceback
import types
import typing
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

from triplaneturbo import cli, launcher
from triplaneturbo.base import Chosen
from triplaneturbo.bounds import Range
from triplaneturbo.config import load_config
from triplaneturbo.extensions import import_extensions
from triplaneturbo.losses import LossConfig
from triplaneturbo.schedule import Schedule
from triplaneturbo.systems.prd import ProgressiveRenderingDistillation


@dataclass(frozen=True)
class Mistake:
    """kind: for the table. overrides: key=value texts; {out} stands for a folder with `files`, of which a `.yaml` is a
    further --config and a `.py` an extension."""

    kind: str
    overrides: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()


# Mistakes that no class declares.
BILLION = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "data:\n  z0: xxxxxxxxxx\n" + "".join(f"  z{i + 1}: '{('${data.z' + str(i) + '}') * 10}'\n" for i in range(9))
BY_HAND = (
    *(
        Mistake("trainer", (f"trainer.{option}",))
        for option in (
            "precision=bf16",
            "precision=16-mixed",
            "precision=64",
            "precision=99",
            "precision=bf17",
            "precision=[16]",
            "accelerator=tpu",
            "accelerator=gpux",
            "accelerator=5",
            "max_time=5",
            "max_time=soon",
            "max_time={days: x}",
            "max_steps=-5",
            "max_steps=many",
            "max_steps=1.5",
            "max_steps=null",
            "max_epochs=-7",
            "devices=0",
            "devices=3x",
            "devices=-2",
            "devices=[a]",
            "devices=100000",
            "num_nodes=0",
            "num_nodes=-1",
            "num_nodes=two",
            "strategy=nonsense",
            "strategy=[ddp]",
            "log_every_n_steps=0",
            "log_every_n_steps=-3",
            "val_check_interval=0",
            "val_check_interval=-4",
            "limit_val_batches=-1",
            "limit_test_batches=1.5",
            "num_sanity_val_steps=-9",
            "gradient_clip_val=1.0",
            "gradient_clip_val=-1",
            "accumulate_grad_batches=0",
            "accumulate_grad_batches=4",
            "profiler=fast",
            "callbacks=[]",
            "logger=false",
            "enable_checkpointing=true",
            "barebones=5",
            "detect_anomaly=maybe",
            "max_step=5",
            "deterministic=sure",
        )
    ),
    *(
        Mistake("structure", (text,))
        for text in (
            "system=[]",
            "system=5",
            "system=null",
            "data=[]",
            "data=x",
            "trainer=[]",
            "trainer=7",
            "checkpoint=[1]",
            "system.geometry=[]",
            "system.geometry=3",
            "system.optimizer=[1]",
            "system.optimizer.params={geometry: 5}",
            "system.optimizer.params={nowhere: {lr: 1}}",
            "system.optimizer.params={geometry: {lr: 1e30}}",
            "system.optimizer.params={geometry: {lr: [0, 1e-3, -1, 10]}}",
            "system.optimizer.params={geometry: {betas: [0.9, 0.9]}}",
            "system.optimizer.args.betas=[0.9]",
            "system.optimizer.args.amsgrad=true",
            "system.optimizer.name=SGD",
            "system.loss.lambda_nothing=1",
            "system.loggers.wandb=5",
            "system.loggers.wandb.enable=true",
            "system_type=nothing",
            "data_type=[]",
            "system.renderer_type=nothing",
            "data.prompt_library=nowhere",
            "data.prompts=[]",
            "data.prompts=[1]",
            "seed=-1",
            "seed=99999999999",
            "seed=0.5",
            "compat=both",
            "resume=nowhere.ckpt",
            "resume=/",
            "exp_root_dir=/dev/null",
            "name=../../esc",
            "name=/tmp/esc",
            "tag=../esc",
            "tag=" + "x" * 300,
            "timestamp=../esc",
            "name=a\0b",
            "checkpoint.every_n_train_steps=0",
            "checkpoint.save_top_k=-2",
            "system.weights=nowhere.ckpt",
            "system.guidance.mv_ckpt_path=nowhere",
            "system.scheduler_dir=elsewhere",
            "data.n_steps=3",
            "system.num_parts_training=3",
            "data.batch_size=3",
            "system.guidance.n_view=3",
            "system.guidance.min_step_percent=0.99",
            "system.guidance.min_step_percent=[0, 0.1, 0.99, 100]",
            "system.renderer_2nd.base_renderer.inv_std=[0, 40, -1, 100]",
            "system.renderer_2nd.base_renderer.inv_std=[5, 40, 50, 5]",
            "system.renderer_2nd.base_renderer.near_plane=9",
            "data.unsup_fovy_range=[60, 50]",
            "data.unsup_fovy_range=[0, 60]",
            "data.unsup_fovy_range=[60, 180]",
            "data.unsup_camera_distance_range=[0, 0]",
            "data.unsup_camera_distance_range=[-1, 1]",
            "data.unsup_elevation_range=[-91, 0]",
            "data.dim_gaussian=[5, 4, 16, 16]",
            "data.dim_gaussian=[6, 0, 16, 16]",
            "data.dim_gaussian=[6, 4, 16, 99999999]",
            "system.background.color=[2, 0, 0]",
            "system.geometry.sdf_bias_params=0",
            "system.geometry.sdf_bias_params=[1, 1]",
            "system.geometry.space_generator_config.training_type=lora",
            "system.guidance.plus_schedule=cubic",
            "system.guidance.plus_schedule=sqrt_-5",
            "system.exporter.save_name=../up",
            "system.exporter.turntable_views=3",
            "data.type=[]",
            "system.type=nothing",
            "system.type=mesh",
            "system.renderers.mesh.type=unlit",
            "system.losses.nowhere.eikonal=1",
            "system.losses.volume.nothing=1",
            "system.guidance.teachers.mvdream.path=nowhere",
            "system.guidance.teachers.mvdream.n_view=3",
            "system.guidance.teachers.mvdream.min_timestep=0.99",
            "system.guidance.teachers.mvdream.condition=nowhere",
            "system.guidance.teachers.mvdream.text_by_view=true",
            "system.guidance.teachers.mvdream.rule=vsd",
            "system.guidance.teachers.mvdream.rule={type: asd, growth: cubic}",
            "system.guidance.teachers.mvdream.label=richdreamer",
            "data.generator_condition=nowhere",
            "data.camera_sets=3",
            "data.cameras.fovy=[60, 50]",
            "system.rounds=3",
            "noequals",
            "=",
            "..=1",
            "[=1",
            "system.=1",
            "a b=1",
            "system.seed=[",
            "system.seed={",
            "system.seed=" + "[" * 3000,
        )
    ),
    *(
        Mistake("interpolation", (text,))
        for text in (
            "data.height='${mul:aaaaaaaaaa,1000000000}'",
            "data.height='${mul:[1,2],1000000000}'",
            "data.height='${mul:1e200,1e200}'",
            "data.height='${calc_exp_lr_decay_rate:10,1e-300}'",
            "data.height='${calc_exp_lr_decay_rate:-2,3}'",
            "data.height='${div:1,0}'",
            "data.height='${data.height}'",
            "data.height='${nowhere}'",
            "data.height='${nothing:1}'",
            "data.height='${'",
            "tag='${oc.env:A_VARIABLE_THAT_NOBODY_SETS}'",
        )
    ),
    Mistake("file", files=(("bomb.yaml", BILLION),)),
    Mistake("file", files=(("chain.yaml", CHAIN),)),
    Mistake("file", files=(("itself.yaml", "data: &a {x: *a}\n"),)),
    Mistake("file", files=(("deep.yaml", "data: " + "[" * 5000 + "]" * 5000),)),
    Mistake("file", files=(("long.yaml", "seed: " + "1" * 5000),)),
    Mistake("file", files=(("tag.yaml", "seed: !!python/object/apply:os.system ['true']\n"),)),
    Mistake("file", files=(("twice.yaml", "seed: 1\nseed: 2\n"),)),
    Mistake("file", files=(("list.yaml", "[1, 2]"),)),
    Mistake("file", files=(("bytes.yaml", "seed: \x07"),)),
    *(
        Mistake("library", ("data.prompt_library=deep", "data.prompt_library_dir={out}"), (("deep.json", text),))
        for text in ("[" * 200_000 + "]" * 200_000, '{"train": ' * 9_000, "1" * 9_000, '{"train": [1]}', "\x00", "[]")
    ),
    *(
        Mistake("extension", files=(("module.py", text),))
        for text in (
            "import sys; sys.exit(0)",
            "raise SystemExit",
            "def f(): f()\nf()",
            "x = (",
            "import module_that_is_nowhere",
            "from triplaneturbo.registry import register\n\n@register('mine')\nclass Mine: ...\n",
            "from triplaneturbo.registry import register\nfrom triplaneturbo.materials import Material\n\n"
            "@register('unlit')\nclass Mine(Material): ...\n",
        )
    ),
)


def by_type(hint: Any, place: str) -> Iterator[str]:
    """Overrides of the option at `place` that its declared type forbids."""
    if get_origin(hint) is typing.Annotated:
        yield from by_type(hint.__origin__, place)
        for rule in (rule for rule in hint.__metadata__ if isinstance(rule, Range)):
            yield from (f"{place}={value}" for value in outside(rule, hint.__origin__))
    elif get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        # What one kind forbids another may allow; what is no kind at all is left.
        forbidden = by_type(kinds[0], place) if len(kinds) == 1 else [f"{place}={{a: {{b: [c]}}}}"]
        yield from (text for text in forbidden if not text.endswith("=null"))
    elif get_origin(hint) is Literal:
        yield from (f"{place}=nonsense", f"{place}=[1]", f"{place}={{a: 1}}")
    elif get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        yield from (f"{place}=5", f"{place}=[]", f"{place}=[{', '.join(['x'] * len(get_args(hint)))}]")
    elif hint is bool:
        yield from (f"{place}={value}" for value in ("5", "maybe", "null", "[true]"))
    elif hint in (int, float, Schedule):
        yield from (f"{place}={value}" for value in ("many", "true", "[]", "{a: 1}", ".nan", ".inf", "'1e400'"))
        if hint is not Schedule:
            yield from (f"{place}=null", f"{place}=[1, 2]")
        if hint is int:
            yield f"{place}=1.5"
    elif hint is str or get_origin(hint) in (list, dict) or hint in (list, dict):
        yield from (f"{place}=5", f"{place}=true")


def outside(rule: Range, kind: Any) -> Iterator[str]:
    """Numbers that `rule` forbids, next to its ends and far away; for a schedule also as its end."""
    step = 1 if kind is int else 1e-3
    numbers: list[float] = []
    if math.isfinite(rule.low):
        numbers += [rule.low if rule.above else rule.low - step, -(10**9)]
    if math.isfinite(rule.high):
        numbers += [rule.high if rule.below else rule.high + step * max(1, rule.high), 10**30]
    if rule.even:
        numbers.append(rule.low + 1)
    for number in numbers:
        yield str(int(number)) if kind is int else str(float(number))
        if kind is Schedule:
            yield f"[0, {rule.high if math.isfinite(rule.high) else rule.low + 1}, {float(number)}, 10]"


def of_config(config: Any, place: str) -> Iterator[str]:
    """Overrides that the class of a configuration at `place`, and those of the components it names, forbid."""
    yield f"{place}a_name_that_is_not_there=1"
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value, here = getattr(config, field.name), f"{place}{field.name}"
        blocks = value.items() if isinstance(value, dict) else [("", value)]
        inner = [(f"{here}.{name}" if name else here, block) for name, block in blocks if _has_options(block)]
        if inner:
            yield from (f"{here}=5", f"{here}=[1]")
        else:
            yield from by_type(hints[field.name], here)
        for where, block in inner:
            yield from of_block(block, where)


def of_block(block: Any, place: str) -> Iterator[str]:
    """Those of a component, of a plain mapping of options, or of a renderer's losses."""
    if isinstance(block, Chosen):
        yield from (f"{place}.type=a_name_that_is_not_there", f"{place}.type=[1]")
        yield from of_config(block.cfg, f"{place}.")
    elif isinstance(block, LossConfig):
        yield f"{place}.a_name_that_is_not_there=1"
        for name, term in block.terms.items():
            yield from of_config(term.cfg, f"{place}.{name}.")
    else:
        yield from of_config(block, f"{place}.")


def _has_options(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, (Schedule, type))


def mistakes(config: str, overrides: list[str], every: int) -> list[Mistake]:
    """Those of the classes that `config` uses, and those by hand."""
    found = list(of_config(load_config([config], overrides), ""))
    found = [text for text in found if not text.startswith("n_gpus=")]  # the launcher sets it, whatever is given
    return [*(Mistake("option", (text,)) for text in found[::every]), *BY_HAND]


class Started(BaseException):
    """Training would have begun."""


def start(*_: Any) -> None:
    """In place of a training step."""
    raise Started


def attempt(config: str, overrides: list[str], mistake: Mistake, out: Path) -> tuple[str, str]:
    """The outcome of a launch with `mistake`, and what was said."""
    extensions = out / f"extensions_{out.name}"
    for name, text in mistake.files:
        path = (extensions if name.endswith(".py") else out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    configs = [config, *(str(out / name) for name, _ in mistake.files if name.endswith(".yaml"))]
    command = [text for path in configs for text in ("--config", path)]
    command += ["--train", *overrides, f"exp_root_dir={out}", "use_timestamp=false"]
    command += [text.replace("{out}", str(out)) for text in mistake.overrides]
    said = io.StringIO()
    folder = extensions if extensions.is_dir() else launcher.CUSTOM_FOLDER
    with (
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
        patch.object(launcher, "CUSTOM_FOLDER", folder),
        patch.object(ProgressiveRenderingDistillation, "training_step", start),
    ):
        try:
            code = cli.launch(command)
        except Started:
            return "ran", ""
        except SystemExit as error:  # of the parser of the command line
            code = error.code
        except BaseException as error:
            return "traceback", traceback.format_exception_only(error)[-1].strip()
    lines = said.getvalue().strip().splitlines()
    message = next((line for line in lines if line.startswith("launch.py: ")), lines[-1] if lines else "")
    return ("refused" if code == 2 and message else "ran"), message


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--out", type=Path, required=True, help="folder for what the launches write")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--show", action="store_true", help="every mistake with its message")
    flags, overrides = parser.parse_known_args()
    logging.disable(logging.WARNING)
    import_extensions(launcher.CUSTOM_FOLDER)
    tried = mistakes(flags.config, overrides, flags.every)
    counts: Counter[tuple[str, str]] = Counter()
    for number, mistake in enumerate(tried):
        folder = flags.out.resolve() / str(number)
        folder.mkdir(parents=True)
        outcome, said = attempt(flags.config, overrides, mistake, folder)
        counts[mistake.kind, outcome] += 1
        if flags.show or outcome != "refused":
            what = " ".join(mistake.overrides) or f"{mistake.files[0][0]}: {mistake.files[0][1]!r}"
            print(f"{outcome:10}{what[:100]}\n          {said[:200]}", flush=True)
    outcomes = ("refused", "ran", "traceback")
    print(f"{'mistakes':14}{'tried':>8}" + "".join(f"{outcome:>11}" for outcome in outcomes))
    for kind in dict.fromkeys(mistake.kind for mistake in tried):
        row = [counts[kind, outcome] for outcome in outcomes]
        print(f"{kind:14}{sum(row):8}" + "".join(f"{count:11}" for count in row))
    row = [sum(count for (_, outcome), count in counts.items() if outcome == wanted) for wanted in outcomes]
    print(f"{'all':14}{sum(row):8}" + "".join(f"{count:11}" for count in row))
    return int(row[0] != len(tried))


if __name__ == "__main__":
    sys.exit(main())
