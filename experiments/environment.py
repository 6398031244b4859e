"""What the numbers of a bench were made on and by: processor, versions, commit."""

import platform
from pathlib import Path
from typing import Any

from vgg_search.machine import cores
from vgg_search.provenance import provenance


def environment() -> dict[str, Any]:
    """Flat. The flags say whether the processor multiplies in bf16 by itself."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    pairs = (line.partition(":") for line in info.splitlines())
    cpu = {key.strip(): value.strip() for key, _, value in pairs}
    flags, made_by = cpu.get("flags", "").split(), provenance()
    return {
        "cpu": cpu.get("model name", platform.processor()),
        "cores": cores(),
        "avx512_bf16": "avx512_bf16" in flags,
        "amx_bf16": "amx_bf16" in flags,
        **made_by["versions"],
        "commit": made_by["commit"] or "unknown",
    }
