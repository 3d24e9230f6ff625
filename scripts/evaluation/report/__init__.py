# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The report on a grid of runs: methods by splits by seeds, in tables, figures and one page."""
