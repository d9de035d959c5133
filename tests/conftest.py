"""One thread: the machine's cores may be shared, and results must not depend on how many there are."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
