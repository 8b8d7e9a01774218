"""H's last layer and its loss: which code does a pair of images share?"""

import torch
from torch import Tensor


def contrastive_loss_ref(
    features: Tensor,  # [B, D]
    weight: Tensor,  # [K, D]
    bias: Tensor,  # [K]
    index: Tensor,  # [B] int64 in [0, K)
) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        logits = features.to(dtype) @ weight.to(dtype).T + bias.to(dtype)  # [B, K]
    log_prob = logits.log_softmax(dim=1).gather(1, index[:, None])
    batch = max(len(index), 1)  # an empty batch has loss 0 and gradients 0
    correct = logits.argmax(dim=1) == index
    return (-log_prob).sum() / batch, correct.sum() / batch
