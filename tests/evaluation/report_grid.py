# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A generated grid of runs, with the files that trainings and evaluations leave."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from scripts.evaluation.case_report import CaseReport
from scripts.evaluation.metrics import METRIC_NAMES, evaluate_case

SHAPE, SPACING = (26, 34, 22), (1.0, 1.0, 1.5)
#: Voxel axes that point to the left, to the back and to the head.
AFFINE = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])


def make_labels(generator, *, shift=0.0, growth=0.0):
    """A bent tube of two classes, front and back, moved and thickened."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in SHAPE), indexing="ij")
    center_x = 0.25 * np.cos(3 * y) - 0.1 + shift * generator.normal()
    center_z = 0.2 * np.sin(2 * y) + shift * generator.normal()
    radius = (0.36 + growth) * np.sqrt(np.clip(1 - (y / 0.85) ** 2, 0, 1))
    tube = (x - center_x) ** 2 + (z - center_z) ** 2 < radius**2
    return (tube * np.where(y > 0.1 * generator.normal(), 1, 2)).astype(np.uint8)


def blur(labels, error):
    """Labels with a border that moves in and out, more so for a larger error, differently for each label map."""
    generator = np.random.default_rng([int(1000 * error), int(labels.sum())])
    noise = ndimage.gaussian_filter(generator.normal(size=SHAPE), 2)
    inside = ndimage.distance_transform_edt(labels > 0) - ndimage.distance_transform_edt(labels == 0)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.where(inside + 10 * error * noise / noise.std() > 0, labels[tuple(nearest)], 0).astype(np.uint8)


def write_cell(folder, rows, *, class_names=("front", "back"), history=True, weights=True):
    """Files of a training and its evaluation; ``rows`` is what evaluate_case returns, by case."""
    folder.mkdir(parents=True)
    report = CaseReport(folder / "evaluation", class_names)
    for case, metrics in rows.items():
        report.add(case, metrics)
    report.write()
    facts = {"settings": {"iterations": 100, "method": folder.parent.name}, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(facts))
    if history:
        steps = np.arange(1, 101)
        decay = len(folder.parent.name) / (10 + steps)
        table = pd.DataFrame({"iteration": steps, "seconds": 0.5 * steps, "learning_rate": 0.01, "loss": decay})
        table.to_csv(folder / "history.csv", index=False)
        validation = pd.DataFrame({"iteration": steps[24::25], "mean_dice": 0.9 - decay[24::25]})
        validation.to_csv(folder / "validation.csv", index=False)
    if weights:
        state = {"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3), "norm.running_mean": torch.zeros(3)}
        torch.save(state, folder / "model_final.pt")


def write_grid_file(folder, methods, *, splits=("fixed",), seeds=(0,), class_names=("front", "back"), **others):
    """The description of the grid."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "version": 1,
        "data": "hippocampus",
        "recipe": "budget",
        "methods": list(methods),
        "splits": {split: f"splits/tubes_{split}.json" for split in splits},
        "seeds": list(seeds),
        "overrides": {"iterations": 100},
        "class_names": list(class_names),
    }
    (folder / "grid.json").write_text(json.dumps({**facts, **others}))


def write_volume(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, AFFINE), path)
    return str(path)


def write_grid(folder, errors, *, splits=("fixed",), seeds=(0,), num_cases=5):
    """A grid whose methods draw the tube of each case with errors of a size of their own."""
    generator = np.random.default_rng(0)
    references, paths = {}, {}
    for split in splits:
        for number in range(num_cases):
            case, labels = f"{split}_case_{number}", make_labels(generator, shift=0.1, growth=0.02 * number)
            image = (60.0 * (labels > 0) + 10 * labels + generator.normal(100, 8, SHAPE)).astype(np.float32)
            references[split, case] = labels
            paths[case] = {
                "image": write_volume(image, folder / "data" / f"{case}_image.nii.gz"),
                "label": write_volume(labels, folder / "data" / f"{case}_label.nii.gz"),
            }
    for method, error in errors.items():
        for seed in seeds:
            for split in splits:
                cell = folder / "cells" / method / f"{split}_seed{seed}"
                maps = {case: blur(labels, error) for (where, case), labels in references.items() if where == split}
                rows = {
                    case: evaluate_case(labels, references[split, case], 3, SPACING, ["front", "back"])
                    for case, labels in maps.items()
                }
                write_cell(cell, rows)
                for case, labels in maps.items():
                    write_volume(labels, cell / "evaluation" / "labels" / f"{case}.nii.gz")
    write_grid_file(folder, list(errors), splits=splits, seeds=seeds, cases=paths)
    return folder


def write_cells(folder, cells, *, class_names=("organ",), **others):
    """A grid with given Dice coefficients, {method: {(split, seed): {case: dice}}}, without volumes.

    With several classes, dice is a tuple. None is a missed class. The distances are 10 times what lacks to a Dice of 1.
    """
    for method, runs in cells.items():
        for (split, seed), cases in runs.items():
            rows = {
                case: [
                    metrics_row(value, name)
                    for value, name in zip(dice if isinstance(dice, tuple) else (dice,), class_names, strict=True)
                ]
                for case, dice in cases.items()
            }
            write_cell(folder / "cells" / method / f"{split}_seed{seed}", rows, class_names=class_names)
    runs = dict.fromkeys(run for cells_of_method in cells.values() for run in cells_of_method)
    splits, seeds = (list(dict.fromkeys(values)) for values in zip(*runs, strict=True))
    lists = {"splits": splits, "seeds": seeds, "class_names": class_names, **others}
    write_grid_file(folder, lists.pop("methods", list(cells)), **lists)
    return folder


def metrics_row(dice, name="organ"):
    row = {"class": name, "status": "missed" if dice is None else "found"}
    dice = dice or 0.0
    distance = 10 * (1 - dice) if row["status"] == "found" else float("nan")
    return {**row, "dice": dice, "jaccard": dice / (2 - dice), **dict.fromkeys(METRIC_NAMES[2:], distance)}


def change_facts(folder, method, run="f_seed0", **parts):
    """Put values into the parts of run.json that are named, such as settings={"cases": ...}."""
    path = folder / "cells" / method / run / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, **{name: {**facts.get(name, {}), **part} for name, part in parts.items()}}))
