# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Packaged bundles, as the Model Zoo, Triton and the Hugging Face Hub take them: from outside, with nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from zipfile import ZipFile

import monai.bundle.scripts
import pytest
import torch
import yaml
from conftest import ROOT, assert_refused
from monai.bundle import download_large_files, load, push_to_hf_hub, verify_metadata

from scripts.__main__ import main
from scripts.configuration import TRAINED_KEYS
from scripts.networks.dual_network import DualNetwork
from scripts.packaging.package import write_package
from scripts.packaging.task import TASKS, task_package

#: The schema of the MONAI project (Apache License 2.0) that the metadata name, so that no test needs the network.
SCHEMA = ROOT / "tests/schema/meta_schema_20240725.json"
NAMES = {
    "left_atrium": "left_atrium_mri_dual_network_segmentation",
    "pancreas": "pancreas_ct_dual_network_segmentation",
    "hippocampus": "hippocampus_mri_dual_network_segmentation",
}
WORDS = {"left_atrium": "atri(um|al)", "pancreas": "pancrea", "hippocampus": "hippocamp"}


def package(task, folder, *, weights=None, without_weights=False, data=None, **options):
    """Write the bundle of a task."""
    bundle = task_package(task, weights=weights, without_weights=without_weights, data=data)
    return write_package(bundle, folder, **options)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DualNetwork(out_channels=3).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    """Weights in half precision, as a bundle may ship them."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(
        {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()},
        path,
    )
    return path


@pytest.fixture(scope="module")
def models(weights, tmp_path_factory):
    """The folder models/ of a Zoo: the hippocampus with weights, the others without."""
    folder = tmp_path_factory.mktemp("zoo") / "models"
    for task in ("left_atrium", "pancreas"):
        package(task, folder, without_weights=True)
    package("hippocampus", folder, weights=weights, triton=True)
    return folder


@pytest.fixture(params=sorted(TASKS))
def task(request):
    return request.param


@pytest.fixture
def bundle(task, models):
    return models / NAMES[task]


def read(bundle, name):
    return json.loads((bundle / f"configs/{name}.json").read_text())


def from_outside(models, *words, **variables):
    """Run a program from the folder above models/, as the Zoo does: nothing of this repository can be imported."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(
        command, cwd=models.parent, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_a_package_has_what_the_zoo_asks_for(task, bundle):
    for path in ("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"):
        assert (bundle / path).is_file()
    assert (bundle / "models/model.pt").is_file() == (task == "hippocampus")
    metadata = read(bundle, "metadata")
    assert metadata["version"] in metadata["changelog"]
    for key in ("bundle_root", "device", "network_def", "inferer", "output_dir"):
        assert key in read(bundle, "inference")
    for key in ("bundle_root", "device", "dataset_dir", "output_dir", "val_interval"):
        assert key in read(bundle, "train")
    assert not list(bundle.rglob("__pycache__"))


def test_a_package_has_the_recipes_of_its_data(task, bundle):
    names = {path.stem for path in (bundle / "configs").glob("*.json") if path.stem.startswith(("recipe", "original"))}
    assert {"recipe_budget", "recipe_bcp", "recipe_mc_net"} <= names
    of_the_pancreas = {"recipe_bcp_pancreas", "recipe_sdcl_pancreas", "recipe_mc_net_pancreas"}
    of_the_pancreas |= {"original_bcp_pancreas", "original_sdcl_pancreas"}
    assert names & of_the_pancreas == (of_the_pancreas if task == "pancreas" else set())


def test_the_zip_file_is_the_folder(models, task, bundle):
    with ZipFile(models / f"{bundle.name}_v{read(bundle, 'metadata')['version']}.zip") as archive:
        zipped = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert zipped == {f"{bundle.name}/{path.relative_to(bundle)}": path.read_bytes() for path in files}


def test_nothing_of_the_other_tasks_is_in_it(task, bundle):
    others = re.compile("|".join(words for other, words in WORDS.items() if other != task), re.IGNORECASE)
    files = [path for part in ("configs", "docs") for path in (bundle / part).rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert not others.search(path.name)
        assert not others.search(path.read_text()), path
    assert re.search(WORDS[task], (bundle / "docs/README.md").read_text(), re.IGNORECASE)


def test_files_are_formatted_as_the_zoo_asks(bundle):
    for path in bundle.rglob("*"):
        if path.suffix in (".json", ".py", ".md", ".txt"):
            text = path.read_text()
            assert text.endswith("\n"), path
            assert not text.endswith("\n\n"), path
            assert not re.search(r"[ \t]+$|\r", text, re.MULTILINE), path
            assert not os.access(path, os.X_OK), path
        if path.suffix == ".json":
            assert text == json.dumps(json.loads(text), indent=4) + "\n", path


def test_the_readme_follows_the_template(bundle):
    text = (bundle / "docs/README.md").read_text()
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    metadata = read(bundle, "metadata")
    assert headings[0] == metadata["name"]
    order = ["Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "Additional Usage Steps"]
    order += ["System Configuration", "Limitations", "Citation Info", "References"]
    template = [heading.strip("*") for heading in headings if heading.strip("*") in order]
    assert template == order
    assert " x ".join(map(str, read(bundle, "train")["patch_size"])) in text
    for reference in metadata["references"]:
        assert reference in text
    assert "$" not in text
    # It is copied to the root on the Hugging Face Hub: a relative link would break there or here.
    assert not re.search(r"\]\((?!https?://)", text)
    for named in re.findall(r"\bconfigs/[\w/]+\.\w+|\bdocs/\w+\.\w+", text):
        assert (bundle / named).is_file(), named


def test_train_and_inference_are_right_for_the_task_alone(task, bundle):
    overlay = json.loads((ROOT / f"configs/data_{TASKS[task]}.json").read_text())
    own = json.loads((ROOT / "configs/inference.json").read_text())
    # The weights lie where inference.json looks for them, whatever the file is called in this bundle.
    del overlay["ckpt_path"]
    train, inference = read(bundle, "train"), read(bundle, "inference")
    # Training does not ask what the weights were trained on.
    for name in TRAINED_KEYS:
        assert inference[name] == overlay.pop(name)
        assert name not in train
    assert inference["ckpt_path"] == own["ckpt_path"] == "$@bundle_root + '/models/model.pt'"
    assert "ckpt_path" not in read(bundle, f"data_{TASKS[task]}")
    for key, value in overlay.items():
        assert train[key] == value
    for key in ("num_classes", "patch_size"):
        assert inference[key] == overlay[key]
    assert inference["spacing"] == train["spacing"]
    assert inference["window"] == train["window"]
    assert ("_disabled_" in inference["window"]) == (task != "pancreas")
    # Macros stay macros: an override of a transform must reach every place that names it.
    assert inference["preprocessing"] == own["preprocessing"]


@pytest.mark.parametrize(
    ("task", "classes", "modality"),
    [
        ("left_atrium", ["background", "left atrium"], "MR"),
        ("pancreas", ["background", "pancreas"], "CT"),
        ("hippocampus", ["background", "anterior", "posterior"], "MR"),
    ],
)
def test_metadata_are_those_of_the_task(task, classes, modality, models):
    bundle = models / NAMES[task]
    metadata = read(bundle, "metadata")
    image, prediction = (
        metadata["network_data_format"][kind][name] for kind, name in (("inputs", "image"), ("outputs", "pred"))
    )
    assert list(prediction["channel_def"].items()) == [(str(index), name) for index, name in enumerate(classes)]
    assert prediction["num_channels"] == read(bundle, "inference")["num_classes"] == len(classes)
    assert image["modality"] == modality
    assert image["spatial_shape"] == prediction["spatial_shape"] == read(bundle, "inference")["patch_size"]
    for key in ("label_classes", "pred_classes"):
        assert all(f"{index} {name}" in metadata[key] for index, name in enumerate(classes))
    assert re.search(WORDS[task], metadata["task"])
    assert metadata["data_source"].split()[-1] in (bundle / "docs/data_license.txt").read_text()


# --- what the Zoo verifies --------------------------------------------------------------------------------------------


def test_metadata_fulfill_the_schema(bundle, tmp_path):
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(SCHEMA))
    metadata = read(bundle, "metadata")
    assert metadata["schema"].endswith(SCHEMA.name)
    del metadata["task"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_the_network_is_verified_and_exported(models, network, tmp_path):
    name = NAMES["hippocampus"]
    root = f"models/{name}"
    files = ["--net_id", "network_def", "--meta_file", f"{root}/configs/metadata.json"]
    files += ["--config_file", f"{root}/configs/inference.json", "--bundle_root", root]
    # MONAI looks for scripts/ where Python looks.
    output = from_outside(models, "-m", "monai.bundle", "verify_net_in_out", *files, PYTHONPATH=root)
    assert "data shape of network is verified with no error" in output
    files += ["--filepath", tmp_path / "model.ts", "--ckpt_file", f"{root}/models/model.pt"]
    from_outside(models, "-m", "monai.bundle", "ckpt_export", *files, PYTHONPATH=root)
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(tmp_path / "model.ts", _extra_files=extra)
    image = torch.randn(1, 1, 32, 48, 32)
    with torch.inference_mode():
        # The exported weights were rounded to half precision.
        torch.testing.assert_close(exported(image), network(image), atol=0.02, rtol=0)
    assert json.loads(extra["inference.json"]) == read(models / name, "inference")
    assert json.loads(extra["metadata.json"])["version"] == read(models / name, "metadata")["version"]


def test_the_network_is_loaded_by_the_name_of_the_bundle(models, network):
    loaded = load(NAMES["hippocampus"], bundle_dir=str(models)).eval()
    image = torch.randn(1, 1, 16, 32, 16)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), network(image), atol=0.02, rtol=0)


def test_the_unit_test_of_the_zoo_passes(task, models):
    output = from_outside(models, ROOT / "tests/zoo_form.py", BUNDLE_ROOT=f"models/{NAMES[task]}")
    assert re.search(r"Ran 2 tests in .*\n\nOK", output)


@pytest.mark.parametrize(
    "rules",
    [
        ("black", "--check", "--line-length", "120", "--skip-magic-trailing-comma"),
        ("isort", "--check", "--profile", "black", "--line-length", "120"),
        ("flake8", "--config", ROOT / ".flake8"),
    ],
    ids=lambda rules: rules[0],
)
def test_the_code_has_the_form_of_the_zoo(rules, models):
    output = from_outside(models, "-m", *rules, f"models/{NAMES['hippocampus']}/scripts", ROOT / "tests/zoo_form.py")
    assert not re.search(r"^(ERROR|would reformat|[\w/.]+:\d+)", output, re.MULTILINE)


# --- Triton and the Hugging Face Hub ----------------------------------------------------------------------------------


def test_triton_gets_a_model_and_its_description(models, network):
    folder = models / "triton" / NAMES["hippocampus"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["1", "1/model.pt", "config.pbtxt"]
    description = (folder / "config.pbtxt").read_text()
    assert f'name: "{folder.name}"\nplatform: "pytorch_libtorch"' in description
    tensors = re.findall(r'name: "(\w+PUT__0)"\s+data_type: TYPE_FP32\s+dims: \[(.+)\]', description)
    sizes = {name: [int(size) for size in dims.split(",")] for name, dims in tensors}
    assert sizes == {"INPUT__0": [1, 32, 48, 32], "OUTPUT__0": [3, 32, 48, 32]}
    model = torch.jit.load(folder / "1/model.pt")
    windows = torch.randn(2, *sizes["INPUT__0"])
    with torch.inference_mode():
        answers = model(windows)
        torch.testing.assert_close(answers, network(windows), atol=0.02, rtol=0)
    assert list(answers.shape[1:]) == sizes["OUTPUT__0"]


def test_the_push_to_the_hub_adds_the_header_of_the_model_card(models, tmp_path, monkeypatch):
    name = NAMES["pancreas"]
    shutil.copytree(models / name, tmp_path / name)
    calls = {}

    class Hub:
        def __init__(self, token):
            self.create_repo = lambda **options: calls.update(repo=options)
            self.create_tag = lambda **options: calls.update(tag=options)
            self.upload_folder = lambda **options: calls.update(upload=options)

    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", SimpleNamespace(HfApi=Hub))
    push_to_hf_hub(repo=f"someone/{name}", name=name, bundle_dir=str(tmp_path), version="0.1.0")
    header, card = re.fullmatch(r"---\n(.*?)---\n(.*)", (tmp_path / name / "README.md").read_text(), re.DOTALL).groups()
    assert yaml.safe_load(header) == {"tags": ["monai", "medical"], "library_name": "monai", "license": "apache-2.0"}
    assert card == (tmp_path / name / "docs/README.md").read_text()
    assert calls["upload"]["folder_path"] == str(tmp_path / name)
    assert calls["tag"]["tag"] == read(models / name, "metadata")["version"]


# --- options and mistakes ---------------------------------------------------------------------------------------------


def test_large_weights_are_named_instead_of_copied(weights, tmp_path):
    served = tmp_path / "served" / NAMES["hippocampus"] / "models"
    served.mkdir(parents=True)
    shutil.copyfile(weights, served / "model.pt")
    url = (tmp_path / "served").as_uri()
    folder, archive = package("hippocampus", tmp_path / "dist", weights=weights, large_files_url=url + "/")
    assert not (folder / "models/model.pt").exists()
    assert archive.stat().st_size < 25 * 10**6
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    assert entry["hash_type"] == "sha256"
    assert entry["hash_val"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    download_large_files(bundle_path=str(folder))
    assert (folder / "models/model.pt").read_bytes() == weights.read_bytes()


def test_nothing_is_replaced_unasked_or_by_halves(weights, tmp_path):
    folder, _ = package("left_atrium", tmp_path, without_weights=True)
    (folder / "mine.txt").write_text("mine")
    with assert_refused(f"{folder} exists: replace it by --overwrite true"):
        package("left_atrium", tmp_path, without_weights=True)
    # Weights of three classes do not fit a task of two.
    with assert_refused("^weights .* does not fit: .*check num_classes"):
        package("left_atrium", tmp_path, weights=weights, overwrite=True)
    assert (folder / "mine.txt").read_text() == "mine"
    with assert_refused(f"{folder} holds mine.txt, which is not of the new package: move it away."):
        package("left_atrium", tmp_path, without_weights=True, overwrite=True)
    assert (folder / "mine.txt").read_text() == "mine"
    (folder / "mine.txt").unlink()
    package("left_atrium", tmp_path, without_weights=True, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_called_like_a_package_is_not_replaced(tmp_path):
    folder, _ = package("hippocampus", tmp_path / "made", without_weights=True)
    mine = tmp_path / folder.name
    mine.write_text("mine")
    with assert_refused(f"{mine} is a file, which no package is: move it away."):
        package("hippocampus", tmp_path, without_weights=True, overwrite=True)
    assert mine.read_text() == "mine"


def test_an_archive_without_its_beginning_tells_nothing(tmp_path):
    folder, archive = package("hippocampus", tmp_path, without_weights=True)
    archive.write_bytes(archive.read_bytes()[1000:])
    package("hippocampus", tmp_path, without_weights=True, overwrite=True)
    archive.write_bytes(archive.read_bytes()[1000:])
    (folder / "docs/README.md").write_text("mine")
    with assert_refused(f"{folder} holds docs/README.md, .*: move it away."):
        package("hippocampus", tmp_path, without_weights=True, overwrite=True)


def test_weights_that_were_trained_in_a_package_are_not_replaced(weights, tmp_path):
    folder, _ = package("hippocampus", tmp_path, weights=weights)
    trained = {name: value + 1 for name, value in torch.load(weights, weights_only=True).items()}
    torch.save(trained, tmp_path / "trained.pt")
    shutil.copyfile(tmp_path / "trained.pt", folder / "models/model.pt")
    (tmp_path / f"{folder.name}_v0.0.0.zip").write_text("no archive")
    with assert_refused(f"{folder} holds models/model.pt, as no package has it: move it away."):
        package("hippocampus", tmp_path, weights=weights, overwrite=True)
    # Of themselves a package is made, and that one gives way to the first weights again.
    for source in (tmp_path / "trained.pt", weights):
        package("hippocampus", tmp_path, weights=source, overwrite=True)
        assert (folder / "models/model.pt").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("file", ["docs/README.md", "docs/data_license.txt", "configs/train.json"])
def test_what_was_edited_in_a_package_is_not_replaced(file, tmp_path):
    folder, _ = package("hippocampus", tmp_path, without_weights=True)
    written = (folder / file).read_text()
    (folder / file).write_text(written + "\n")
    with assert_refused(f"{folder} holds {file}, as no package has it: move it away."):
        package("hippocampus", tmp_path, without_weights=True, overwrite=True)
    assert (folder / file).read_text() == written + "\n"
    next(tmp_path.glob("*.zip")).unlink()
    with assert_refused("and no zip file beside it tells what was packaged: move it away."):
        package("hippocampus", tmp_path, without_weights=True, overwrite=True)


@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "file"])
def test_links_and_folders_of_the_user_in_a_package_are_not_replaced(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").write_text("mine")
    folder, _ = package("hippocampus", tmp_path / "models", without_weights=True)
    (folder / "data").symlink_to(tmp_path / target)
    with assert_refused(f"{folder} holds data, a link or folder which no package has: move it away."):
        package("hippocampus", tmp_path / "models", without_weights=True, overwrite=True)
    (folder / "data").unlink()
    (folder / "output").mkdir()
    with assert_refused(f"{folder} holds output, a link or folder which no package has: move it away."):
        package("hippocampus", tmp_path / "models", without_weights=True, overwrite=True)
    (folder / "output").rmdir()
    package("hippocampus", tmp_path / "models", without_weights=True, overwrite=True)


def test_weights_of_a_run_with_another_preprocessing_are_refused(weights, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copyfile(weights, run / "model_final.pt")
    train = json.loads((ROOT / "configs/train.json").read_text())
    for spacing, refused in ((None, True), ([1, 1, 1], False)):
        (run / "run_config.json").write_text(json.dumps({"orient": train["orient"], "spacing": spacing}))
        if refused:
            message = (
                r"was trained with another preprocessing \(spacing was None, is \[1.0, 1.0, 1.0\]\): give the data over"
            )
            with assert_refused(message):
                package("hippocampus", tmp_path, weights=run / "model_final.pt")
        else:
            package("hippocampus", tmp_path, weights=run / "model_final.pt")


def test_weights_may_be_of_another_overlay_of_the_task(tmp_path):
    folder, _ = package("left_atrium", tmp_path, without_weights=True, data="left_atrium")
    overlay = json.loads((ROOT / "configs/data_left_atrium.json").read_text())
    for name in ("train", "inference"):
        assert read(folder, name)["spacing"] == overlay["spacing"]
        assert read(folder, name)["patch_size"] == overlay["patch_size"]


@pytest.mark.parametrize(("task", "data"), [("left_atrium", "left_atrium"), ("pancreas", "pancreas")])
def test_figures_are_not_those_of_weights_of_another_overlay(task, data, tmp_path, monkeypatch):
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    weights = shutil.copy(ROOT / "models/model.pt", tmp_path / "other.pt")
    overlay = json.loads((configs / f"data_{data}.json").read_text())
    (configs / f"data_{data}.json").write_text(json.dumps({**overlay, "ckpt_path": str(weights)}))
    monkeypatch.setattr("scripts.packaging.task.CONFIGS", configs)
    folder, _ = package(task, tmp_path / "package", data=data)
    assert read(folder, "metadata")["eval_metrics"] == {}
    assert "The weights were trained on" not in (folder / "docs/README.md").read_text()


def test_figures_are_told_of_the_weights_of_this_bundle_alone(weights, tmp_path, monkeypatch):
    configs = shutil.copytree(ROOT / "configs", tmp_path / "configs")
    overlay = json.loads((configs / "metadata_hippocampus.json").read_text())
    (configs / "metadata_hippocampus.json").write_text(json.dumps({**overlay, "eval_metrics": {"mean_dice": 0.9}}))
    monkeypatch.setattr("scripts.packaging.task.CONFIGS", configs)
    data = json.loads((configs / "data_hippocampus.json").read_text())
    (configs / "data_hippocampus.json").write_text(json.dumps({**data, "ckpt_path": str(weights)}))
    own, _ = package("hippocampus", tmp_path / "own")
    other, _ = package("hippocampus", tmp_path / "other", weights=weights)
    assert read(own, "metadata")["eval_metrics"] == {"mean_dice": 0.9}
    text = (own / "docs/README.md").read_text()
    assert "- mean_dice: 0.9\n" in text
    # Each part of what is told of them in its place.
    places = (
        "Training configuration",
        "The weights were trained on",
        "Performance",
        "| Cases |",
        "Limitations",
        "- T1-weighted",
    )
    assert list(places) == sorted(places, key=text.index)
    assert "Weights:  models/model.pt, trained on these data: CC BY-SA" in (own / "docs/data_license.txt").read_text()
    assert read(other, "metadata")["eval_metrics"] == {}
    assert "No figure has been measured" in (other / "docs/README.md").read_text()
    assert "The weights were trained on" not in (other / "docs/README.md").read_text()
    assert "Weights:" not in (other / "docs/data_license.txt").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "liver"}, "task must be left_atrium, pancreas or hippocampus, got 'liver'"),
        (
            {"data": "pancreas"},
            "data must be left_atrium or left_atrium_small for the task left_atrium, got 'pancreas'",
        ),
        ({"weights": "none.pt"}, "weights none.pt do not exist: name a file by --weights, or package without by"),
        ({"weights": "none.pt", "without_weights": True}, "weights and without_weights must not both be given"),
        ({"without_weights": True, "triton": True}, "triton needs weights: leave out without_weights"),
        ({"without_weights": True, "large_files_url": "https://x"}, "large_files_url needs weights"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_are_refused(options, message, tmp_path):
    with assert_refused(message):
        package(options.pop("task", "left_atrium"), tmp_path / "dist", **options)
    assert not (tmp_path / "dist").exists()


def test_the_command_line(tmp_path, capsys):
    words = ["package", "--task", "pancreas", "--output_dir", str(tmp_path), "--without_weights", "true"]
    main(words)
    assert capsys.readouterr().out.split() == [
        str(tmp_path / NAMES["pancreas"]),
        str(tmp_path / f"{NAMES['pancreas']}_v0.1.0.zip"),
    ]
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / NAMES['pancreas']} exists")
