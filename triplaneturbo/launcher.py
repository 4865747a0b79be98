"""From a configuration to a running trainer: build the data module and the system, then fit, check or export."""

import dataclasses
import inspect
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from transformers.utils import logging as transformers_logging

from triplaneturbo.base import convert
from triplaneturbo.bounds import Range
from triplaneturbo.config import ExperimentConfig, Reading, read_config
from triplaneturbo.errors import ConfigError, UnknownNameError, nearest
from triplaneturbo.extensions import import_extensions
from triplaneturbo.host import keep_freed_memory
from triplaneturbo.interruption import FILES, NOTHING, interruption
from triplaneturbo.ops import backends
from triplaneturbo.performance import Performance, current, use
from triplaneturbo.places import PROJECT
from triplaneturbo.storage import require_writable
from triplaneturbo.systems.callbacks import ProgressReport, RunCard
from triplaneturbo.systems.checkpoint import AtomicCheckpointIO, Checkpointer
from triplaneturbo.systems.losslog import EventLog, LossLog
from triplaneturbo.trial import Trial, TrialGuard, choose, enter_trial
from triplaneturbo.types import Run

log = logging.getLogger(__name__)

CUSTOM_FOLDER = PROJECT / "custom"
# Numbers of the trainer that have a meaning; their types are those that Lightning declares.
_TRAINER_RANGES = {
    **dict.fromkeys(("max_steps", "max_epochs", "num_sanity_val_steps"), Range(-1)),
    **dict.fromkeys(("log_every_n_steps", "accumulate_grad_batches", "check_val_every_n_epoch"), Range(1)),
    **dict.fromkeys((f"limit_{what}_batches" for what in ("train", "val", "test", "predict")), Range(0)),
    **dict.fromkeys(("min_steps", "min_epochs", "overfit_batches", "gradient_clip_val"), Range(0)),
    "num_nodes": Range(1, 2**16),
    "reload_dataloaders_every_n_epochs": Range(0),
}
# What the launcher decides itself.
_OWN_TRAINER_OPTIONS = ("logger", "callbacks", "plugins", "enable_checkpointing", "inference_mode", "default_root_dir")
# Warnings about things that are meant: frozen parts stay in eval mode, cameras are cheap to make, the data stream
# continues by its own counter, a run limited by time may be continued without that limit, and Lightning sets DDP up
# on a CUDA stream of its own.
_NOISE = (
    r"Found \d+ module\(s\) in eval mode",
    r".*does not have many workers",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*your dataloader is not resumable",
    r".*callbacks used to create the checkpoint need to be provided",
    r"The AccumulateGrad node's stream does not match",
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One call of launch.py.

    configs: YAML files. overrides: key=value texts. prompts: in place of a prompt library. out: where an export goes,
    a folder a prompt. gpus: the devices that were asked for, as in CUDA_VISIBLE_DEVICES, which is set to it.
    """

    mode: Literal["train", "validate", "test", "export", "show"]
    configs: Sequence[str]
    overrides: Sequence[str] = ()
    prompts: Sequence[str] = ()
    out: str | None = None
    gpus: str | None = None
    verbose: bool = False


def launch(request: Launch) -> None:
    """Run `request`.

    Raises:
        ConfigError: configuration, extension, or command line cannot be used.
    """
    _set_up_logging(request.verbose)
    reading = read_configuration(request)
    experiment = reading.experiment()
    training = request.mode == "train"
    interruption.remains = NOTHING if training else FILES
    use(Performance(experiment.performance, experiment.precision))
    backends.use(experiment.backends)
    log_differences(reading)
    trainer = build_trainer(experiment)
    if current().ways.memory_kept and trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    with enter_trial(reading, experiment, trainer, training=training) as trial:
        _launch(request, trial, trainer)


def _launch(request: Launch, trial: Trial, trainer: pl.Trainer) -> None:
    experiment, training = trial.experiment, request.mode == "train"
    pl.seed_everything(experiment.seed, workers=True, verbose=False)
    loggers = _loggers(experiment) if training else []  # first: it takes no time to see that one cannot be had
    run = Run(experiment.seed, experiment.trial_dir / "save", Path(request.out) if request.out else None)
    datamodule, system = experiment.data.build(), experiment.system.build()
    for part in (datamodule, system):
        if hasattr(part, "enter"):  # a plain module of Lightning has nothing of it
            part.enter(run)
    require_writable(Path(request.out) if request.out else experiment.trial_dir)
    if training:
        if trainer.is_global_zero:
            trial.record(request.configs)
        trainer.loggers = loggers
        own = [TrialGuard(trial), *_callbacks(experiment)]
        trainer.callbacks[:0] = own  # type: ignore[attr-defined]  # Lightning sets the list without declaring it
    if not (training or trial.checkpoint or getattr(experiment.system.cfg, "weights", None)):
        log.warning("neither resume= nor system.weights= is given: what is trained is still at its start values")
    _run(request.mode, trainer, system, datamodule, trial.checkpoint)


def show(request: Launch) -> None:
    """Print the whole configuration of `request`, and where each value comes from."""
    print(read_configuration(request).show())  # noqa: T201 - what it is for


def read_experiment(request: Launch) -> tuple[ExperimentConfig, Path | None]:
    """The configuration of `request` with its trial named, and the checkpoint to start from, see `trial.choose`."""
    return choose(read_configuration(request).experiment())


def read_configuration(request: Launch) -> Reading:
    """Import the extensions, and read the tree of `request`, with the number of processes in it."""
    import_extensions(Path.cwd() / "custom", CUSTOM_FOLDER)
    overrides = list(request.overrides)
    values: dict[str, Any] = {}
    _require_gpus(request.gpus)
    if request.prompts:
        values["data"] = {"prompts": list(request.prompts)}
        overrides = ["data.prompt_library=prompts", *overrides]
    reading = read_config(request.configs, overrides, n_gpus=1, **values)
    processes = count_processes(trainer_options(reading.experiment()))
    return reading if processes == 1 else read_config(request.configs, overrides, n_gpus=processes, **values)


def log_differences(reading: Reading) -> None:
    """Say in what the results of an original configuration are not the original's, if there is anything to say."""
    if reading.differences:
        width = max(map(len, reading.differences))
        rows = [f"  {name:{width}}  {line}" for name, line in reading.differences.items()]
        log.info(
            "results differ from the original's as follows (docs/compat.md); compat=original repeats the original's, "
            "compat=right leaves out this list\n%s",
            "\n".join(rows),
        )


def _require_gpus(gpus: str | None) -> None:
    """CUDA leaves out devices that are not there, and torch then runs on fewer of them or on the CPU."""
    if gpus is None:
        return
    found, wanted = torch.cuda.device_count(), len(gpus.split(","))
    if found != wanted:
        raise ConfigError(f"--gpu {gpus}: {found} of these {wanted} devices can be used; leave --gpu out to use all")


def build_trainer(experiment: ExperimentConfig) -> pl.Trainer:
    """The Lightning trainer of `experiment`, without loggers and callbacks: the folder is not yet known.

    Raises:
        ConfigError: an option of the trainer cannot have its value.
    """
    options = trainer_options(experiment)
    if options.get("deterministic"):
        _keep_determinism_fast()
    try:
        # Under SLURM it looks for checkpoints of its own in the folder that is given here.
        folder = experiment.exp_dir
        checkpoints = AtomicCheckpointIO()
        trainer = pl.Trainer(**options, logger=False, callbacks=[], plugins=checkpoints, default_root_dir=folder)
    except Exception as error:  # of whatever kind: nothing but the options can be wrong
        raise ConfigError(f"{_refused_trainer_option(experiment)}: {error}") from error
    # Its handlers would stop in the middle of an accumulated update, and under SLURM save there.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]  # on purpose
    if trainer.strategy.launcher is not None:
        interruption.signal_children = trainer.strategy.launcher.kill
    return trainer


def _refused_trainer_option(experiment: ExperimentConfig) -> str:
    """What to say of an option without which the trainer can be made; of all, if there is no single one."""
    for key, value in experiment.trainer.items():
        others = {name: value for name, value in experiment.trainer.items() if name != key}
        options = trainer_options(dataclasses.replace(experiment, trainer=others))
        try:
            pl.Trainer(**options, logger=False)
        except Exception:  # then another option is the one
            continue
        return f"trainer.{key} cannot be {value!r}"
    return "options under trainer cannot have their values"


def _keep_determinism_fast() -> None:
    """What torch does for `trainer.deterministic` that costs time and gives nothing here."""
    # New tensors are filled with NaN, to show what is read before it is written: as many launches again.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of a module
    # The repeatable gradient of this attention is many times slower for the one wide head of autoencoders. What torch
    # takes in its place needs more memory where networks run in float32.
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def trainer_options(experiment: ExperimentConfig) -> dict[str, Any]:
    """Arguments of the Lightning trainer: those of the configuration, completed for this machine.

    All visible GPUs, or the CPU if there is none; under torchrun as many processes and machines as it has started.
    `strategy: ddp` on a single device needs no process group.

    Raises:
        UnknownNameError: an option the trainer does not have.
        ConfigError: an option the launcher decides itself.
    """
    options = dict(experiment.trainer)
    allowed = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    types = get_type_hints(pl.Trainer.__init__)
    for key, value in options.items():
        if key in _OWN_TRAINER_OPTIONS:
            raise ConfigError(f"trainer.{key} is decided by the launcher; remove it")
        if key not in allowed:
            raise UnknownNameError(f"trainer has no option {key!r}; {nearest(str(key), allowed)}")
        number = convert(types[key], value, f"trainer.{key}")
        if key in _TRAINER_RANGES and number is not None:
            _TRAINER_RANGES[key](number, f"trainer.{key}")
    if options.get("val_check_interval") == 0:
        raise ConfigError("trainer.val_check_interval is 0; for no validation give trainer.limit_val_batches=0")
    if options.get("accelerator", "auto") == "auto":
        options["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    if TorchElasticEnvironment.detect():
        options = _as_torchrun_started(options)
    options.setdefault("devices", 1 if options["accelerator"] == "cpu" else -1)
    if str(options.get("strategy", "auto")).startswith("ddp") and count_processes(options) == 1:
        options["strategy"] = "auto"
    # Batches are counted from the start of training, whatever the size of the prompt library.
    options.setdefault("check_val_every_n_epoch", None if "val_check_interval" in options else 1)
    if options.get("max_steps", -1) < 0 and "max_epochs" not in options and "max_time" in options:
        options["max_epochs"] = -1
    return options | {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,  # normals are gradients
        "use_distributed_sampler": False,
    }


def _as_torchrun_started(options: dict[str, Any]) -> dict[str, Any]:
    """`options` with the devices and machines that there are.

    Raises:
        ConfigError: they say others; or torchrun shall start processes again, and would let them look for each other
            where they were.
    """
    processes, here, restarts = (
        int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_MAX_RESTARTS")
    )
    # Of the store that torchrun lends, which outlives its processes, with the addresses that they had (torch 2.13).
    if restarts and processes > 1 and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        raise ConfigError(
            f"torchrun --max-restarts={restarts}: processes that are started again would look for each other at their "
            "old addresses. Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and give --rdzv-backend=c10d, or "
            "--standalone on a single machine"
        )
    options = {"devices": here, "num_nodes": processes // here} | options
    if (wanted := count_processes(options)) != processes:
        raise ConfigError(
            f"trainer.devices={options['devices']} and trainer.num_nodes={options['num_nodes']} are {wanted} "
            f"processes, but torchrun has started {processes}; leave both out"
        )
    return options


def count_processes(options: Mapping[str, Any]) -> int:
    """How many processes the trainer will run in, all nodes together."""
    devices = options["devices"]
    if isinstance(devices, (list, tuple)):
        devices = len(devices)
    if not re.fullmatch(r"-1|[1-9][0-9]{0,3}", str(devices)):
        raise ConfigError(f"trainer.devices must be a number of devices, -1 for all or a list of them, not {devices!r}")
    if int(devices) == -1:
        devices = torch.cuda.device_count() or 1  # Lightning says that there is none
    return int(devices) * options.get("num_nodes", 1)


def _run(
    mode: str,
    trainer: pl.Trainer,
    system: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Raises ConfigError: Lightning finds that trainer, system and data do not go together."""
    path = checkpoint and str(checkpoint)
    start: dict[str, Any] = {"datamodule": datamodule, "ckpt_path": path, "weights_only": True}
    try:
        if mode == "train":
            trainer.fit(system, **start)
            if is_overridden("test_step", system, pl.LightningModule) and trainer.limit_test_batches != 0:
                trainer.test(system, datamodule=datamodule, verbose=False)
        elif mode == "validate":
            trainer.validate(system, verbose=False, **start)
        elif mode == "test":
            trainer.test(system, verbose=False, **start)
        else:
            trainer.predict(system, return_predictions=False, **start)
    except MisconfigurationException as error:
        raise ConfigError(f"the options under trainer do not fit this system: {error}") from error


def _callbacks(experiment: ExperimentConfig) -> list[pl.Callback]:
    folder = experiment.trial_dir
    shown = [ProgressReport()] if experiment.trainer.get("enable_progress_bar", True) else []
    return [RunCard(folder), *shown, Checkpointer(folder / "ckpts", experiment.checkpoint)]


def _loggers(experiment: ExperimentConfig) -> list[Logger]:
    folder = experiment.trial_dir
    loggers: list[Logger] = [EventLog(folder, name="tb_logs", version=""), LossLog(folder / "losses.jsonl")]
    wandb = getattr(getattr(experiment.system.cfg, "loggers", None), "wandb", None)
    if wandb is not None and wandb.enable:
        from pytorch_lightning.loggers import WandbLogger

        name = wandb.name or f"{experiment.name}-{experiment.trial_name}"
        try:
            loggers.append(WandbLogger(project=wandb.project, name=name, save_dir=folder))
        except ModuleNotFoundError as error:
            raise ConfigError(f"system.loggers.wandb.enable needs a package: {error}; or leave it out") from error
    return loggers


def _set_up_logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    first: bool = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # an attribute that Lightning gives its function
    for name in ("triplaneturbo", "custom"):
        logging.getLogger(name).setLevel(level if first else logging.WARNING)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
    for message in _NOISE:
        warnings.filterwarnings("ignore", message)
    transformers_logging.disable_progress_bar()  # one for every small network that is loaded
