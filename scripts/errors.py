# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""The one exception for what a user can mend: a message of one line, without a traceback on the command line."""

from __future__ import annotations


class BundleError(ValueError):
    """A mistake in what the user gave: names the argument or file, what is allowed, and what came."""
