# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Tables of a run go on after a resume with the right rows, whatever a stop left of them."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from ignite.engine import Engine, Events

from scripts.errors import BundleError
from scripts.handlers.history import TrainingHistory

HEADER = "iteration,seconds,learning_rate,loss\r\n"


def row(iteration, loss="0.5"):
    return f"{iteration},1.25,0.01,{loss}\r\n"


def resume(folder, iteration, loss=0.25, **terms):
    """Start at an iteration, as a resume does, and record the next one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    history = TrainingHistory(str(folder), optimizer, evaluator=Engine(lambda *_: None))
    state = SimpleNamespace(iteration=iteration, max_epochs=1, epoch_length=500, terms={"loss": loss, **terms})
    engine = SimpleNamespace(state=state)
    history._start(engine)
    state.iteration += 1
    history._begin(engine)
    history._record(engine)
    history._finish(engine)


def iterations(folder, name="history.csv"):
    return pd.read_csv(folder / name)["iteration"].tolist()


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("\r\n\r\n", [], id="empty-lines"),
        pytest.param(HEADER[:9], [], id="word-iteration-of-the-header"),
        pytest.param(HEADER[:4], [], id="half-header"),
        pytest.param(HEADER, [], id="header-only"),
        pytest.param(HEADER + row(1) + row(2) + row(3)[:-5], [1, 2], id="half-line"),
        # The row of iteration 151, cut, reads as iteration 1 or 15.
        pytest.param(HEADER + row(1) + row(2) + "1", [1, 2], id="first-digit"),
        pytest.param(HEADER + row(1) + row(2) + "3", [1, 2], id="digit-that-would-come-next"),
        pytest.param(HEADER + row(1) + row(2) + "3,1.25,0.01,0.5\r", [1, 2], id="half-line-ending"),
        pytest.param(HEADER + row(1) + "\0" * 40, [1], id="zeros-of-a-file-system"),
        pytest.param(HEADER + row(1) + row("") + row("x") + row(2), [1, 2], id="not-numeric"),
        pytest.param(HEADER + row(1) + row(2) + row(1) + row(2) + row(3), [1, 2, 3], id="not-increasing"),
        pytest.param(HEADER + row(0) + row(-1) + row(1), [1], id="before-the-first"),
        pytest.param(HEADER + row(1) + "2,1.25,0.01,0.5,7,8\r\n" + row(3), [1, 3], id="too-long"),
        pytest.param(HEADER + "".join(map(row, range(1, 9))), [1, 2, 3, 4], id="lost-steps"),
        pytest.param(HEADER + row(7) + row(1) + row(2), [1, 2], id="lost-step-first"),
        pytest.param(HEADER + row(7), [], id="nothing-left"),
    ],
)
def test_a_resume_goes_on_after_the_last_good_row(tmp_path, content, kept):
    (tmp_path / "history.csv").write_bytes(content.encode())
    resume(tmp_path, 4)
    assert iterations(tmp_path) == [*kept, 5]
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table) == HEADER.strip().split(",")
    assert table["loss"].tolist() == [0.5] * len(kept) + [0.25]
    assert (tmp_path / "learning_curves.png").is_file()


def test_numbers_of_the_kept_rows_stay_as_they_are(tmp_path):
    digits = "0.10000000149011612"
    (tmp_path / "history.csv").write_text(HEADER + row(1, loss=digits) + row(2, loss="nan") + row(3, loss=""))
    resume(tmp_path, 4)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in lines] == ["loss", digits, "nan", "", "0.25"]
    # A term that begins later, as that of a second stage, gets a column of its own.
    resume(tmp_path, 5, loss_later=1.5)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert [line.split(",")[3:] for line in lines] == [
        ["loss", "loss_later"],
        [digits, ""],
        ["nan", ""],
        ["", ""],
        ["0.25", ""],
        ["0.25", "1.5"],
    ]


def test_time_counts_on_after_a_resume(tmp_path):
    (tmp_path / "history.csv").write_text(HEADER + row(1) + row(2).replace("1.25", "100.5") + row(3))
    resume(tmp_path, 2)
    seconds = pd.read_csv(tmp_path / "history.csv")["seconds"].tolist()
    assert seconds[:2] == [1.25, 100.5]
    assert 100.5 <= seconds[2] < 200
    assert b"\r" not in (tmp_path / "history.csv").read_bytes()


def test_an_empty_table_of_the_validation_is_removed(tmp_path):
    (tmp_path / "history.csv").write_text(HEADER + row(1))
    (tmp_path / "validation.csv").write_text("iteration,mean_dice\n200,0.5\n")
    resume(tmp_path, 1)
    assert not (tmp_path / "validation.csv").exists()


def test_rows_of_the_validation_up_to_the_resume_are_kept(tmp_path):
    (tmp_path / "validation.csv").write_text("iteration,mean_dice\n2,0.5\n4,0.6\n6,0.7\n8,0.")
    resume(tmp_path, 4)
    assert iterations(tmp_path, "validation.csv") == [2, 4]


def test_a_table_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "history.csv").write_text("day,rain\n1,2\n")
    with pytest.raises(BundleError, match=r"history\.csv must have the column iteration .* got \['day', 'rain'\]"):
        resume(tmp_path, 4)
    assert (tmp_path / "history.csv").read_text() == "day,rain\n1,2\n"


@pytest.mark.parametrize("validations", [[], [4], [5], [4, 5]])
def test_curves_of_the_last_iteration_are_drawn_once(validations, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "scripts.handlers.history.learning_curves",
        lambda history, path, validation: drawn.append((iterations(tmp_path)[-1], validation is not None)),
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    evaluator = Engine(lambda *_: None)
    evaluator.state = SimpleNamespace(metrics={"dice": 0.5}, key_metric_name="dice", metric_details={})
    history = TrainingHistory(str(tmp_path), optimizer, evaluator=evaluator)
    engine = Engine(lambda *_: None)
    engine.state.terms = {"loss": 0.25}
    history.attach(engine)
    for iteration in validations:
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=iteration), lambda _: history._record_validation(evaluator)
        )
    engine.run([0] * 5)
    assert drawn == [(iteration, True) for iteration in validations] + [(5, bool(validations))] * (5 not in validations)


def test_log_interval():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    with pytest.raises(ValueError, match="log_interval must be at least 1 iteration, got 0"):
        TrainingHistory("run", optimizer, evaluator=Engine(lambda *_: None), log_interval=0)
