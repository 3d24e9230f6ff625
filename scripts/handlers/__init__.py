# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run and the handlers that fill it: checkpoints, history, case reports, pictures."""
