"""Put the student of a training run into the miniature world's folder, when all of its steps are done."""

import argparse
import json
import sys
from pathlib import Path

try:
    from triplaneturbo.interruption import stoppable
except ModuleNotFoundError as error:
    sys.exit(f"pack_student.py: {error}; run ./setup.sh, or in the project's folder: pip install -e .")


def main() -> None:
    """Command line; called by scripts/train/shapeworld.sh."""
    import torch

    from triplaneturbo import TextToMeshPipeline
    from triplaneturbo.config import load_config
    from triplaneturbo.storage import write_text
    from triplaneturbo.systems.losslog import read_losses

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trial", type=Path, help="folder of the run")
    parser.add_argument("out", type=Path, help="folder of the miniature world")
    parser.add_argument("--early", action="store_true", help="take it before all steps are done")
    given = parser.parse_args()
    config = given.trial / "configs" / "parsed.yaml"
    rows, damaged = read_losses(given.trial / "losses.jsonl")
    if damaged:
        print(f"{given.trial / 'losses.jsonl'}: {damaged} damaged lines are left out")
    last = rows[-1][0]
    steps = load_config([config]).trainer["max_steps"]
    seconds = sum(map(int, (given.trial / "seconds").read_text().split()))
    if last["step"] < steps and not given.early:
        print(f"{last['step']} of {steps} steps are done after {seconds} s: call this stage again")
        return
    pipeline = TextToMeshPipeline.from_training(config, given.trial / "ckpts" / "last.ckpt", "cpu")
    pipeline.save_pretrained(given.out, copy_base=False, half=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    stage = given.trial.name
    record = {"stage": stage, "seconds": seconds, "device": device}
    record |= {"steps": last["step"], "prompts": last["prompts"]}
    write_text(given.out / "training" / f"{stage}.json", json.dumps(record, indent=2) + "\n")
    print(f"wrote {given.out}/student.safetensors: {record}")


if __name__ == "__main__":
    with stoppable():
        main()
