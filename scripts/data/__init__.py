# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Data sets: their preparation, split files and checks, and the way of volumes into batches and of label maps out."""
