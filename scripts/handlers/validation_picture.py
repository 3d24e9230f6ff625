# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A picture at every validation, to see what the numbers do not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Events
from matplotlib.image import imread
from monai.engines import Evaluator
from torch.utils.tensorboard import SummaryWriter

from ..evaluation.pictures import case_picture
from ..parallel import is_main_process


class ValidationPicture:
    """Draws the first validation case with its reference and prediction at every validation.

    Args:
        output_dir: folder of the run; pictures go to ``pictures/validation_<iteration>.png`` in it, and to TensorBoard.
        evaluator: the validation engine.
        class_names: names of the foreground classes.
    """

    def __init__(self, output_dir: str, *, evaluator: Evaluator, class_names: list[str] | None = None) -> None:
        self.folder = Path(output_dir) / "pictures"
        self.evaluator = evaluator
        self.class_names = class_names
        self._trainer: Any = None

    def attach(self, engine: Any) -> None:
        """Register with the validation engine.

        Args:
            engine: the trainer, whose iteration names the picture.
        """
        self._trainer = engine
        if is_main_process():
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), self._draw)

    def _draw(self, evaluator: Any) -> None:
        assert self._trainer is not None
        item, output = evaluator.state.batch[0], evaluator.state.output[0]
        iteration = self._trainer.state.iteration
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"validation_{iteration:08d}.png"
        case_picture(
            item["original_image"][0].numpy(),
            output["label"][0].cpu().numpy(),
            output["pred"][0].cpu().numpy(),
            path,
            f"{item.get('case', 'first validation case')}, iteration {iteration}",
            class_names=self.class_names,
            affine=item["original_image"].affine.numpy(),
        )
        # In a folder of its own: TensorBoard stops reading a file when a newer one lies beside it.
        with SummaryWriter(str(self.folder.parent / "tensorboard" / "pictures")) as writer:
            writer.add_image("validation/picture", imread(path)[..., :3], iteration, dataformats="HWC")
