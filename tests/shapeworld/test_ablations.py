"""custom/shapeworld/ablations.py: what the rows of its tables change, and how they are trained and measured."""

import csv
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from custom.shapeworld import ablations
from custom.shapeworld.lengths import compressed, rounds_of, stretched
from custom.shapeworld.rows import CONFIGS, TABLES, Row, Tree
from custom.shapeworld.runs import OUT_OF_TIME, effort
from triplaneturbo.base import as_tree
from triplaneturbo.config import load_config
from triplaneturbo.legacy.trees import leaves
from triplaneturbo.schedule import Schedule

PRD = CONFIGS / "prd.yaml"
TEACHERS = "system.guidance.teachers"
# What a row may change of prd.yaml, by table; what belongs to its folder and length is the same for all rows.
ALLOWED = {
    "steps": ("system.rounds", "system.training_timesteps", "system.inference_steps", "data.camera_sets"),
    "adapters": ("system.geometry.space_generator", "system.optimizer.params"),
    "teachers": (TEACHERS,),
    "renderers": ("system.renderers", "system.losses"),
    "rules": tuple(f"{TEACHERS}.{name}.rule" for name in ("richdreamer", "mvdream", "stable_diffusion")),
    "bound": (TEACHERS, "system.losses"),
    "prompts": (),
    "guidance": (f"{TEACHERS}.mvdream.guidance_scale", f"{TEACHERS}.mvdream.weight"),
}


def make_runner(out: Path, *options: str) -> Any:
    return ablations.Ablations(ablations.parse(["steps", "--out", str(out), *options]))


def differences(one: Tree, other: Tree) -> set[str]:
    """Dotted places at which two configurations are not the same."""
    first, second = dict(leaves(one)), dict(leaves(other))
    missing = object()
    return {place for place in first | second if first.get(place, missing) != second.get(place, missing)}


def options_of(runner: Any, row: Row) -> Tree:
    """What a row trains, without its folder."""
    tree = as_tree(runner.write_recipe(row))
    del tree["name"], tree["data"]["prompt_library_dir"]
    return tree


@pytest.mark.parametrize("table", ALLOWED)
def test_rows_differ_from_the_base_in_what_they_name_alone(table: str, tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    base = options_of(runner, Row(name="base"))
    found = {row.name: differences(options_of(runner, row), base) for row in TABLES[table]()}
    for name, places in found.items():
        assert all(place.startswith(ALLOWED[table]) for place in places), (name, places)
    if table != "prompts":
        assert sum(not places for places in found.values()) == 1
        assert len({frozenset(places) for places in found.values()}) > 1


def test_some_rows_in_full(tmp_path: Path) -> None:
    runner = make_runner(tmp_path)
    base = options_of(runner, Row(name="base"))

    def changed(table: str, name: str) -> set[str]:
        (row,) = (row for row in TABLES[table]() if row.name == name)
        return differences(options_of(runner, row), base)

    rounds = {"system.rounds", "system.training_timesteps", "system.inference_steps", "data.camera_sets"}
    assert changed("steps", "K=2") == rounds
    generator = "system.geometry.space_generator"
    assert changed("adapters", "plain LoRA") == {f"{generator}.self_attention", f"{generator}.decoder_attention"}
    assert changed("adapters", "full fine-tuning") == {f"{generator}.full"}
    assert changed("guidance", "scale 10, weight 1") == {f"{TEACHERS}.mvdream.guidance_scale"}
    assert changed("recipe", "without EMA") == {"system.ema_decay"}
    assert {place.rpartition(".")[2] for place in changed("rules", "CSD")} == {"type"}
    assert all("stable_diffusion" in place for place in changed("teachers", "without Stable Diffusion"))


def test_the_ladder_leads_from_prd_to_the_published_recipe(tmp_path: Path) -> None:
    """Each rung changes what it names to what the published recipe has, in its own number of updates."""
    runner = make_runner(tmp_path)
    base, *ladder, published = TABLES["recipe"]()
    start, end = (dict(leaves(options_of(runner, row))) for row in (base, published))
    for row in ladder:
        there = dict(leaves(options_of(runner, row)))
        changed = {place for place in there if there[place] != start.get(place)}
        if row.name == "one update for all rounds":
            assert end["trainer.max_steps"] == there["trainer.max_steps"] == 150
            changed = {"system.update_every_round"}
        if row.name == "background from the prompt":  # which learns as fast as the geometry does in prd.yaml
            changed = {place for place in changed if place.startswith("system.background.")}
        assert changed
        for place in changed:
            assert there[place] == end[place] or quartered(there[place]) == end[place], (row.name, place)


def test_the_published_recipe_sees_as_many_pictures_as_prd() -> None:
    published = load_config([CONFIGS / "published.yaml"])
    assert rounds_of(published) == rounds_of(load_config([PRD]))
    factor = published.trainer["max_steps"] / 15000
    full_size = as_tree(
        stretched(load_config([CONFIGS.parent / "TriplaneTurbo_v1.yaml"], ["data.prompt_library=x"]), factor)
    )
    ours = as_tree(published)
    for name in ("richdreamer", "mvdream", "stable_diffusion"):
        for option in ("weight", "guidance_scale", "min_timestep", "max_timestep", "rule", "unconditional"):
            theirs = full_size["system"]["guidance"]["teachers"][name][option]
            assert ours["system"]["guidance"]["teachers"][name][option] == theirs, (name, option)
    for place in ("losses", "material"):
        assert ours["system"][place] == full_size["system"][place]
    assert ours["system"]["optimizer"]["args"] == full_size["system"]["optimizer"]["args"]
    assert ours["system"]["optimizer"]["params"] == full_size["system"]["optimizer"]["params"]
    for option in ("ema_decay", "rounds", "update_every_round", "fresh_noise", "guidance_timesteps"):
        assert ours["system"][option] == full_size["system"][option]


def quartered(value: Any) -> Any:
    """A schedule in a quarter of its steps."""
    return stretched(Schedule.parse(value), 0.25).as_written() if isinstance(value, list) else value


def test_rows_see_equally_many_pictures(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, "--updates", "200")
    for row in (*TABLES["steps"](), *TABLES["recipe"]()):
        assert rounds_of(runner.write_recipe(row)) == 200, row.name


def test_the_same_files_are_of_the_same_recipe() -> None:
    known: dict[str, Row] = {}
    for table in TABLES.values():
        rows = table()
        assert len({row.key for row in rows}) == len({row.name for row in rows}) == len(rows)
        for row in rows:
            first = known.setdefault(row.key, row)
            assert replace(row, name="", seeds=()) == replace(first, name="", seeds=())


@pytest.mark.parametrize(
    ("written", "factor", "expected"),
    [
        (0.5, 0.25, 0.5),
        ([0, 1.0, 0.0, 2000], 0.25, [0, 1.0, 0.0, 500]),
        ([0, 6e-4, 6e-4, 1500, 6e-5, 2400], 0.25, [0, 6e-4, 6e-4, 375, 6e-5, 600]),
        ([100, 1.0, 0.0, 200], 2.0, [200, 1.0, 0.0, 400]),
        ([0, 1.0, 0.5, 2, 0.0, 3], 0.01, [0, 1.0, 0.5, 1, 0.0, 2]),  # steps stay apart
        ([0, 1.0, 0.0, 20.0], 0.25, [0, 1.0, 0.0, 20.0]),  # epochs
    ],
)
def test_schedules_are_stretched(written: Any, factor: float, expected: Any) -> None:
    assert stretched(Schedule.parse(written), factor).as_written() == expected


def test_all_schedules_of_prd_are_compressed_and_nothing_else() -> None:
    prd = load_config([PRD])
    short = as_tree(compressed(prd, 600))
    moved = differences(short, as_tree(prd))
    schedules = {place for place in moved if not place.startswith(("trainer.", "checkpoint."))}
    assert short["trainer"]["max_steps"] == 600
    assert {place.rpartition(".")[2] for place in schedules} == {
        "min_timestep",
        "max_timestep",
        "inv_std",
        "weight",
        "lr",
    }
    assert len(schedules) == 11
    assert as_tree(stretched(prd, 1.0)) == as_tree(prd)


def test_captions_are_spread_over_the_library() -> None:
    whole = ablations.library_captions(None)
    some = ablations.library_captions(600)
    assert len(set(some)) == len(some) == 600
    assert some[1] == whole[len(whole) // 600]
    assert ablations.library_captions(10**6) == whole


def write_report(path: Path, weights: str, limit: int) -> None:
    """Measures of two captions a split: their mean is .5 with the first seed, .03 more with each other one."""
    seed = int(re.findall(r"seed(\d)", weights)[0])
    controls = dict.fromkeys(ablations.SPLITS, dict.fromkeys(ablations.CONTROLS, dict.fromkeys(ablations.SHOWN, 0.5)))
    path.write_text(json.dumps({"controls": controls, "settings": {"weights": [weights], "limit": limit}}))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["split", "prompt", *ablations.SHOWN])
        writer.writeheader()
        for split in ablations.SPLITS:
            for caption, value in (("a red cube", 0.4), ("a blue cube", 0.6)):
                numbers = dict.fromkeys(ablations.SHOWN, value + 0.03 * seed)
                numbers["chamfer"] = "" if caption == "a red cube" else 0.25  # as of a mesh that is empty
                writer.writerow({"split": split, "prompt": caption, **numbers})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be run; evaluations write reports, and the first training of K=1 with seed 1 is stopped."""
    seen: list[list[str]] = []

    def call(self: Any, log: Path, command: list[str], environment: dict[str, str], allowed: str | None = None) -> int:
        first = not log.exists()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        seen.append(command)
        if "--json" in command:
            weights = command[command.index("--weights") + 1]
            write_report(Path(command[command.index("--json") + 1]), weights, self.flags.limit)
        stopped = first and "seed=1" in command and "prd-K=1" in str(log)
        return OUT_OF_TIME if stopped else 0

    monkeypatch.setattr(ablations.Ablations, "call", call)
    return seen


def trained(calls: list[list[str]]) -> int:
    return sum("--train" in command for command in calls)


def test_a_table_goes_on_where_it_was_stopped(calls: list[list[str]], tmp_path: Path) -> None:
    arguments = ["steps", "--out", str(tmp_path), "--jobs", "1", "--limit", "3"]
    assert ablations.main(arguments) == 1  # one training is left
    assert (trained(calls), len(calls)) == (9, 9 + 8)
    seeds = [command[-1] for command in calls if "--train" in command]
    assert seeds == sorted(seeds)  # one training of each row comes first
    # Over captions and trainings; .40 is the worse caption with seed 0 alone, in less than 2.5 % of draws.
    table = (tmp_path / "steps/table.md").read_text()
    assert "| train | K=2 | 3 | 0.530 (0.410 .. 0.650) | 0.530 (0.410 .. 0.650) | 0.250 |" in table
    assert "| train | K=1 | 2 | 0.530 (0.400 .. 0.660) |" in table  # of seeds 0 and 2
    assert "| K=1 seed1 | 600 |" in table
    assert ["--no-controls" in command for command in calls if "--json" in command].count(False) == 1
    calls.clear()
    assert ablations.main(arguments) == 0
    assert (trained(calls), len(calls)) == (1, 2)
    assert "| train | K=1 | 3 |" in (tmp_path / "steps/table.md").read_text()
    for name in ("table.md", "table.csv", "table.json", "table.png"):
        assert (tmp_path / "steps" / name).stat().st_size > 100
    calls.clear()
    assert ablations.main(arguments) == 0
    assert not calls
    # Other tables take the training of prd.yaml itself from here, and what was measured of it.
    assert ablations.main(["renderers", "bound", *arguments[1:]]) == 0
    assert (trained(calls), len(calls)) == (3, 3 + 3)
    for table in ("renderers", "bound"):
        assert "| train | exact meshes | |" in (tmp_path / table / "table.md").read_text()


def test_a_table_shows_what_other_calls_have_made(calls: list[list[str]], tmp_path: Path) -> None:
    for row, seed in (("K=2", "0"), ("K=2", "2"), ("K=4", "0")):
        arguments = ["steps", "--out", str(tmp_path), "--limit", "3", "--only", row, "--seeds", seed]
        assert ablations.main(arguments) == 0
    assert trained(calls) == 3
    table = (tmp_path / "steps/table.md").read_text()
    assert "| train | K=2 | 2 |" in table
    assert "| train | K=4 | 1 |" in table
    assert "| K=2 seed1 | 600 |" in table
    assert "not done" in table


def test_other_lengths_are_not_mixed(calls: list[list[str]], tmp_path: Path) -> None:
    arguments = ["renderers", "--out", str(tmp_path), "--limit", "3"]
    assert ablations.main(arguments) == 0
    with pytest.raises(ValueError, match="another recipe"):
        ablations.main([*arguments, "--updates", "7"])
    with pytest.raises(ValueError, match="another recipe"):
        ablations.main([*arguments, "--", "system.optimizer.args.weight_decay=0.1"])


def test_nothing_begins_when_the_time_is_over(calls: list[list[str]], tmp_path: Path) -> None:
    assert ablations.main(["renderers", "--out", str(tmp_path), "--minutes", "1e-9"]) == 1
    assert not calls


def test_a_training_that_fails_costs_only_its_own_row(
    calls: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = ablations.Ablations.call

    def call(self: Any, log: Path, command: list[str], *more: Any) -> int:
        if "volume-alone" in str(log) and "--train" in command:
            raise RuntimeError("exit status 1")
        return working(self, log, command, *more)

    monkeypatch.setattr(ablations.Ablations, "call", call)
    assert ablations.main(["renderers", "--out", str(tmp_path), "--limit", "3"]) == 1
    written = (tmp_path / "renderers/table.md").read_text()
    assert "| train | mesh alone |" in written
    assert "| train | volume alone |" not in written


def test_two_rows_are_really_trained(tmp_path: Path) -> None:
    """At the smallest sizes, one update each; what is stopped would be measured by another program."""
    runner = make_runner(tmp_path, "--updates", "1", "--jobs", "2", "--", "data.n_val_views=1")
    one = {"system": {"rounds": 1, "training_timesteps": 1, "inference_steps": 1}}
    rows = [Row(name="one", config="tiny", captions=2, options=one)]
    rows.append(replace(rows[0], name="opposite", options={"system": one["system"] | {"ema_decay": 0.0}}))
    start = time.monotonic()
    for row in rows:
        runner.write_recipe(row)
    trainings = [training for row in rows for training in row.trainings]
    assert not runner.side_by_side(trainings, runner.train, lambda training: training.name)
    for training in trainings:
        steps, seconds = effort(runner.trial(training)) or (0, 0)
        assert (steps, runner.is_done(training)) == (1, True)
        assert 0 < seconds <= time.monotonic() - start + 1
        assert (runner.trial(training) / "ckpts" / "last.ckpt").is_file()
        assert runner.train(training) == "done before"
