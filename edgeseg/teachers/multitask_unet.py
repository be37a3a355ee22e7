"""Multi-task networks: one encoder, one decoder that segments and one that reconstructs the image.

`MultiTaskUNet`, w = `width`: four encoder levels of w, 2w, 4w, 8w channels (two 3x3 convolutions, BatchNorm, ReLU each;
2x2 max-pool), a bottleneck of 16w at 1/16 of the resolution, and two decoders (transposed 2x2 convolution,
concatenated with the skip, two convolutions) that share the skips. With w = 64, three channels and one logit it has the
published 43.24 M parameters, 31.04 M of them on the way to the segmentation.

`TransformerUNet` is the same with a vision transformer (timm's) as its bottleneck, as in TransUNet (arXiv 2102.04306):
every pixel of the map at 1/16 is a token, 256 of them in an image of 256 x 256. With w = 64 its 8 blocks have the width
and the 12 heads of ViT-Base.

Feature paths: encoder.K and decoder.K at 1/2^K of the resolution, pools.K at half of encoder.K's, bottleneck. What only
the reconstruction needs begins with "reconstruction".
"""

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.errors import EdgesegError, need
from edgeseg.torchvision_ops import import_torchvision

LEVELS = 4
STRIDE = 2**LEVELS
"""Input sizes are multiples of this."""
RECONSTRUCTION_WEIGHT = 0.2
"""Of the mean squared error beside the segmentation loss, as published."""
BLOCKS, HEADS = 8, 12
"""Of the transformer. A head is `width` wide."""
RGB = 3


class MultiTaskUNet(nn.Module):
    """float32 [B, C, H, W] (H and W multiples of 16) -> logits [B, K, H, W]; of two classes the background's is 0.

    In training mode a list of one, and `auxiliary_loss(image)` is then the reconstruction's share of the loss. One
    channel is repeated to the three of the published network, which also reconstructs three.

    Args:
        bottleneck: [B, 8w, h, w] -> [B, 16w, h, w]; default two convolutions.
    """

    def __init__(self, channels: int, classes: int, width: int = 64, bottleneck: nn.Module | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.colours = RGB if channels == 1 else channels
        w = [checked_width(width) << k for k in range(LEVELS + 1)]
        self.encoder = nn.ModuleList(two_convs(w[k - 1] if k else self.colours, w[k]) for k in range(LEVELS))
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in range(LEVELS))
        self.bottleneck = bottleneck or two_convs(w[-2], w[-1])
        self.decoder = nn.ModuleList(Up(w[k + 1], w[k]) for k in range(LEVELS))
        self.head = nn.Conv2d(w[0], 1 if classes == 2 else classes, 1)
        self.reconstruction_decoder = nn.ModuleList(Up(w[k + 1], w[k]) for k in range(LEVELS))
        self.reconstruction_head = nn.Conv2d(w[0], self.colours, 1)
        self._reconstructed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        levels = self.encode(x)
        logits = self.head(decode(self.decoder, levels))
        if self.classes == 2:
            logits = F.pad(logits, (0, 0, 0, 0, 1, 0))
        if not self.training:
            return logits
        self._reconstructed = self.reconstruction_head(decode(self.reconstruction_decoder, levels))
        return [logits]

    def auxiliary_loss(self, image: torch.Tensor) -> torch.Tensor:
        """0.2 times the mean squared error of what the forward pass before it, in training mode, made of `image`
        [B, C, H, W], which is normalised. The encoder runs once for both tasks."""
        reconstructed, self._reconstructed = self._reconstructed, None
        assert reconstructed is not None
        return RECONSTRUCTION_WEIGHT * F.mse_loss(reconstructed.float(), self.coloured(image).float())

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W], normalised -> its reconstruction, [B, 3, H, W] for one channel."""
        return self.reconstruction_head(decode(self.reconstruction_decoder, self.encode(x)))

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The skips, highest resolution first, and the bottleneck's output."""
        check_size(x.shape[-2], x.shape[-1])
        x = self.coloured(x)
        levels = []
        for block, pool in zip(self.encoder, self.pools, strict=True):
            x = block(x)
            levels.append(x)
            x = pool(x)
        return [*levels, self.bottleneck(x)]

    def coloured(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(-1, self.colours, -1, -1) if x.shape[1] == 1 else x


class TransformerUNet(MultiTaskUNet):
    """`MultiTaskUNet` with a transformer as its bottleneck.

    Args:
        size: (H, W) of the images it is trained on; the position embedding is interpolated for another one.
    """

    def __init__(self, channels: int, classes: int, width: int = 64, size: tuple[int, int] = (256, 256)) -> None:
        check_size(*size)
        super().__init__(channels, classes, width, Tokens(checked_width(width), (size[0] // STRIDE, size[1] // STRIDE)))


class Tokens(nn.Module):
    """Map [B, 8w, h, w] -> [B, 16w, h, w] by a vision transformer whose tokens are the pixels of the map."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        import_torchvision()
        need("timm", "train")
        from timm.models.vision_transformer import VisionTransformer

        self.vit = VisionTransformer(img_size=grid, patch_size=1, in_chans=8 * width, embed_dim=HEADS * width,
                                     depth=BLOCKS, num_heads=HEADS, num_classes=0, class_token=False, global_pool="",
                                     dynamic_img_size=True)
        self.project = nn.Sequential(nn.Conv2d(HEADS * width, 16 * width, 1), nn.BatchNorm2d(16 * width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(x).transpose(1, 2)
        return self.project(tokens.unflatten(2, (x.shape[-2], x.shape[-1])))


class Up(nn.Module):
    """Deep [B, c_deep, H, W] and skip [B, c_skip, 2H, 2W] -> [B, c_skip, 2H, 2W]."""

    def __init__(self, c_deep: int, c_skip: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c_deep, c_skip, 2, 2)
        self.mix = two_convs(2 * c_skip, c_skip)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([self.up(deep), skip], dim=1))


def decode(decoder: nn.ModuleList, levels: list[torch.Tensor]) -> torch.Tensor:
    x = levels[-1]
    for k in reversed(range(len(decoder))):
        x = decoder[k](x, levels[k])
    return x


def two_convs(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(*(layer for before in (c_in, c_out) for layer in (
        nn.Conv2d(before, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))))


def checked_width(width: int) -> int:
    """Raises EdgesegError unless it is a number of channels."""
    if width < 1:
        raise EdgesegError(f"width is the number of channels of the first level, at least 1 (published: 64), not "
                           f"{width}")
    return width


def check_size(rows: int, columns: int) -> None:
    """Raises EdgesegError unless the network can halve it `LEVELS` times."""
    if rows < 1 or columns < 1 or rows % STRIDE or columns % STRIDE:
        near = [max(1, round(n / STRIDE)) * STRIDE for n in (rows, columns)]
        raise EdgesegError(f"{rows} x {columns} pixels cannot be halved {LEVELS} times: give this network multiples of "
                           f"{STRIDE}, such as {near[0]} x {near[1]}")
