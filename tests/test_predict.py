# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Segmentation of NIfTI and DICOM from the command line: one way through, DICOM SEG, one line for each bad input."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, assert_refused
from dicom_series import write_series
from pydicom import dcmread

from scripts.__main__ import predict as predict_command
from scripts.data.dicom import read_series
from scripts.data.dicom_seg import check_references, write_dicom_seg
from scripts.inference_configuration import inference_configs
from scripts.networks.dual_network import DualNetwork
from scripts.predict import predict_volumes

SMALL = {"patch_size": [32, 32, 32], "overlap": 0, "device": "cpu"}
OBLIQUE = ((0.8, 0.6, 0.0), (0.0, 0.0, -1.0))
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualNetwork().eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.ts"
    torch.jit.script(network).save(path)
    return path


@pytest.fixture
def study(tmp_path):
    """Two series of one patient, an oblique one and one with fewer slices."""
    generator = np.random.default_rng(0)
    for name, size, orientation in (("CT ä", 12, OBLIQUE), ("CT.1.2", 9, OBLIQUE[::-1])):
        stored = generator.integers(900, 1300, size=(20, 24, size)).astype(np.uint16)
        write_series(tmp_path / "study" / name, stored, orientation=orientation)
    return tmp_path / "study"


def segment(source, output_dir, weights=None, data=None, **options):
    arguments = {"overrides": {**SMALL, **options.pop("overrides", {})}, "logging_file": False, **options}
    if weights is not None:
        arguments["overrides"]["ckpt_path"] = str(weights)
    predict_volumes(source, output_dir, inference_configs(data), **arguments)


def labels_of(path):
    image = nib.load(path)
    return np.asanyarray(image.dataobj), image.affine


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- one way through --------------------------------------------------------------------------------------------------


def test_dicom_and_nifti_give_the_same_label_map(study, weights, tmp_path):
    segment(study, tmp_path / "dicom", weights)
    assert names_in(tmp_path / "dicom") == ["CT ä_seg.nii.gz", "CT.1.2_seg.nii.gz"]
    (tmp_path / "volumes").mkdir()
    for name in ("CT ä", "CT.1.2"):
        nib.save(read_series(study / name).to_nifti(), tmp_path / "volumes" / f"{name}.nii.gz")
    segment(tmp_path / "volumes", tmp_path / "nifti", weights)
    assert names_in(tmp_path / "nifti") == names_in(tmp_path / "dicom")
    for name in names_in(tmp_path / "nifti"):
        (expected, expected_affine), (labels, affine) = (
            labels_of(tmp_path / kind / name) for kind in ("nifti", "dicom")
        )
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(affine, expected_affine, atol=1e-5)
        assert 0 < labels.mean() < 1
    np.testing.assert_allclose(affine, read_series(study / "CT.1.2").affine, atol=1e-4)


def test_a_single_file_and_a_torchscript_file(phantom_dir, weights, model, tmp_path):
    volume = phantom_dir / "images/phantom_000.nii.gz"
    segment(volume, tmp_path / "weights", weights)
    segment(volume, tmp_path / "model", model=str(model))
    expected, labels = (labels_of(tmp_path / kind / "phantom_000_seg.nii.gz")[0] for kind in ("weights", "model"))
    np.testing.assert_array_equal(labels, expected)
    assert 0 < labels.mean() < 1


def test_the_overlay_of_a_data_set_is_used(study, weights, tmp_path):
    segment(study / "CT ä", tmp_path / "own", weights, data="pancreas", overrides={"spacing": [3, 3, 3]})
    segment(study / "CT ä", tmp_path / "plain", weights)
    windowed, plain = (labels_of(tmp_path / kind / "CT ä_seg.nii.gz")[0] for kind in ("own", "plain"))
    assert windowed.shape == plain.shape
    assert (windowed != plain).any()


def test_series_of_one_folder_are_named_by_their_numbers(weights, tmp_path):
    stored = np.random.default_rng(0).integers(0, 300, size=(16, 16, 8)).astype(np.uint16)
    for number in (2, 11):
        write_series(tmp_path / "patient" / "scan", stored, number=number, prefix=f"S{number}_")
    segment(tmp_path / "patient", tmp_path / "out", weights)
    assert names_in(tmp_path / "out") == ["scan_11_seg.nii.gz", "scan_2_seg.nii.gz"]


def test_a_hidden_folder_gives_its_series_a_name_that_is_found(weights, tmp_path):
    stored = np.random.default_rng(0).integers(0, 300, size=(16, 16, 8)).astype(np.uint16)
    write_series(tmp_path / ".incoming", stored)
    segment(tmp_path / ".incoming", tmp_path / "out", weights)
    assert names_in(tmp_path / "out") == ["incoming_seg.nii.gz"]


# --- DICOM SEG --------------------------------------------------------------------------------------------------------


def test_the_dicom_seg_is_the_label_map_in_the_geometry_of_the_series(study, weights, tmp_path):
    segment(study, tmp_path / "out", weights, data="left_atrium", dicom_seg=True)
    assert [name for name in names_in(tmp_path / "out") if name.endswith(".dcm")] == ["CT ä_seg.dcm", "CT.1.2_seg.dcm"]
    for name in ("CT ä", "CT.1.2"):
        source = read_series(study / name)
        labels, affine = labels_of(tmp_path / "out" / f"{name}_seg.nii.gz")
        seg = hd.seg.segread(tmp_path / "out" / f"{name}_seg.dcm")
        assert {sop for _, _, sop in seg.get_source_image_uids()} == {item.SOPInstanceUID for item in source.datasets}
        # By references: the frame of each source image is its slice.
        frames = seg.get_pixels_by_source_instance(
            [dataset.SOPInstanceUID for dataset in source.datasets],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(frames.transpose(2, 1, 0), labels)
        # By positions: the same, wherever the segmentation starts to count.
        volume = seg.get_volume(combine_segments=True, allow_missing_positions=True)
        expected = hd.Volume(labels, LPS_TO_RAS @ affine, coordinate_system="PATIENT")
        np.testing.assert_array_equal(volume.match_geometry(expected, tol=1e-3).array, labels)
        header = source.datasets[0]
        for tag in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName"):
            assert seg[tag].value == header[tag].value, tag
        assert seg.SeriesInstanceUID != header.SeriesInstanceUID
        assert seg.SeriesNumber == 1003
        description = seg.get_segment_description(1)
        assert description.segment_label == "left atrium"
        assert description.segmented_property_type.value == "82471001"
        assert description.segmented_property_type.scheme_designator == "SCT"


def test_segments_without_a_voxel_and_names_without_a_code(tmp_path):
    stored = np.zeros((6, 5, 4), np.uint16)
    write_series(tmp_path / "series", stored)
    datasets = read_series(tmp_path / "series").datasets
    labels = np.zeros((6, 5, 4), np.uint8)
    names = ["anterior", "pancreas"]
    write_dicom_seg(tmp_path / "empty.dcm", labels, datasets, names, version="0.1.0")
    labels[1:3, 2, 1] = 2
    write_dicom_seg(tmp_path / "second.dcm", labels, datasets, names, version="0.1.0")
    for name, expected in (("empty", np.zeros_like(labels)), ("second", labels)):
        seg = hd.seg.segread(tmp_path / f"{name}.dcm")
        assert list(seg.segment_numbers) == [1, 2]
        assert [seg.get_segment_description(number).segment_label for number in (1, 2)] == names
        frames = seg.get_pixels_by_source_instance(
            [dataset.SOPInstanceUID for dataset in datasets],
            combine_segments=True,
            assert_missing_frames_are_empty=True,
        )
        np.testing.assert_array_equal(frames.transpose(2, 1, 0), expected)
    local = seg.get_segment_description(1).segmented_property_type
    assert (local.value, local.scheme_designator, local.meaning) == ("class-1", "99LOCAL", "anterior")


def test_an_anonymized_series_and_a_name_in_other_letters(tmp_path):
    write_series(tmp_path / "series", np.zeros((6, 5, 4), np.uint16))
    datasets = read_series(tmp_path / "series").datasets
    for dataset in datasets:
        dataset.SpecificCharacterSet = "ISO_IR 100"
        for tag in ("PatientName", "PatientBirthDate", "StudyID", "StudyDate", "AccessionNumber", "SliceThickness"):
            if tag in dataset:
                del dataset[tag]
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[1:3, 2, 1] = 1
    check_references(datasets)
    write_dicom_seg(tmp_path / "seg.dcm", labels, datasets, ["żołądek"], version="0.1.0")
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert seg.get_segment_description(1).segment_label == "żołądek"
    assert seg.PatientName == ""
    thickness = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
    affine = read_series(tmp_path / "series").affine
    assert thickness == pytest.approx(np.linalg.norm(affine[:3, 2]))
    # The series itself stays as it was.
    assert "PatientName" not in datasets[0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("StudyInstanceUID", "", "refers to StudyInstanceUID, which the files lack: leave out --dicom_seg"),
        ("SOPInstanceUID", None, "refers to SOPInstanceUID, which the files lack"),
        ("FrameOfReferenceUID", "1.2.3", "refers to one FrameOfReferenceUID, the files have several"),
    ],
)
def test_series_that_a_dicom_seg_cannot_refer_to(name, value, message, tmp_path):
    write_series(tmp_path, np.zeros((4, 4, 3), np.uint16))
    datasets = read_series(tmp_path).datasets
    check_references(datasets)
    if value is None:
        del datasets[1][name]
    else:
        setattr(datasets[1], name, value)
    with assert_refused(message):
        check_references(datasets)


def test_no_warning_shows_the_name_of_a_patient(tmp_path, recwarn):
    write_series(tmp_path / "series", np.zeros((6, 5, 4), np.uint16))
    datasets = read_series(tmp_path / "series").datasets
    for dataset in datasets:
        dataset.PatientName = "P0815"
    write_dicom_seg(tmp_path / "seg.dcm", np.ones((6, 5, 4), np.uint8), datasets, ["organ"], version="0.1.0")
    assert not [warning for warning in recwarn if "P0815" in str(warning.message)]
    assert dcmread(tmp_path / "seg.dcm").PatientName == "P0815"


def test_a_dicom_seg_that_cannot_be_written_costs_a_line(study, weights, tmp_path, monkeypatch, caplog):
    def fail(path, *arguments, **options):
        if "CT ä" in path.name:
            raise AttributeError("no such\ntag")
        return write_dicom_seg(path, *arguments, **options)

    monkeypatch.setattr("scripts.predict.write_dicom_seg", fail)
    with assert_refused("^1 DICOM SEG cannot be written, see the lines above.$"):
        segment(study, tmp_path / "out", weights, dicom_seg=True, class_names=["organ"])
    assert "the DICOM SEG of CT ä cannot be written: no such tag" in caplog.messages
    assert names_in(tmp_path / "out") == ["CT ä_seg.nii.gz", "CT.1.2_seg.dcm", "CT.1.2_seg.nii.gz"]


def test_a_stopped_run_on_series_goes_on(study, weights, tmp_path, monkeypatch):
    out, goes_on = tmp_path / "out", {"overrides": {"skip_existing": True}}
    segment(study, out, weights)
    (out / "CT.1.2_seg.nii.gz").unlink()
    kept = (out / "CT ä_seg.nii.gz").stat().st_mtime_ns
    segment(study, out, weights, **goes_on)
    assert names_in(out) == ["CT ä_seg.nii.gz", "CT.1.2_seg.nii.gz"]
    assert (out / "CT ä_seg.nii.gz").stat().st_mtime_ns == kept
    # Asked for afterwards, the DICOM SEG are made of the label maps that are there.
    (out / "CT.1.2_seg.nii.gz").unlink()
    segment(study, out, weights, dicom_seg=True, class_names=["organ"], **goes_on)
    assert names_in(out) == ["CT ä_seg.dcm", "CT ä_seg.nii.gz", "CT.1.2_seg.dcm", "CT.1.2_seg.nii.gz"]
    assert (out / "CT ä_seg.nii.gz").stat().st_mtime_ns == kept
    segment(study, tmp_path / "at_once", weights, dicom_seg=True, class_names=["organ"])
    for name in ("CT ä_seg.dcm", "CT.1.2_seg.dcm"):
        first, again = dcmread(out / name), dcmread(tmp_path / "at_once" / name)
        assert first.pixel_array.any()
        assert np.array_equal(first.pixel_array, again.pixel_array)
    # Nothing is left to do: no series is converted again.
    monkeypatch.setattr("scripts.predict.read_series", None)
    segment(study, out, weights, dicom_seg=True, class_names=["organ"], **goes_on)


@pytest.mark.parametrize("reason", ["is older than the series", "lies on another grid than the series"])
def test_a_label_map_of_another_series_goes_into_no_dicom_seg(reason, study, weights, tmp_path, caplog):
    out = tmp_path / "out"
    segment(study, out, weights)
    before = (out / "CT ä_seg.nii.gz").stat().st_mtime_ns
    # Another scan in the folder, of as many voxels, with the times that its archive kept or that of today.
    for path in (study / "CT ä").iterdir():
        dataset = dcmread(path)
        if reason == "lies on another grid than the series":
            dataset.PixelSpacing = [2 * value for value in dataset.PixelSpacing]
        dataset.save_as(path)
        time = before + (1 if reason == "is older than the series" else -1) * 10**9
        os.utime(path, ns=(time, time))
    with assert_refused("^1 DICOM SEG cannot be written, see the lines above.$"):
        segment(study, out, weights, dicom_seg=True, class_names=["organ"], overrides={"skip_existing": True})
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith(f"the DICOM SEG of CT ä cannot be written: {out / 'CT ä_seg.nii.gz'} {reason}")
    assert names_in(out) == ["CT ä_seg.nii.gz", "CT.1.2_seg.dcm", "CT.1.2_seg.nii.gz"]
    assert (out / "CT ä_seg.nii.gz").stat().st_mtime_ns == before


# --- bad inputs -------------------------------------------------------------------------------------------------------


def test_a_bad_series_costs_a_line_and_the_others_go_on(study, weights, tmp_path, caplog):
    sorted((study / "CT ä").iterdir())[4].unlink()
    with assert_refused("^1 of 2 DICOM series cannot be segmented, see the lines above.$"):
        segment(study, tmp_path / "out", weights)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith(f"CT ä cannot be segmented: {study / 'CT ä'}, DICOM series")
    assert line.endswith("distances must be even: a slice may be missing.")
    assert names_in(tmp_path / "out") == ["CT.1.2_seg.nii.gz"]


def test_volumes_below_the_folder_of_series_are_told_of(study, weights, tmp_path, caplog):
    hidden, out = study / ".cache", study / "labels"
    for folder in (study / "more", hidden, out):
        folder.mkdir()
        for name in ("b.nii.gz", "a.nii"):
            nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4)), folder / name)
    segment(study, out, weights, overrides={"trained_spacing": [9, 9, 9]})
    (told,) = [message for message in caplog.messages if message.startswith(f"input {study} holds DICOM series: ")]
    assert told.endswith(f"are passed over, such as {Path('more/a.nii')} (2 in all).")
    # A warning names the series, not the file that it was converted to.
    about = [message for message in caplog.messages if "the weights are for 9x9x9 mm" in message]
    assert [message.split(" has voxels of")[0] for message in about] == ["CT ä", "CT.1.2"]
    assert ".dicom_" not in caplog.text


def test_no_good_series(study, weights, tmp_path):
    for folder in study.iterdir():
        sorted(folder.iterdir())[4].unlink()
    with assert_refused("^2 of 2 DICOM series cannot be segmented, see the lines above.$"):
        segment(study, tmp_path / "out", weights)
    assert names_in(tmp_path / "out") == []


def test_a_linked_folder_is_segmented(study, weights, tmp_path):
    (tmp_path / "study").rename(tmp_path / "archive")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "patient").symlink_to(tmp_path / "archive" / "CT.1.2")
    segment(tmp_path / "study", tmp_path / "out", weights)
    assert names_in(tmp_path / "out") == ["patient_seg.nii.gz"]


def test_an_inferer_of_ones_own_needs_no_windows(weights, tmp_path):
    overlay = tmp_path / "whole.json"
    overlay.write_text(json.dumps({"inferer": {"_target_": "SimpleInferer"}}))
    image = tmp_path / "volume.nii.gz"
    voxels = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.25, 1.25, 1.25, 1])), image)
    for name, files, options in (("own", [str(overlay)], {}), ("shipped", [], {"whole_volume": True})):
        overrides = {**SMALL, "ckpt_path": str(weights), **options}
        predict_volumes(image, tmp_path / name, [*inference_configs(None), *files], overrides=overrides)
    own, shipped = (labels_of(tmp_path / name / "volume_seg.nii.gz")[0] for name in ("own", "shipped"))
    np.testing.assert_array_equal(own, shipped)


def test_files_in_another_order_are_refused(phantom_dir, tmp_path):
    (tmp_path / "inference.json").write_text(json.dumps({"network_def#in_channels": 1}))
    own, first = str(tmp_path / "inference.json"), inference_configs()[0]
    for files in ([own], [own, first]):
        with assert_refused(rf"^config_file must begin with the configuration of an inference: {first},{own}\.$"):
            predict_volumes(phantom_dir / "images", tmp_path / "out", files, logging_file=False)


def test_capitals_are_told_of(weights, tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "A.NII.GZ").write_bytes(b"")
    for place in (tmp_path / "scans", tmp_path / "scans" / "A.NII.GZ"):
        with assert_refused(r"^input .*: A\.NII\.GZ would be left out, .*: rename it\.$"):
            segment(place, tmp_path / "out", weights)
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"")
    with assert_refused(r"^input .*: A\.NII\.GZ would be left out, .*: rename it\.$"):
        segment(tmp_path / "scans", tmp_path / "out", weights)


def test_nothing_is_replaced_unasked(study, weights, tmp_path):
    stored = tmp_path / "out/CT ä_seg.dcm"
    stored.parent.mkdir()
    stored.write_text("mine")
    options = {"dicom_seg": True, "class_names": ["organ"]}
    with assert_refused(
        "already holds 1 of the files to write, such as CT ä_seg.dcm: go on with the others by --skip_existing true"
    ):
        segment(study, tmp_path / "out", weights, **options)
    assert names_in(tmp_path / "out") == ["CT ä_seg.dcm"]
    assert stored.read_text() == "mine"
    segment(study, tmp_path / "out", weights, overwrite=True, **options)
    assert dcmread(stored).Modality == "SEG"
    with assert_refused("already holds 2 of the files to write, such as CT ä_seg.nii.gz"):
        segment(study, tmp_path / "out", weights)


def test_inputs_that_are_none(phantom_dir, study, weights, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    for place in ("none", "notes.txt"):
        with assert_refused(f"input must be a NIfTI file, a folder of them, or a folder with DICOM .*, got .*{place}"):
            segment(tmp_path / place, tmp_path / "out", weights)
    with assert_refused("input must be .*, and there is none of them in .*empty"):
        segment(tmp_path / "empty", tmp_path / "out", weights)
    for place in (study, study / "CT ä"):
        with assert_refused("output_dir must be another folder than those of the DICOM series"):
            segment(study, place, weights)
    with assert_refused(r"output_dir .*notes\.txt cannot be written: .*notes\.txt is a file"):
        segment(study, tmp_path / "notes.txt", weights)
    stored = np.zeros((4, 4, 3), np.uint16)
    write_series(tmp_path / "twice" / "a_b", stored)
    write_series(tmp_path / "twice" / "a" / "b", stored)
    with assert_refused("would both be named a_b: rename one of the folders"):
        segment(tmp_path / "twice", tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"patchsize": 3}}, "--patchsize is no key of the configuration .*Did you mean --patch_size"),
        ({"overrides": {"dicom_sge": True}}, "--dicom_sge is no key .*Did you mean --dicom_seg"),
        ({"overrides": {"dataset_dir": "x"}}, "dataset_dir is named by --input here"),
        ({"overrides": {"ckpt_path": "none.pt"}}, "ckpt_path none.pt does not exist"),
        ({"overrides": {"patch_size": [30, 32, 32]}}, "patch_size must be three whole numbers of at least 16"),
        ({"overrides": {"num_classes": 3}}, "ckpt_path .* does not fit: .*check num_classes and in_channels"),
        ({"overrides": {"output_postfix": ""}}, "output_postfix must be a string"),
        ({"overrides": {"load_pretrain": "maybe"}}, "load_pretrain must be true or false, got 'maybe'"),
        ({"dicom_seg": True}, "dicom_seg needs the names of the classes: by --class_names, or by --data"),
        ({"dicom_seg": True, "class_names": ["a", "b"]}, "class_names must be a list of 1 different names"),
        ({"class_names": ["a"]}, "class_names are the names in a DICOM SEG: they need dicom_seg"),
        ({"model": "none.ts"}, "model stands for network and weights, leave out --ckpt_path"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_are_refused(options, message, study, weights, tmp_path):
    overrides = {"ckpt_path": str(weights), **options.pop("overrides", {})}
    with assert_refused(message):
        segment(study, tmp_path / "out", overrides=overrides, **options)
    assert names_in(tmp_path / "out") == []


def test_names_of_the_shipped_weights_are_not_given_to_those_of_a_file(study, weights, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"ckpt_path": str(weights), "patch_size": [32, 32, 32]}))
    files = [*inference_configs(), str(tmp_path / "mine.json")]
    with assert_refused("dicom_seg needs the names of the classes"):
        predict_volumes(study, tmp_path / "out", files, overrides={"device": "cpu"}, dicom_seg=True)


def test_torchscript_files_are_checked(phantom_dir, study, model, tmp_path):
    volume = phantom_dir / "images/phantom_000.nii.gz"
    (tmp_path / "text.ts").write_text("no model")
    for options, message in (
        ({"model": "none.ts"}, "model none.ts does not exist"),
        ({"model": str(tmp_path / "text.ts")}, "model .*text.ts cannot be read as a TorchScript file"),
        ({"model": str(model), "overrides": {"num_classes": 3}}, "model .* has 2 classes, num_classes is 3"),
        ({"model": str(model), "overrides": {"save_uncertainty": True}}, "save_uncertainty needs --ckpt_path"),
        ({"model": str(model), "dicom_seg": True}, "dicom_seg needs DICOM series as input, got the NIfTI volumes"),
    ):
        with assert_refused(message):
            segment(volume, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with assert_refused("dicom_seg needs the names of the classes"):
        segment(study, tmp_path / "out", model=str(model), dicom_seg=True)


def test_memory_that_is_not_enough_is_no_fault_of_a_model(phantom_dir, model, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch.jit, "load", fail)
    with assert_refused("^the memory of the device is not enough: "):
        segment(phantom_dir / "images/phantom_000.nii.gz", tmp_path / "out", model=str(model))


def test_the_shipped_weights_have_the_names_of_the_metadata(study, network, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    torch.save(network.state_dict(), tmp_path / "models/model.pt")
    monkeypatch.setattr("scripts.predict._WEIGHTS", tmp_path / "models/model.pt")
    segment(study / "CT ä", tmp_path / "out", overrides={"bundle_root": str(tmp_path)}, dicom_seg=True)
    seg = hd.seg.segread(tmp_path / "out/CT ä_seg.dcm")
    assert seg.get_segment_description(1).segment_label == "left atrium"


# --- the command ------------------------------------------------------------------------------------------------------


def test_data_sets_are_named(tmp_path):
    assert inference_configs() == [str(ROOT / "configs/inference.json")]
    assert inference_configs("pancreas")[1] == str(ROOT / "configs/data_pancreas.json")
    with assert_refused("data must be one of .*hippocampus, .*pancreas, got 'liver'"):
        inference_configs("liver")
    with assert_refused("config_file must name files that exist, got none.json"):
        predict_command("in", "out", config_file="none.json")
    for text, message in (("{", "cannot be read: "), ("[1]", "must hold keys and values, got a list")):
        (tmp_path / "own.json").write_text(text)
        with assert_refused(rf"config_file .*own\.json {message}"):
            predict_command("in", "out", config_file=str(tmp_path / "own.json"))
    with assert_refused("ckpt_path must be a string, got 5"):
        predict_command("in", "out", ckpt_path=5)
    with assert_refused("input must be a path, and MONAI would compute @scans: write /.*/@scans"):
        predict_command("@scans", "out")
    expression = "$__import__('os').abort() or 'x.ts'"
    for name in ("model", "ckpt_path"):
        with assert_refused(rf"{name} must be a path, and MONAI would compute \$__import__"):
            predict_command("in", "out", **{name: expression})
    with assert_refused("give one of the two"):
        predict_command("in", "out", data="pancreas", config_file="a.json")


def test_the_command_line(study, weights, tmp_path):
    sorted((study / "CT ä").iterdir())[4].unlink()
    command = [sys.executable, "-m", "scripts", "predict", "--input", str(study), "--output_dir", str(tmp_path / "out")]
    command += ["--ckpt_path", str(weights), "--patch_size", "[32,32,32]", "--overlap", "0", "--dicom_seg"]
    command += ["--config_file", "configs/inference.json,configs/data_left_atrium.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert (
        done.stderr.strip().splitlines()[-1] == "error: 1 of 2 DICOM series cannot be segmented, see the lines above."
    )
    assert len([line for line in done.stdout.splitlines() if "CT ä cannot be segmented" in line]) == 1
    assert "volume 1 of 1" in done.stdout
    assert names_in(tmp_path / "out") == ["CT.1.2_seg.dcm", "CT.1.2_seg.nii.gz"]


def test_a_bundle_without_overlays_has_no_data_to_name(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.configuration.CONFIGS", tmp_path)
    with assert_refused("there is none: leave out --data"):
        inference_configs("kidney")


def test_weights_of_a_run_with_another_preprocessing_are_refused(phantom_dir, weights, tmp_path):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "model_final.pt"
    path.write_bytes(Path(weights).read_bytes())
    (tmp_path / "run" / "run_config.json").write_text(json.dumps({"spacing": [1.5, 1.5, 1.5]}))
    with assert_refused(r"spacing was \[1.5, 1.5, 1.5\], is \[1.25, 1.25, 1.25\]"):
        predict_volumes(
            phantom_dir / "images", tmp_path / "out", inference_configs(), overrides={"ckpt_path": str(path)}
        )
    # So are those that a file names, and an exported network that lies beside them.
    (tmp_path / "run" / "inference.json").write_text(json.dumps({"ckpt_path": str(path)}))
    with assert_refused(r"spacing was \[1.5, 1.5, 1.5\], is"):
        predict_volumes(
            phantom_dir / "images", tmp_path / "out", [*inference_configs(), str(tmp_path / "run" / "inference.json")]
        )
    (tmp_path / "run" / "model.ts").touch()
    with assert_refused(r"spacing was \[1.5, 1.5, 1.5\], is"):
        predict_volumes(
            phantom_dir / "images", tmp_path / "out", inference_configs(), model=str(tmp_path / "run" / "model.ts")
        )
    with assert_refused(r"config_file must begin with the configuration of an inference: .*inference\.json,.*\.json\."):
        predict_volumes(phantom_dir / "images", tmp_path / "out", [str(tmp_path / "run" / "inference.json")])
    assert not (tmp_path / "out").exists()
