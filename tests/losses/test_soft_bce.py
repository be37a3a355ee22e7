"""loss = "soft_bce": what it shares with the published binary cross-entropy."""

import torch
from torch.nn import functional as F

from edgeseg.losses.layerwise_kl import layerwise_kl


def test_of_two_classes_at_one_scale_the_kl_has_the_gradient_of_the_published_binary_cross_entropy():
    torch.manual_seed(0)
    z = torch.randn(3, 1, 8, 8, requires_grad=True)
    p = torch.rand(3, 1, 8, 8).clamp(0.01, 0.99)
    published = F.binary_cross_entropy_with_logits(z, p)
    wanted, = torch.autograd.grad(published, z)
    two = torch.cat([torch.zeros_like(z), z], dim=1)
    teacher = torch.cat([1 - p, p], dim=1).log()
    ours = layerwise_kl([two], [teacher], None, lambda *_: torch.zeros(()), 1.0, 1.0)
    found, = torch.autograd.grad(ours, z)
    assert torch.allclose(found, wanted, atol=1e-6)
    entropy = F.binary_cross_entropy(p, p)
    assert torch.isclose(ours, published - entropy, atol=1e-5)
