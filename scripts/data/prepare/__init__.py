# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""Public and own data sets as files come from their source, turned into the layout of this bundle."""
