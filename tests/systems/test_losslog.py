"""The loss log and the records that fill it."""

import json

import pytest
import torch

from triplaneturbo.systems.losslog import LossLog, Records, read_losses


def test_lines_are_appended_and_cut_to_the_resumed_step(tmp_path):
    log = LossLog(tmp_path / "losses.jsonl")
    for step in (1, 2, 3):
        log.log_metrics({"loss": step / 3, "prompts": step}, step)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"step": 4, "lo')
    log.truncate(2)
    LossLog(log.path).log_metrics({"loss": 1.0, "prompts": 3}, 3)
    assert log.path.read_bytes() == whole
    assert [json.loads(line)["loss"] for line in whole.decode().splitlines()] == [1 / 3, 2 / 3, 1.0]


GOOD = [json.dumps({"step": step, "loss": 1 / step}).encode() for step in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "damaged",
    [
        b"\0" * 40,
        b"\0\0" + GOOD[2],
        GOOD[2][:-1],
        b"\xff\xfe{",
        b"[" * 100_000,
        b"3",
        b'{"loss": 1.0}',
        b'{"step": "3"}',
        b"garbage\rgarbage\x0b\x85",
    ],
)
def test_a_damaged_line_costs_no_other_line(tmp_path, caplog, damaged):
    log = LossLog(tmp_path / "losses.jsonl")
    log.path.write_bytes(b"\n".join([GOOD[0], GOOD[1], damaged, GOOD[3], b'{"step": 5']))
    assert [row["step"] for row, _ in read_losses(log.path)[0]] == [1, 2, 4]
    log.truncate(9)
    assert log.path.read_bytes() == b"".join(line + b"\n" for line in (GOOD[0], GOOD[1], GOOD[3]))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"{log.path}: 2 damaged lines are left out"
    log.truncate(1)
    assert log.path.read_bytes() == GOOD[0] + b"\n"
    assert len(caplog.records) == 1


def test_cutting_a_log_that_is_not_there_makes_none(tmp_path):
    LossLog(tmp_path / "losses.jsonl").truncate(3)
    assert not (tmp_path / "losses.jsonl").exists()


def test_records_are_written_in_order_with_their_own_names(tmp_path):
    log = LossLog(tmp_path / "losses.jsonl")
    records = Records()
    records.write([log])
    assert not log.path.exists()
    records.add(1, {"lr": 0.5}, {"a": torch.tensor(1.5), "b": torch.tensor(2.0)})
    records.add(2, {"lr": 0.25}, {"b": torch.tensor(3.0)})
    assert len(records) == 2
    records.write([log])
    assert len(records) == 0
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert rows == [{"step": 1, "lr": 0.5, "a": 1.5, "b": 2.0}, {"step": 2, "lr": 0.25, "b": 3.0}]
