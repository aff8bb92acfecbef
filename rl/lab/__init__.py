"""The lab: what does a reward shaping do, before and after it is trained on? `rl lab COMMAND`, one file each.

A command file exports `HELP`, one line; `arguments(parser)`; and `run(args) -> int`, the exit code. All but `report`
and `diff` end in a `Document` (rl/lab/document.py), saved as `document.json`, which is all that those two read.
Files here import torch, vllm or ray only inside functions.
"""

COMMANDS: tuple[str, ...] = ("toy", "train")
