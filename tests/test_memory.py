# SPDX-FileCopyrightText: 2026 the contributors of the dual-network segmentation bundle
# SPDX-License-Identifier: Apache-2.0
"""A training keeps the memory that it frees, on request alone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

from scripts.memory import keep_freed_memory

#: Resident memory in MiB before, with and after tensors of 160 MiB.
PROGRAM = """
import os
import sys
import torch
from scripts.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
tensors = [torch.ones(size * 2**20 // 4) for size in (100, 30, 30)]
held = resident()
tensors.clear()
print(before, held, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or sys.platform != "linux", reason="needs the GNU C library")
@pytest.mark.parametrize("keep", [True, False])
def test_memory_stays_with_the_process(keep):
    arguments = [sys.executable, "-c", PROGRAM, "keep" if keep else "hand back"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    before, held, freed = map(int, result.stdout.split())
    assert held - before > 150
    assert (freed - before > 150) == keep


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False
