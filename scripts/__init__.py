# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Dual-network semi-supervised segmentation: what the configurations of this bundle name by ``_target_``."""
