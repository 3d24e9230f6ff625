# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Studies of finished weights on labeled cases: what changed images cost, uncertainty, and calibration."""
