"""A stand-in for a training, for the scripts that run, kill and compare trainings."""

# Arguments: the folder, its steps, and what is added to the log when it goes on after a kill.
# Writes what a training writes: a loss log, a checkpoint in the middle and one at the end; resumes where it was killed.
FAKE_TRAINING = """
import json, sys, time, torch
from pathlib import Path

folder, steps, noise = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
(folder / "ckpts").mkdir(parents=True, exist_ok=True)
log = folder / "losses.jsonl"
done = len(log.read_text().splitlines()) if log.exists() else 0
for step in range(done + 1, steps + 1):
    with log.open("a") as file:
        value = 1 / step + (noise if done else 0)
        file.write(json.dumps({"step": step, "skipped": 0, "lr": 1e-4, "grad_norm": value}) + "\\n")
    if step in (steps // 2, steps):
        state = {"global_step": step, "state_dict": {"w": torch.full((3,), value)}}
        torch.save(state, folder / "unfinished.pt")
        (folder / "unfinished.pt").rename(folder / "ckpts" / f"epoch=0-step={step}.ckpt")
    if step == steps // 2 and not done and "resumed" in str(folder):
        time.sleep(60)
torch.save(state, folder / "ckpts" / "last.ckpt")
(folder.parents[2] / f"{folder.name}.json").write_text(json.dumps({"seconds": 1.0, "peak_gib": 2.0}))
"""
