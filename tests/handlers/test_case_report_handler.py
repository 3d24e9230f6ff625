# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The handler that makes the report of an evaluation, on a small engine."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator

from scripts.errors import BundleError
from scripts.evaluation.metrics import METRIC_NAMES
from scripts.files import file_hash
from scripts.handlers import case_report
from scripts.handlers.case_report import CaseReportHandler
from scripts.handlers.checkpoint_loader import RecordedCheckpointLoader


def row(name, dice):
    return {"class": name, "status": "found", **dict.fromkeys(METRIC_NAMES, dice)}


def meta(array, *, name="", affine=None):
    tensor = MetaTensor(torch.as_tensor(array)[None], affine=torch.eye(4) if affine is None else affine)
    if name:
        tensor.meta["filename_or_obj"] = name
    return tensor


def item(name, *, shift=0, label=1, size=12, affine=None):
    """A cube of four voxels a side, predicted `shift` voxels along x from where it is."""
    reference = np.zeros((size, size, size), dtype=np.float32)
    prediction = reference.copy()
    reference[2:6, 4:8, 4:8] = 1
    prediction[2 + shift : 6 + shift, 4:8, 4:8] = label
    return (
        {"image": meta(reference[::2, ::2, ::2], name=f"/data/{name}.nii.gz"), "original_image": meta(reference * 100)},
        {"pred": meta(prediction, affine=affine), "label": meta(reference, affine=affine)},
    )


def run(handler, items, loader=None):
    def step(engine, number):
        given, made = items[number]
        engine.state.batch = [given]
        return [made]

    engine = Engine(step)
    if loader is not None:
        loader.attach(engine)
    handler.attach(engine)
    engine.run(range(len(items)), max_epochs=1)
    return engine


def test_handler_writes_report_and_pictures(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="scripts.evaluation")
    spacing = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))
    first, second = item("one", shift=2, affine=spacing), item("two", affine=spacing)
    second[0]["case"] = "b/two"
    handler = CaseReportHandler(2, tmp_path, ["atrium"], num_pictures=1)
    run(handler, [first, second])

    cases = pd.read_csv(tmp_path / "metrics_cases.csv")
    assert cases["case"].tolist() == ["one", "b/two"]
    assert cases["dice"].tolist() == [0.5, 1.0]
    assert cases["class"].tolist() == ["atrium", "atrium"]
    assert cases["hd95_mm"][0] == 2 * cases["hd95_voxel"][0] == 4.0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["worst_1_one.png"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("case one: Dice [%] atrium 50.0 (batch 1 of 2, 0:0")
    assert messages[1].startswith("case b/two: Dice [%] atrium 100.0 (batch 2 of 2, 0:00 min left")
    assert messages[2].startswith("2 cases\nclass ")


def test_distances_are_along_the_axes_of_the_voxels(tmp_path):
    # The first axis of the array, along which the prediction is moved, is the second of the world: 3 mm a voxel.
    affine = torch.tensor([[0.0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    run(CaseReportHandler(2, tmp_path, num_pictures=0), [item("one", shift=2, affine=affine)])
    cases = pd.read_csv(tmp_path / "metrics_cases.csv")
    assert cases["hd95_mm"][0] == 3 * cases["hd95_voxel"][0] == 6.0


def test_pictures_show_the_prediction_over_the_reference(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "scripts.handlers.case_report.select_views",
        lambda image, reference, prediction, **options: seen.append((reference, prediction)) or [],
    )
    monkeypatch.setattr("scripts.handlers.case_report.draw_views", lambda *arguments, **options: None)
    given, made = item("one", shift=1)
    run(CaseReportHandler(2, tmp_path, num_pictures=1), [(given, made)])
    ((reference, prediction),) = seen
    np.testing.assert_array_equal(np.squeeze(reference), made["label"][0])
    np.testing.assert_array_equal(np.squeeze(prediction), made["pred"][0])


def test_the_table_of_cases_is_the_last_thing_that_is_written(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("scripts.handlers.case_report.draw_views", fail)
    with pytest.raises(OSError, match="no space left"):
        run(CaseReportHandler(2, tmp_path, ["atrium"], num_pictures=1), [item("one")])
    # Where it is, a run of a grid is done.
    assert not (tmp_path / "metrics_cases.csv").exists()


def test_handler_starts_anew_with_each_run_and_takes_away_old_pictures(tmp_path):
    handler = CaseReportHandler(2, tmp_path, num_pictures=2)
    run(handler, [item("one", shift=1), item("two")])
    (tmp_path / "worst_case_notes.png").write_bytes(b"not ours")
    run(handler, [item("three")])
    assert pd.read_csv(tmp_path / "metrics_cases.csv")["case"].tolist() == ["three"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["worst_1_three.png", "worst_case_notes.png"]


@pytest.mark.parametrize(
    ("labels_dir", "left"),
    [("evaluation/labels", ["mine"]), ("evaluation", ["mine"]), ("elsewhere", ["one", "two", "mine"]), (None, None)],
)
def test_label_maps_of_an_earlier_run_go_with_its_table(tmp_path, labels_dir, left):
    folder = tmp_path / "evaluation"
    run(CaseReportHandler(2, folder, num_pictures=0), [item("one"), item("two")])
    maps = [tmp_path / (labels_dir or "evaluation/labels") / f"{name}.nii.gz" for name in ("one", "two", "mine")]
    for path in maps:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    options = {} if labels_dir is None else {"labels_dir": str(tmp_path / labels_dir)}
    run(CaseReportHandler(2, folder, num_pictures=0, **options), [item("two"), item("three")])
    names = [path.name.removesuffix(".nii.gz") for path in maps if path.is_file()]
    assert names == (left or ["one", "two", "mine"])


def test_label_maps_stay_where_the_table_is_of_something_else(tmp_path):
    for content in ("", "name\none\n"):
        (tmp_path / "metrics_cases.csv").write_text(content)
        (tmp_path / "one.nii.gz").touch()
        run(CaseReportHandler(2, tmp_path, num_pictures=0, labels_dir=tmp_path), [item("one")])
        assert (tmp_path / "one.nii.gz").is_file()


def test_a_run_that_is_stopped_leaves_no_figures_of_the_one_before(tmp_path, monkeypatch):
    weights, network = tmp_path / "model.pt", torch.nn.Linear(1, 1)
    torch.save(network.state_dict(), weights)
    handler = CaseReportHandler(2, tmp_path, num_pictures=1)
    # Without its weights a run does not begin.
    run(handler, [item("one")])
    loader = RecordedCheckpointLoader(str(tmp_path / "none.pt"), {"model": network})
    with pytest.raises(Exception, match=r"none\.pt"):
        run(handler, [item("one")], loader=loader)
    assert (tmp_path / "metrics_cases.csv").is_file()

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.handlers.case_report.evaluate_case", stop)
    with pytest.raises(KeyboardInterrupt):
        run(handler, [item("one")], loader=RecordedCheckpointLoader(str(weights), {"model": network}))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_handler_keeps_the_slices_of_the_worst_cases_only(tmp_path):
    handler = CaseReportHandler(2, tmp_path, num_pictures=2)
    run(handler, [item("good"), item("bad", shift=3), item("fair", shift=1), item("poor", shift=2)])
    assert set(handler._views) == {"bad", "poor"}
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["worst_1_bad.png", "worst_2_poor.png"]


def test_case_names_are_safe_in_file_names(tmp_path):
    odd = item("one")
    odd[0]["case"] = "../../up: über*1"
    run(CaseReportHandler(2, tmp_path / "out"), [odd])
    (picture,) = (tmp_path / "out").glob("*.png")
    assert re.fullmatch(r"worst_1__\.\._up_über_1_\w{8}\.png", picture.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_was_evaluated_is_written_down(tmp_path):
    weights, network = tmp_path / "model.pt", torch.nn.Linear(1, 1)
    torch.save(network.state_dict(), weights)
    settings = {"patch_size": [8, 8, 8], "largest_component": True}
    split = {"name": "fold 0"}
    handler = CaseReportHandler(2, tmp_path, split=lambda: split, settings=settings)
    run(handler, [item("one")], loader=RecordedCheckpointLoader(str(weights), {"model": network}))
    record = json.loads((tmp_path / "metrics_weights.json").read_text())
    assert record == {"sha256": file_hash(weights), "split": split, "settings": settings}
    # Nobody knows which weights are in the network now.
    run(CaseReportHandler(2, tmp_path), [item("one")])
    assert not (tmp_path / "metrics_weights.json").exists()


def test_no_pictures(tmp_path):
    run(CaseReportHandler(2, tmp_path, num_pictures=0), [item("one")])
    assert not list(tmp_path.glob("*.png"))


def test_without_an_image_on_the_grid_the_picture_is_drawn_and_the_log_says_so(tmp_path, caplog):
    given, made = item("one")
    del given["original_image"]
    run(CaseReportHandler(2, tmp_path), [(given, made)])
    assert (tmp_path / "worst_1_one.png").exists()
    assert "case one: no image on the grid of the label" in caplog.text


def test_handler_in_an_evaluator(tmp_path):
    """The real order of events: decollate, postprocessing, then the report."""

    class Threshold(torch.nn.Module):
        def forward(self, image):
            return torch.cat((0.5 - image, image - 0.5), dim=1)

    def to_label_map(data):
        return {**data, "pred": data["pred"].argmax(dim=0, keepdim=True)}

    image = np.zeros((8, 8, 8), dtype=np.float32)
    image[2:5, 2:5, 2:5] = 1
    label = image.copy()
    label[4] = 0
    data = [{"image": meta(image, name=f"/x/{name}.nii"), "label": meta(label)} for name in ("p", "q")]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=Threshold(),
        postprocessing=to_label_map,
        val_handlers=[CaseReportHandler(2, tmp_path)],
    )
    evaluator.run()
    cases = pd.read_csv(tmp_path / "metrics_cases.csv")
    assert cases["case"].tolist() == ["p", "q"]
    assert cases["dice"].tolist() == pytest.approx([2 * 18 / (27 + 18)] * 2)
    assert len(list(tmp_path.glob("worst_*.png"))) == 2


def test_one_process_of_several_writes(tmp_path, monkeypatch):
    (tmp_path / "metrics_cases.csv").write_text("of an earlier run\n")
    monkeypatch.setattr(case_report, "is_main_process", lambda: False)
    handler = CaseReportHandler(2, tmp_path)
    run(handler, [item("one")])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics_cases.csv"]
    assert len(handler.report) == 1


def without(entry, *keys):
    return tuple({key: value for key, value in part.items() if key not in keys} for part in entry)


def changed(entry, **changes):
    given, made = entry
    return {**given, **{k: v for k, v in changes.items() if k in given}}, {
        **made,
        **{k: v for k, v in changes.items() if k in made},
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (without(item("one"), "pred"), "case 'one' must have the key pred to be evaluated"),
        (without(item("one"), "image"), "must have the key 'case' or an image with a file name"),
        (
            changed(item("one"), pred=torch.zeros(2, 12, 12, 12)),
            r"case 'one': pred must be a label map of shape \(1, X",
        ),
        (changed(item("one"), pred=meta(np.zeros((12, 12, 9)))), "case 'one': prediction and reference must be label"),
        (changed(item("one"), label=torch.zeros(1, 12, 12, 12)), "case 'one': label must be a MetaTensor"),
        (changed(item("one"), original_image=meta(np.zeros((9, 9, 9)))), "original_image must have the shape"),
        (item("one", label=2), "case 'one': prediction must hold labels from 0 to 1"),
    ],
)
def test_handler_refuses(tmp_path, entry, message):
    with pytest.raises(BundleError, match=message):
        run(CaseReportHandler(2, tmp_path), [entry])
    assert not list(tmp_path.iterdir())


def test_handler_refuses_two_cases_of_one_name(tmp_path):
    with pytest.raises(BundleError, match="got 'one' a second time"):
        run(CaseReportHandler(2, tmp_path), [item("one"), item("one")])


def test_handler_refuses_an_engine_that_does_not_decollate(tmp_path):
    engine = Engine(lambda engine, batch: {"pred": 1})
    CaseReportHandler(2, tmp_path).attach(engine)
    with pytest.raises(BundleError, match="decollate=True"):
        engine.run([{"image": 1}])


def test_handler_refuses_options(tmp_path):
    for value in (-1, 3.0):
        with pytest.raises(BundleError, match=f"num_pictures must be a whole number of at least 0, got {value}"):
            CaseReportHandler(2, tmp_path, num_pictures=value)
    with pytest.raises(BundleError, match="class_names must be a list of 1"):
        CaseReportHandler(2, tmp_path, ["a", "b"])
