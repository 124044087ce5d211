"""Plans are made on the CPU; what a layer needs of one goes to its device without the host waiting for that device."""

from __future__ import annotations

import torch
from torch import Tensor


def placed(x: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of a plan on the device of `like`; a blocking copy would wait for all that the device has still to do.

    Args:
        x: on the CPU, in ordinary memory: it is read before this returns, so it may be changed afterwards.
        like: a tensor on the device.
        dtype: to convert to.
    """
    return x.to(like.device, x.dtype if dtype is None else dtype, non_blocking=True)
