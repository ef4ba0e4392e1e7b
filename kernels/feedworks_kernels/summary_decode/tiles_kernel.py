"""What the Triton kernels of summary_decode share: the options of their compiler."""

from __future__ import annotations

import os

# In the interpreter bf16 arithmetic is silently wrong, so operands go up to fp32 right after each load.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Triton warns where fusing a * b + c is left to its default.
OPTIONS = {"enable_fp_fusion": True}
# A step's indices come in one copy (`host.to_device`), so that where each begins depends on the batch: other
# kernels for addresses that are multiples of 16 would be compiled in the middle of serving.
INDICES = ("slot_ptr", "start_ptr", "stop_ptr", "write_ptr", "move_ptr")
