# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Federated averaging of the dual network over two simulated hospitals, the second of which has no label."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.client.config import ExchangeFormat
from nvflare.recipe import SimEnv
from nvflare.recipe.utils import set_per_site_config

HERE = Path(__file__).resolve().parent
BUNDLE = HERE.parents[1]


def main() -> None:
    """Write the keys of both hospitals, and run the job in NVFlare's simulator."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset_dir", required=True, help="folder of the hippocampus data set")
    parser.add_argument("--output_dir", required=True, help="folder of the job and of the runs of both hospitals")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=2, help="of each hospital in each round")
    arguments = parser.parse_args()
    output = Path(arguments.output_dir).resolve()
    output.mkdir(parents=True, exist_ok=True)

    sites = {}
    # The first one evaluates the weights of the server before it trains: no part of its run.
    evaluates = {"evaluation_dir": str(output / "hospital_1_evaluation")}
    for name, own in (("hospital_1", evaluates), ("hospital_2", {"labeled_batch_size": 0})):
        overrides = {
            "dataset_dir": str(Path(arguments.dataset_dir).resolve()),
            "split_file": str(HERE / f"{name}.json"),
            "output_dir": str(output / name),
            # Ramps and schedules run over all rounds; an epoch, which is one round, has val_interval iterations.
            "iterations": arguments.rounds * arguments.iterations,
            "val_interval": arguments.iterations,
            "log_interval": 1,
            **own,
        }
        (output / f"{name}.json").write_text(json.dumps(overrides, indent=4) + "\n")
        overrides_file = shlex.quote(str(output / f"{name}.json"))
        words = f"--bundle {shlex.quote(str(BUNDLE))} --files data_hippocampus --overrides {overrides_file}"
        sites[name] = {"train_args": f"{words} --evaluates" if own is evaluates else words}

    recipe = FedAvgRecipe(
        name="dual_network",
        model={
            "class_path": "scripts.networks.dual_network.DualNetwork",
            "args": {"in_channels": 1, "out_channels": 3},
        },
        min_clients=len(sites),
        num_rounds=arguments.rounds,
        train_script=str(HERE / "client.py"),
        server_expected_format=ExchangeFormat.PYTORCH,
        key_metric="mean_dice",
    )
    set_per_site_config(recipe, sites)
    run = recipe.execute(SimEnv(clients=list(sites), workspace_root=str(output / "workspace")))
    sys.stdout.write(f"shared weights: {run.get_result()}/server/simulate_job/app_server/FL_global_model.pt\n")


if __name__ == "__main__":
    main()
