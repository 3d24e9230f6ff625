# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of training and inference, as ratios measured side by side on one machine."""
