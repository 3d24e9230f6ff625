# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The segmentation networks, the deployed forms of them, and SASSNet's discriminator."""
