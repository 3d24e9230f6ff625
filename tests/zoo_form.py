# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The unit test of a packaged bundle in the form of the MONAI Model Zoo.

There it is ``ci/unit_tests/test_<bundle>.py``, started from the root of the Zoo with the bundle in ``models/<bundle>``.
Here the environment variable BUNDLE_ROOT names the bundle, and ``packaging/test_task.py`` starts it in a
process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE_ROOT = os.environ["BUNDLE_ROOT"]
CONFIGS = os.path.join(BUNDLE_ROOT, "configs")
CASES = [f"case_{index}" for index in range(6)]
PATCH_SIZE = [32, 32, 32]
SHORT = {"iterations": 1, "val_interval": 1, "labeled_batch_size": 1, "unlabeled_batch_size": 1, "cache_rate": 0.0}


class TestDualNetworkBundle(unittest.TestCase):
    def setUp(self):
        self.dataset_dir = tempfile.mkdtemp()
        self.produce_fake_dataset()
        sys.path.insert(0, BUNDLE_ROOT)

    def tearDown(self):
        sys.path.remove(BUNDLE_ROOT)
        shutil.rmtree(self.dataset_dir)

    def produce_fake_dataset(self):
        generator = np.random.default_rng(0)
        with open(os.path.join(CONFIGS, "train.json")) as stream:
            num_classes = json.load(stream)["num_classes"]
        for name, high in (("images", 200), ("labels", num_classes)):
            os.mkdir(os.path.join(self.dataset_dir, name))
            for case in CASES:
                volume = generator.integers(0, high, size=(32, 32, 32)).astype(np.uint8)
                nib.save(nib.Nifti1Image(volume, np.eye(4)), os.path.join(self.dataset_dir, name, f"{case}.nii.gz"))
        split = {"version": 1, "name": "fake", "description": "Noise.", "image": "images/{case}.nii.gz"}
        split |= {"label": "labels/{case}.nii.gz", "labeled": CASES[:2], "unlabeled": CASES[2:4]}
        split |= {"validation": CASES[4:5], "test": CASES[5:]}
        boxes = {case: [[0, 0, 0], [32, 32, 32]] for case in CASES}
        for name, content in (("split", split), ("boxes", boxes)):
            with open(os.path.join(self.dataset_dir, f"{name}.json"), "w") as stream:
                json.dump(content, stream)

    def run_workflow(self, workflow_type, *names, **override):
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=[os.path.join(CONFIGS, f"{name}.json") for name in names],
            logging_file=os.path.join(CONFIGS, "logging.conf"),
            meta_file=os.path.join(CONFIGS, "metadata.json"),
            bundle_root=BUNDLE_ROOT,
            patch_size=PATCH_SIZE,
            **override,
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()

    def test_train_and_evaluate(self):
        output_dir = os.path.join(self.dataset_dir, "output")
        override = {"dataset_dir": self.dataset_dir, "output_dir": output_dir, "strides": PATCH_SIZE, **SHORT}
        override["split_file"] = os.path.join(self.dataset_dir, "split.json")
        self.run_workflow("train", "train", **override)
        self.run_workflow("train", "train", "evaluate", **override)
        assert os.path.isfile(os.path.join(output_dir, "evaluation", "metrics_cases.csv"))

    def test_inference(self):
        # A bundle without weights is tested with random ones.
        has_weights = os.path.isfile(os.path.join(BUNDLE_ROOT, "models", "model.pt"))
        output_dir = os.path.join(self.dataset_dir, "output")
        override = {"dataset_dir": os.path.join(self.dataset_dir, "images"), "load_pretrain": has_weights}
        self.run_workflow("infer", "inference", output_dir=output_dir, **override)
        assert sorted(os.listdir(output_dir)) == [f"{case}_seg.nii.gz" for case in CASES]


if __name__ == "__main__":
    unittest.main()
