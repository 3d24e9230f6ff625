# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""What each hospital runs: MONAI's client for bundles behind NVFlare's Client API."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nvflare.client as flare
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType


def check_keys(bundle: str, files: list[str], overrides: dict) -> None:
    """Refuse keys that no configuration has, and a resume, which would replace the weights of the server."""
    sys.path.insert(0, bundle)
    from scripts.configuration import check_overrides

    check_overrides(overrides, [str(Path(bundle) / name) for name in files], arguments=())
    if overrides.get("resume"):
        raise SystemExit("resume must be false for a site: it joins with a new output_dir and the server's weights.")


def main() -> None:
    """Train on the weights of the server until it ends the job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", required=True, help="folder of the bundle")
    parser.add_argument("--files", default="", help="overlays between train.json and evaluate.json, with commas")
    parser.add_argument("--overrides", required=True, help="JSON file with the keys of this hospital")
    parser.add_argument("--evaluates", action="store_true", help="evaluate the weights of the server on the test list")
    arguments = parser.parse_args()
    with open(arguments.overrides) as stream:
        overrides = json.load(stream)

    flare.init()
    site = flare.get_site_name()
    files = ["configs/train.json", *(f"configs/{name}.json" for name in arguments.files.split(",") if name)]
    evaluation = [*files, "configs/evaluate.json"] if arguments.evaluates else None
    check_keys(arguments.bundle, evaluation or files, overrides)
    client = MonaiAlgo(
        bundle_root=arguments.bundle,
        local_epochs=1,
        send_weight_diff=False,
        config_train_filename=files,
        config_evaluate_filename=evaluation,
        train_kwargs=overrides,
        eval_kwargs=overrides,
    )
    client.initialize({ExtraItems.CLIENT_NAME: site})
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        shared = ExchangeObject(weights=model.params, weight_type=WeightType.WEIGHTS)
        metrics = client.evaluate(shared).metrics if arguments.evaluates else {}
        client.train(shared)
        trained = client.get_weights()
        steps = trained.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        client.logger.info(f"{site}, round {model.current_round}: {steps} iterations, metrics before them {metrics}")
        flare.send(
            FLModel(
                # The weights of channels_last networks are not contiguous, which the transport refuses.
                params={name: value.contiguous() for name, value in trained.weights.items()},
                params_type=ParamsType.FULL,
                metrics=metrics or None,
                meta={"NUM_STEPS_CURRENT_ROUND": steps},
            )
        )
    client.finalize()


if __name__ == "__main__":
    main()
