"""A whole prompt library: every mesh once, whatever ends on the way."""

import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from tiny_student import write_pipeline

from triplaneturbo import TextToMeshPipeline, cli
from triplaneturbo.errors import EmptyFieldError, WriteError
from triplaneturbo.exporters.files import write_mesh
from triplaneturbo.exporters.mesh_exporter import MeshExporter
from triplaneturbo.exporters.origin import read_origin
from triplaneturbo.lock import FolderLock
from triplaneturbo.pipelines import engines
from triplaneturbo.pipelines.library import progress_line, read_prompts
from triplaneturbo.pipelines.making import TRIES, Answer, Maker, Order
from triplaneturbo.pipelines.text_to_mesh import student_id
from triplaneturbo.storage import write_text

COLOURS, SHAPES = ("red", "blue", "green", "yellow", "white", "purple"), ("cube", "sphere", "cone", "torus")
PROMPTS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_world):
    return write_pipeline(tmp_path_factory.mktemp("library") / "student", tiny_world / "sd")


@pytest.fixture
def generate(student, tmp_path):
    """generate(prompts, *flags): the exit code; meshes go to tmp_path/meshes."""

    def start(prompts, *flags):
        file = tmp_path / "some.json"
        file.write_text(json.dumps({"train": PROMPTS, "test": prompts}))
        return cli.run(["generate", "--library", str(file), "-o", str(tmp_path / "meshes"), "--weights", str(student),
                        *flags])  # fmt: skip

    return start


@pytest.fixture
def inside(monkeypatch):
    """Workers are no processes: the engine asks a maker here."""

    def engine(order, batches, devices):
        maker = Maker(order, "cpu")
        for batch in batches:
            yield from maker(batch)

    monkeypatch.setattr("triplaneturbo.pipelines.library.in_processes", engine)


@pytest.fixture
def order(student, tmp_path):
    """Of a folder that is ready for workers."""
    write_text(tmp_path / "out/library.json", "{}")
    return Order(
        weights=student, weights_id=student_id(student), out=tmp_path / "out", seed=0, resolution=16, overwrite=False
    )


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_there_is_not_made_again(generate, inside, student, tmp_path, capsys):
    meshes = tmp_path / "meshes"
    assert generate([*PROMPTS[:3], PROMPTS[0]], "--batch-size", "2") == 0
    assert "3 prompts: 3 made, 0 were there, 0 failed; 0:00:" in capsys.readouterr().out
    before = times(meshes)
    assert generate(PROMPTS[:5]) == 0
    said = capsys.readouterr()
    assert "5 prompts: 2 made, 3 were there, 0 failed" in said.out
    assert f"2 of 5 meshes to make in {meshes}" in said.err
    assert before.items() <= times(meshes).items()
    assert {path.name for path in meshes.iterdir()} == {"library.json", *(p.replace(" ", "_") for p in PROMPTS[:5])}
    alone = TextToMeshPipeline.from_pretrained(student, "cpu")(PROMPTS[4])
    alone.export_all(tmp_path / "alone")
    contents = [
        {path.name: path.read_bytes() for path in (folder / "a_blue_cube").iterdir()}
        for folder in (tmp_path / "alone", meshes)
    ]
    assert contents[0] == contents[1]


def test_another_seed_is_an_error_unless_it_may_replace(generate, inside, tmp_path, capsys):
    assert generate(PROMPTS[:2]) == 0
    before = times(tmp_path / "meshes")
    assert generate(PROMPTS[:2], "--seed", "1") == 2
    assert "2 of 2 meshes would replace others" in capsys.readouterr().err
    assert generate(PROMPTS[:2], "--resolution", "12") == 2
    assert "are of {'resolution': 16}, not of {'resolution': 12}" in capsys.readouterr().err
    assert times(tmp_path / "meshes") == before
    assert generate(PROMPTS[:2], "--seed", "1", "--overwrite") == 0
    assert "2 made, 0 were there" in capsys.readouterr().out
    assert read_origin(tmp_path / "meshes/a_red_cube").seed == 1


def test_a_mesh_that_was_cut_off_is_made_again(generate, inside, tmp_path, capsys):
    assert generate(PROMPTS[:2]) == 0
    folder = tmp_path / "meshes/a_red_cube"
    (folder / "model.glb").rename(folder / ".model.glb.1.tmp")
    (folder / ".try-1.tmp").touch()
    assert generate(PROMPTS[:2]) == 0
    assert "1 made, 1 were there" in capsys.readouterr().out.splitlines()[-1]
    assert {path.name for path in folder.iterdir()} == {"model.glb", "origin.json", "turntable.png", "prompt.txt"}


def test_a_prompt_without_a_surface_is_named_and_the_others_of_its_batch_are_made(
    generate, inside, monkeypatch, tmp_path, capsys
):
    original = TextToMeshPipeline.extract

    def extract(self, prompts, scene, **options):
        if PROMPTS[1] in prompts:
            raise EmptyFieldError(f"{PROMPTS[1]!r}: the field is empty")
        return original(self, prompts, scene, **options)

    monkeypatch.setattr(TextToMeshPipeline, "extract", extract)
    assert generate(PROMPTS[:3], "--batch-size", "3") == 1
    said = capsys.readouterr().out
    assert "3 prompts: 2 made, 0 were there, 1 failed" in said
    assert said.endswith(f"\n  {PROMPTS[1]!r}: {PROMPTS[1]!r}: the field is empty\n")
    assert not (tmp_path / "meshes/a_red_sphere").exists()


def test_a_disk_that_is_full_stops_all(generate, inside, monkeypatch, capsys):
    def refuse(*arguments, **options):
        calls.append(None)
        raise WriteError("cannot write it: no space")

    calls = []
    monkeypatch.setattr("triplaneturbo.exporters.mesh_exporter.write_mesh", refuse)
    assert generate(PROMPTS[:3]) == 2
    assert "cannot write it: no space" in capsys.readouterr().err
    assert len(calls) == 1


def test_one_call_at_a_time_writes_into_a_folder(generate, inside, tmp_path, capsys):
    with FolderLock(tmp_path / "meshes"):
        assert generate(PROMPTS[:1]) == 2
    assert f"{tmp_path}/meshes is being written by process {os.getpid()}" in capsys.readouterr().err


# The worker


def test_a_worker_that_sees_other_files_does_not_begin(order, tmp_path):
    (tmp_path / "out/library.json").unlink()
    with pytest.raises(OSError, match="a worker does not see"):
        Maker(order, "cpu")


def test_a_prompt_that_ends_its_worker_twice_is_given_up_and_no_other(order, monkeypatch):
    """What an engine does is repeated here: give the same batch again, until it is answered."""
    maker, original, asked = Maker(order, "cpu"), TextToMeshPipeline.extract, []

    def extract(self, prompts, scene, **options):
        asked.append(list(prompts))
        if PROMPTS[1] in prompts:
            raise RuntimeError("the worker ends")
        return original(self, prompts, scene, **options)

    monkeypatch.setattr(TextToMeshPipeline, "extract", extract)
    for _ in range(TRIES):
        with pytest.raises(RuntimeError, match="the worker ends"):
            maker(PROMPTS[:3])
    answers = maker(PROMPTS[:3])
    given_up = Answer(PROMPTS[1], "its worker ended while making it, 2 times")
    assert sorted(answers, key=lambda answer: PROMPTS.index(answer.prompt)) == [
        Answer(PROMPTS[0]),
        given_up,
        Answer(PROMPTS[2]),
    ]
    assert asked == [PROMPTS[:3], PROMPTS[:1], PROMPTS[1:2], PROMPTS[2:3]]


def test_the_student_is_known_without_its_networks(student):
    assert student_id(student) == TextToMeshPipeline.from_pretrained(student, "cpu").weights_id


def test_the_mesh_is_written_last(order, monkeypatch, tmp_path):
    """So that a mesh that is there is never written again."""
    there = []

    def write(path, *arguments, **options):
        there.extend(sorted(p.name for p in path.parent.iterdir()))
        write_mesh(path, *arguments, **options)

    monkeypatch.setattr("triplaneturbo.exporters.mesh_exporter.write_mesh", write)
    made = TextToMeshPipeline.from_pretrained(order.weights, "cpu")(PROMPTS[0])
    made.export_all(tmp_path / "x")
    assert there == ["origin.json", "prompt.txt", "turntable.png"]
    assert MeshExporter().is_finished(tmp_path / "x/a_red_cube", order.origin(PROMPTS[0]))


# Processes


class Watch(threading.Thread):
    """Notes the files that each mesh has been, and calls `act` once, when there are `after` of them."""

    def __init__(self, folder, act, after):
        super().__init__(daemon=True)
        self.folder, self.act, self.after = folder, act, after
        self.seen, self.over, self.acted = {}, threading.Event(), False

    def run(self):
        while not self.over.is_set():
            for path in self.folder.glob("*/model.glb"):
                self.seen.setdefault(path.parent.name, set()).add(path.stat().st_ino)
            if not self.acted and len(self.seen) >= self.after:
                self.acted = True
                self.act()
            time.sleep(0.005)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        time.sleep(0.05)
        self.over.set()
        self.join()

    def assert_each_once(self, prompts):
        assert self.acted
        assert {name: len(files) for name, files in self.seen.items()} == {p.replace(" ", "_"): 1 for p in prompts}


@pytest.mark.slow
def test_a_worker_is_killed_and_every_mesh_is_written_once(generate, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("triplaneturbo.pipelines.library.own_devices", lambda: ["cpu", "cpu"])

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with Watch(tmp_path / "meshes", kill, after=5) as watch:
        assert generate(PROMPTS, "--batch-size", "2") == 0
    assert "24 prompts: 24 made, 0 were there, 0 failed" in capsys.readouterr().out
    watch.assert_each_once(PROMPTS)
    assert not list((tmp_path / "meshes").rglob(".*"))
    assert multiprocessing.active_children() == []


def test_workers_that_cannot_begin_say_why(order, student, tmp_path):
    (tmp_path / "out/library.json").unlink()
    with pytest.raises(OSError, match="a worker does not see"):
        list(engines.in_processes(order, [PROMPTS[:1]], ["cpu"]))


# Ray


@pytest.mark.slow
def test_a_machine_of_a_ray_cluster_is_lost_and_every_mesh_is_written_once(generate, tmp_path, capsys):
    pytest.importorskip("ray", reason="ray is not installed: pip install 'triplaneturbo[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    engine = ("--engine", "ray", "--ray-address", cluster.address)
    try:
        with Watch(tmp_path / "meshes", lambda: cluster.remove_node(other, allow_graceful=False), after=6) as watch:
            assert generate(PROMPTS, "--batch-size", "2", *engine) == 0
        assert "24 prompts: 24 made, 0 were there, 0 failed" in capsys.readouterr().out
        watch.assert_each_once(PROMPTS)
        before = times(tmp_path / "meshes")
        assert generate(PROMPTS, *engine) == 0
        assert "0 made, 24 were there" in capsys.readouterr().out
        assert times(tmp_path / "meshes") == before
        assert not list((tmp_path / "meshes").rglob(".*"))
    finally:
        cluster.shutdown()


def test_without_ray_it_says_what_to_install(generate, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert generate(PROMPTS[:1], "--engine", "ray") == 2
    assert "needs ray, which is not installed; run: pip install 'triplaneturbo[ray]'" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["-o", "x"], "one of the arguments prompt --library is required"),
        (["a cube", "--library", "shapeworld", "-o", "x"], "not allowed with argument"),
        (["a cube", "--batch-size", "2", "-o", "x.glb"], "--batch-size goes with --library"),
    ],
)
def test_mistakes_on_the_command_line_are_said(capsys, line, said):
    with pytest.raises(SystemExit, match="2"):
        cli.run(["generate", *line])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ray-address", "auto"], "--ray-address goes with --engine ray"),
        (["--engine", "ray", "--device", "cpu"], "--device goes with --engine processes"),
        (["--batch-size", "0"], "--batch-size must be in [1, "),
        (["--split", "val"], "the list 'val' of the prompt library"),
    ],
)
def test_options_that_cannot_be_used_are_said(generate, capsys, flags, said):
    assert generate(PROMPTS[:1], *flags) == 2
    assert said in capsys.readouterr().err


def test_a_library_is_found_with_and_without_its_ending():
    assert read_prompts("shapeworld", "train") == read_prompts("shapeworld_prompt_library", "train")
    with pytest.raises(ValueError, match="there is no prompt library 'shapewrld'"):
        read_prompts("shapewrld", "train")


def test_progress_says_what_is_left():
    assert progress_line(120, 415, 1, 0.82) == "120 of 415, 1 failed, 0.82 s a mesh, 0:04:02 left"
