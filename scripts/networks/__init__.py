# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The segmentation networks: V-Net, ResNet34-V-Net and the deployed pair of both."""
