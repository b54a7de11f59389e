"""Drop-in modules: the state_dict and the behaviour of what they replace, through the library's kernels."""

import torch
from torch import nn

from styleforge_lib.ops import instance_norm


class FusedInstanceNorm2d(nn.InstanceNorm2d):
    """A drop-in for `torch.nn.InstanceNorm2d`: the same arguments, parameters, state_dict, errors and values.

    Input: (N, C, H, W), or (C, H, W) without a batch; contiguous or channels_last memory is kept. The kernel of
    `styleforge_lib.ops.instance_norm` runs where the plane's own statistics are all that is asked for: float32, float16
    or bfloat16 on a GPU, input and parameters of one dtype; and its backward kernel where contiguous tensors want
    gradients. All else PyTorch computes: running statistics (track_running_stats, in training and in eval), gradients
    of channels_last tensors, other dtypes and devices, autocast, torch.compile and torch.func.
    """

    def _apply_instance_norm(self, input: torch.Tensor) -> torch.Tensor:
        own_statistics = self.training or not self.track_running_stats
        if not own_statistics or self.running_mean is not None or self.running_var is not None:
            return super()._apply_instance_norm(input)
        return instance_norm(input, self.weight, self.bias, self.eps)
