"""What a network costs: parameters and multiply-accumulates, counted on the module itself."""

import torch
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values; heads that no exported network has (`training_heads`) do not count."""
    return sum(p.numel() for name, p in module.named_parameters()
               if p.requires_grad and not name.startswith("training_heads."))


def count_macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of all convolutions and linear layers in one evaluation forward of a [1, C, H, W] input.

    A convolution costs out_h * out_w * out_channels * in_channels / groups * kernel_h * kernel_w; normalisation,
    activations and up-sampling are not counted (they cost memory traffic, not MACs).
    """
    total = 0

    def add(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        nonlocal total
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        per_output = weight.shape[1] if isinstance(layer, nn.Linear) else weight[0].numel()
        if isinstance(layer, nn.ConvTranspose2d):  # every input pixel meets the whole kernel
            total += out.shape[-1] * out.shape[-2] * weight.numel() // (layer.stride[0] * layer.stride[1])
        else:
            total += out[0].numel() * per_output

    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in module.modules() if isinstance(m, kinds)]
    mode = module.training
    with torch.inference_mode():
        module.eval()(torch.zeros(shape, device=next(module.parameters()).device))
    module.train(mode)
    for hook in hooks:
        hook.remove()
    return total
