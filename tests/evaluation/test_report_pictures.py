# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The pictures of the report: which cases and slices, surfaces, and what is said when they are missing."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report_grid import write_cells, write_grid

from scripts.evaluation.pictures import outline
from scripts.evaluation.report import figures
from scripts.evaluation.report import gallery as gallery_module
from scripts.evaluation.report.figures import _HIGHLIGHT, _PLAIN, _curves, boxes_picture, curves_pictures
from scripts.evaluation.report.gallery import gallery, typical_cases
from scripts.evaluation.report.grid import read_grid
from scripts.evaluation.report.report import write_report
from scripts.evaluation.report.surface import frame_of, surface_picture

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


@pytest.fixture
def make_cells(tmp_path):
    return partial(write_cells, tmp_path / "grid")


@pytest.mark.parametrize(
    ("dice", "chosen"),
    [
        ({"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.1, "e": 0.6}, {"best": "b", "median": "e", "worst": "d"}),
        ({"b": 0.5, "a": 0.5, "c": 0.5}, {"best": "c", "median": "b", "worst": "a"}),
        ({"a": 0.5, "b": 0.9}, {"best": "b", "worst": "a"}),
        ({"a": 0.5}, {"best": "a"}),
        ({}, {}),
    ],
)
def test_typical_cases(dice, chosen):
    assert typical_cases(dice) == chosen


# --- surfaces ---------------------------------------------------------------------------------------------------------


def ball(shape, radius):
    axes = np.meshgrid(*(np.arange(length) - (length - 1) / 2 for length in shape), indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2


def test_a_ball_is_a_disk_lit_from_the_upper_left():
    labels = ball((33, 33, 33), 10).astype(np.uint8)
    frame = frame_of(labels > 0, (1, 1, 1))
    picture = surface_picture(labels, (1, 1, 1), frame, {1: RED}, size=81)
    assert picture.shape == (81, 81, 3)
    drawn = picture[..., 1] == 0
    pixel = 2 * frame.radius_mm / 80
    assert drawn.sum() * pixel**2 == pytest.approx(np.pi * 10**2, rel=0.06)
    np.testing.assert_allclose(np.argwhere(drawn).mean(axis=0), 40, atol=0.5)
    assert picture[28, 30, 0] > 0.95 > 0.6 > picture[54, 52, 0] >= 0.35
    assert (picture[~drawn] == 1).all()


def test_spacing_keeps_proportions():
    cubic = surface_picture(
        ball((33, 33, 33), 10), (1, 1, 1), frame_of(ball((33, 33, 33), 10), (1, 1, 1)), {1: RED}, 60
    )
    flat = ball((33, 33, 33), 10)[:, :, ::2]
    thick = surface_picture(flat, (1, 1, 2), frame_of(flat, (1, 1, 2)), {1: RED}, 60)
    assert (thick[..., 1] == 0).sum() == pytest.approx((cubic[..., 1] == 0).sum(), rel=0.06)


def test_the_viewer_stands_to_the_left_in_front_and_above():
    labels = np.zeros((21, 21, 21), dtype=np.uint8)
    labels[4:17, 4:17, 4:17] = 1
    for sides in ((slice(4, 6), ...), (slice(None), slice(15, 17)), (slice(None), slice(None), slice(15, 17))):
        near = labels.copy()
        near[sides] *= 2
        picture = surface_picture(near, (1, 1, 1), frame_of(labels > 0, (1, 1, 1)), {1: RED, 2: BLUE}, 60)
        assert (picture[..., 2] > picture[..., 0]).mean() > 0.08
        far = np.flip(near, axis=(0, 1, 2))
        picture = surface_picture(far, (1, 1, 1), frame_of(labels > 0, (1, 1, 1)), {1: RED, 2: BLUE}, 60)
        assert (picture[..., 2] > picture[..., 0]).mean() < 0.05


def test_single_voxels_are_seen_and_empty_maps_are_white():
    labels = np.zeros((15, 15, 15), dtype=np.uint8)
    labels[7, 7, 7] = 1
    frame = frame_of(ball((15, 15, 15), 5), (1, 1, 1))
    assert (surface_picture(labels, (1, 1, 1), frame, {1: RED}, 60)[..., 1] == 0).any()
    assert (surface_picture(np.zeros_like(labels), (1, 1, 1), frame, {1: RED}, 60) == 1).all()
    assert frame_of(np.zeros((15, 15, 15), bool), (1, 1, 1)).radius_mm > 7


# --- cases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_module, "surface_picture", partial(surface_picture, size=20))
    return write_grid(tmp_path / "grid", {"a": 0.05, "b": 0.15}, num_cases=4)


def test_all_methods_are_shown_on_the_same_slice(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery_module, "_draw_outlines", lambda axes, view: drawn.append(view))
    pictures, remarks = gallery(read_grid(folder), "a", folder / "report")
    assert remarks == []
    assert [picture.path.name for picture in pictures] == [
        "figure_case_best.png",
        "figure_case_median.png",
        "figure_case_worst.png",
    ]
    best = read_grid(folder).evaluated("a")["fixed", 0].case_means["dice"].idxmax()
    assert pictures[0].caption.startswith(f"{best}, the best case of a")
    # Reference, a and b, three times.
    assert len(drawn) == 9
    reference, first, second = drawn[:3]
    np.testing.assert_array_equal(reference.prediction, reference.reference)
    for view in (first, second):
        assert view.name == reference.name
        np.testing.assert_array_equal(view.image, reference.image)
        np.testing.assert_array_equal(view.reference, reference.reference)
    # The larger error differs in more pixels.
    different = [np.count_nonzero(view.prediction != reference.reference) for view in (first, second)]
    assert different[0] < different[1]


def test_labels_that_are_stored_with_a_scale_are_those_of_whole_numbers(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery_module, "_draw_outlines", lambda axes, view: drawn.append(view))
    gallery(read_grid(folder), "a", folder / "report")
    stored_whole, drawn[:] = list(drawn), []
    for path in (folder / "data").glob("*_label.nii.gz"):
        volume = nib.load(path)
        values = volume.get_fdata() * (1 - 2.3e-10)
        nib.save(nib.Nifti1Image(values, volume.affine), path)
    _, remarks = gallery(read_grid(folder), "a", folder / "report")
    assert remarks == []
    for view, expected in zip(drawn, stored_whole, strict=True):
        np.testing.assert_array_equal(view.prediction, expected.prediction)
        np.testing.assert_array_equal(view.reference, expected.reference)


def test_outlines_stand_out_from_bright_and_dark_surroundings():
    for brightness in (0.0, 0.85, 1.0):
        figure = Figure(figsize=(1, 1), dpi=400)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.full((12, 12), brightness), cmap="gray", vmin=0, vmax=1)
        mask = np.zeros((12, 12), bool)
        mask[4:8, 4:8] = True
        outline(axes, mask, color="#E69F00", width=1.8)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        row = np.asarray(canvas.buffer_rgba())[200, :200, :3].astype(int)
        # From the left: surroundings, dark rim, color, dark rim, inside.
        line = int(np.argmax(row[:, 0] - row[:, 2]))
        assert row[line].tolist() == pytest.approx([0xE6, 0x9F, 0x00], abs=40)
        for side in (row[:line], row[line + 1 :]):
            assert side.max(axis=1).min() < 60


def test_what_a_method_finds_far_away_does_not_change_the_part_that_is_shown(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(gallery_module, "_draw_outlines", lambda axes, view: drawn.append(view))
    case = read_grid(folder).evaluated("a")["fixed", 0].case_means["dice"].idxmax()
    labels_of_b = folder / "cells/b/fixed_seed0/evaluation/labels" / f"{case}.nii.gz"
    for path in folder.rglob(f"{case}*.nii.gz"):
        volume = nib.load(path)
        wide = np.pad(np.asarray(volume.dataobj), ((0, 40), (0, 40), (0, 40)))
        if path == labels_of_b:
            wide[-3:, -3:, -3:] = 1
        nib.save(nib.Nifti1Image(wide, volume.affine), path)
    pictures, _ = gallery(read_grid(folder), "a", folder / "report")
    assert pictures[0].caption.startswith(case)
    reference, first, second = drawn[:3]
    # A row or column of the volume is 62 to 74 voxels long.
    assert max(reference.image.shape) < 55
    for view in (first, second):
        assert view.prediction.shape == reference.image.shape
        assert np.count_nonzero(view.prediction) > 0


def test_cases_that_a_method_lacks_are_not_chosen(folder):
    means = read_grid(folder).evaluated("a")["fixed", 0].case_means["dice"]
    (folder / "cells/b/fixed_seed0/evaluation/labels" / f"{means.idxmax()}.nii.gz").unlink()
    pictures, _ = gallery(read_grid(folder), "a", folder / "report")
    assert pictures[0].caption.startswith(f"{means.sort_values().index[-2]}, the best case of a")


def remarks_of(folder):
    text = (write_report(folder).parent / "report.md").read_text(encoding="utf-8")
    return text[text.index("## Figures") :]


def test_methods_without_label_maps_are_named(folder):
    shutil.rmtree(folder / "cells/b/fixed_seed0/evaluation/labels")
    text = remarks_of(folder)
    assert "Not in the pictures of cases (no label maps of fixed, seed 0): b." in text
    assert "figure_case_best.png" in text


def test_without_label_maps_or_cases_the_report_says_why(folder):
    facts = json.loads((folder / "grid.json").read_text())
    cases = facts.pop("cases")
    (folder / "grid.json").write_text(json.dumps(facts))
    text = remarks_of(folder)
    assert "no case of grid.json has label maps of all methods" in text
    assert "figure_case" not in text
    (folder / "grid.json").write_text(json.dumps({**facts, "cases": cases}))
    shutil.rmtree(folder / "cells/a/fixed_seed0/evaluation/labels")
    assert "the evaluation of a has kept no label maps" in remarks_of(folder)


def test_volumes_that_cannot_be_drawn_leave_out_their_picture_only(folder):
    grid = read_grid(folder)
    means = grid.evaluated("a")["fixed", 0].case_means["dice"]
    labels = folder / "cells/b/fixed_seed0/evaluation/labels"
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), labels / f"{means.idxmax()}.nii.gz")
    (folder / "data" / f"{means.idxmin()}_image.nii.gz").write_bytes(b"broken")
    pictures, remarks = gallery(grid, "a", folder / "report")
    assert [picture.path.name for picture in pictures] == ["figure_case_median.png"]
    median = labels / f"{means.drop([means.idxmax(), means.idxmin()]).index[0]}.nii.gz"
    stored = nib.load(median)
    nib.save(nib.Nifti1Image(np.full(stored.shape, 9, np.uint8), stored.affine), median)
    assert any("the label map of b holds other classes than 0 to" in each for each in gallery(grid, "a", folder)[1])
    assert "the label map of b has shape (3, 3, 3)" in remarks[0]
    assert "cannot be read" in remarks[1]
    assert all("\n" not in remark for remark in remarks)


# --- curves and boxes -------------------------------------------------------------------------------------------------


def test_curves_average_the_runs_of_a_method(make_cells):
    folder = make_cells({"a": {("f", 0): {"x": 0.5}, ("f", 1): {"x": 0.5}}, "b": {("f", 0): {"x": 0.5}}})
    cells = folder / "cells"
    (cells / "a/f_seed0/validation.csv").write_text("iteration,mean_dice\n10,0.2\n20,0.4\n")
    # Where one run alone has come, there is no mean of both.
    (cells / "a/f_seed1/validation.csv").write_text("iteration,mean_dice\n10,0.4\n20,0.8\n30,0.1\n")
    (cells / "b/f_seed0/validation.csv").unlink()
    table = _curves(read_grid(folder), "validation.csv", "mean_dice")
    assert list(table) == ["iteration", "a"]
    assert table["iteration"].tolist() == [10, 20]
    assert table["a"].tolist() == pytest.approx([0.3, 0.6])
    # A run that failed early does not count beside those that were evaluated.
    (cells / "a/f_seed1/validation.csv").write_text("iteration,mean_dice\n10,0.4\n")
    (cells / "a/f_seed1/evaluation/metrics_cases.csv").unlink()
    assert _curves(read_grid(folder), "validation.csv", "mean_dice")["a"].tolist() == [0.2, 0.4]


def test_each_method_has_a_panel_with_the_reference_on_top(make_cells, tmp_path, monkeypatch):
    folder = make_cells({name: {("f", 0): {"x": 0.5}} for name in ("a", "$b$", "c", "d")})
    (folder / "cells/$b$/f_seed0/validation.csv").unlink()
    # A line too long, a word in place of a number.
    (folder / "cells/c/f_seed0/history.csv").write_text("iteration,loss\n1,0.5\n2,0.4,7\n")
    (folder / "cells/c/f_seed0/validation.csv").write_text("iteration,mean_dice\n1,O.5\n")
    drawn = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.update({path.name: figure}) or path)
    pictures = curves_pictures(read_grid(folder), "a", tmp_path)
    assert [picture.path.name for picture in pictures] == list(drawn) == ["figure_validation.png", "figure_loss.png"]
    panels = {name: [axes for axes in figure.axes if axes.lines] for name, figure in drawn.items()}
    assert [axes.get_title() for axes in panels["figure_validation.png"]] == ["d"]
    assert [axes.get_title() for axes in panels["figure_loss.png"]] == ["$b$", "d"]
    for axes in panels["figure_loss.png"]:
        assert [line.get_color() for line in axes.lines] == [_PLAIN, _HIGHLIGHT]
    # Percent: 0.9 - 1 / 35 at iteration 25.
    reference = panels["figure_validation.png"][0].lines[1]
    assert reference.get_label() == "a"
    assert reference.get_ydata()[0] == pytest.approx(100 * (0.9 - 1 / 35))


def test_tables_that_cannot_be_read_are_remarked(make_cells):
    folder = make_cells({"a": {("f", 0): {"x": 0.5}}, "b": {("f", 0): {"x": 0.5}}})
    path = folder / "cells/b/f_seed0/history.csv"
    path.write_text(path.read_text() + "1,2,3,4,5,6,7,8\n")
    text = remarks_of(folder)
    assert re.search(rf"Not in the curves: {path} must be a table of numbers: Error tokenizing .*line 102", text)
    assert "(figure_loss.png)" in text


def test_without_histories_there_are_no_curves_but_a_report(make_cells, tmp_path):
    folder = make_cells({"a": {("f", 0): {"x": 0.5}}})
    for name in ("history.csv", "validation.csv", "run.json"):
        (folder / "cells/a/f_seed0" / name).unlink()
    assert curves_pictures(read_grid(folder), "a", tmp_path) == []
    text = remarks_of(folder)
    assert "Curves are missing" in text
    assert "figure_loss.png" not in text


def test_the_reference_alone_has_a_panel(make_cells, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    curves_pictures(read_grid(make_cells({"a": {("f", 0): {"x": 0.5}}})), "a", tmp_path)
    assert [axes.get_title() for figure in drawn for axes in figure.axes] == ["a", "a"]


def test_boxes_of_a_method_that_found_nothing(make_cells, tmp_path):
    grid = read_grid(make_cells({"a": {("f", 0): {"x": None}}, "$b$": {("f", 0): {"x": 0.5, "y": 0.6}}}))
    picture = boxes_picture(grid, "a", "hd95_voxel", tmp_path / "boxes.png")
    assert picture.path.is_file()
    assert "less is better" in picture.caption
