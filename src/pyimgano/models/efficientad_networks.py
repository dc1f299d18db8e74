"""The networks of EfficientAD, its losses, and its maps.

Shapes: images (B, 3, H, W) normalised; descriptions (B, C, h, w), a cell for every 4 pixels
whose patch of 33 x 33 lies inside the image; maps (B, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Pixels from one cell of a description to the next; and cells at each border of an image
#: that have none, since their patch would reach out of it.
STRIDE = 4
BORDER = 4
#: Images are enlarged to at least this, and crops for training are no smaller.
LEAST = 64

# Of ImageNet, for pixels of 0 to 255; what published teachers were trained with.
_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of what the networks see of images of `size`."""
    return max(LEAST, size[0]), max(LEAST, size[1])


def described(size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of the description of images (H, W)."""
    height, width = (((n - 3) // 2 - 3) // 2 - 5 for n in size)
    return height, width


def as_input(pixels: Tensor) -> Tensor:
    """Return (B, 3, H, W) normalised, of images (B, H, W, 3) of 0 to 255."""
    mean = torch.tensor(_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.permute(0, 3, 1, 2).float() - mean) / std


def enlarged(pixels: Tensor) -> Tensor:
    """Return (B, H, W, 3) float32 of 0 to 255, at the working size."""
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    wanted = working_size(size)
    if wanted == size:
        return pixels.float()
    x = pixels.permute(0, 3, 1, 2).float()
    x = functional.interpolate(x, wanted, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def patch_description_network(model_size: str, channels: int) -> nn.Sequential:
    """PDN-S or PDN-M (tables 6 and 7 of the paper), without padding.

    `model_size` is "S" or "M". The names of its weights are those of the public programs.
    """
    if model_size == "S":
        return nn.Sequential(
            nn.Conv2d(3, 128, 4),
            nn.ReLU(),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(128, 256, 4),
            nn.ReLU(),
            nn.AvgPool2d(2, 2),
            nn.Conv2d(256, 256, 3),
            nn.ReLU(),
            nn.Conv2d(256, channels, 4),
        )
    return nn.Sequential(
        nn.Conv2d(3, 256, 4),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(256, 512, 4),
        nn.ReLU(),
        nn.AvgPool2d(2, 2),
        nn.Conv2d(512, 512, 1),
        nn.ReLU(),
        nn.Conv2d(512, 512, 3),
        nn.ReLU(),
        nn.Conv2d(512, channels, 4),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )


class Autoencoder(nn.Module):
    """The image through a bottleneck of 64 numbers, to a description (table 8).

    For 256 x 256 it is the paper's; for other sizes (H, W) the sizes inside grow with them.
    """

    def __init__(self, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        halved = [nn.Conv2d(n, m, 4, stride=2, padding=1) for n, m in _HALVINGS]
        self.halvings = nn.ModuleList(halved)
        self.bottleneck = nn.Conv2d(64, 64, (size[0] // 32, size[1] // 32))
        self.sizes = [_grown(n) for n in size]
        self.growings = nn.ModuleList(nn.Conv2d(64, 64, 4, padding=2) for _ in self.sizes[0])
        self.described = described(size)
        self.last = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        for halving in self.halvings:
            x = functional.relu(halving(x))
        x = self.bottleneck(x)
        for growing, height, width in zip(self.growings, *self.sizes):
            x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
            x = functional.relu(growing(x))
        x = functional.interpolate(x, self.described, mode="bilinear", align_corners=False)
        found: Tensor = self.last(x)
        return found


_HALVINGS = ((3, 32), (32, 32), (32, 64), (64, 64), (64, 64))


def _grown(side: int) -> list[int]:
    """Sides in the decoder: 3, 8, 15, 32, 63, 127 for 256."""
    sides = (side // 64 - 1, side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1)
    return [max(1, n) for n in sides]


class EfficientAdNetwork(nn.Module):
    """Teacher, student and autoencoder; the teacher does not learn.

    Parameters
    ----------
    model_size
        "S" or "M".
    channels
        C, of the teacher; the student has 2C.
    size
        (H, W) of images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model_size: str, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.teacher = patch_description_network(model_size, channels).requires_grad_(False)
        self.student = patch_description_network(model_size, 2 * channels)
        self.autoencoder = Autoencoder(channels, working_size(size))
        # of the teacher's channels over good images
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def taught(self, x: Tensor) -> Tensor:
        """T: the teacher's description, normalised."""
        found: Tensor = (self.teacher(x) - self.mean) / self.std
        return found

    def studied(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """S_ST and S_STAE: what the student says of the teacher and of the autoencoder."""
        found = self.student(x)
        return found[:, : self.channels], found[:, self.channels :]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the local and the global map (B, h, w), before they are normalised."""
        x = as_input(enlarged(pixels))
        of_teacher, of_autoencoder = self.studied(x)
        local = (self.taught(x) - of_teacher).square().mean(dim=1)
        return local, (self.autoencoder(x) - of_autoencoder).square().mean(dim=1)


def hard_feature_loss(distances: Tensor, p_hard: float = 0.999) -> Tensor:
    """L_hard: the mean of those squared differences that are not below their p_hard quantile.

    Of all elements of `distances`; the quantile is interpolated linearly (section 3.2).
    """
    flat = distances.flatten()
    place = p_hard * (len(flat) - 1)
    below = int(place)
    # torch.quantile takes 2^24 elements at most
    largest = flat.detach().topk(len(flat) - below).values
    lower, upper = largest[-1], largest[max(-2, -len(largest))]
    limit = lower + (upper - lower) * (place - below)
    return flat[flat >= limit].mean()


class Normalization(nn.Module):
    """Both maps onto one scale, by quantiles q_a and q_b of good images (section 3.4).

    A map becomes 0.1 (map - q_a) / max(q_b - q_a, q_a), and the two are averaged. Then the
    least value that this can have, where both maps are 0, is taken away, so that none is below
    0. The paper divides by q_b - q_a alone. L_hard makes the errors of a student that has not
    learned enough large and equal: with hardly a spread, such a map would drown the other one.

    Parameters
    ----------
    quantiles
        (q_a, q_b) of the local map, then of the global map.
    """

    def __init__(self, quantiles: Sequence[tuple[float, float]]) -> None:
        super().__init__()
        # maps of images that are constant have no spread
        spread = [max(b - a, a, 1e-6 * max(b, 1e-6)) for a, b in quantiles]
        self.factors = [0.5 * 0.1 / one for one in spread]

    def forward(self, local: Tensor, whole: Tensor) -> Tensor:
        return self.factors[0] * local + self.factors[1] * whole


class EfficientAdGraph(nn.Module):
    """Pixels (N, H, W, 3) uint8 to scores (N,) and maps (N, H, W), float32.

    Parameters
    ----------
    network, normalization
        Trained.
    size
        (H, W) of the maps.
    counted
        Of the grid that covers the image, border and all, flat: 1 where a cell counts for the
        score; None for all.
    """

    counted: Tensor | None

    def __init__(
        self,
        network: EfficientAdNetwork,
        normalization: Normalization,
        size: tuple[int, int],
        counted: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.normalization = normalization
        self.size = size
        self.register_buffer("counted", counted, persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.normalization(*self.network(pixels))[:, None]
        found = functional.pad(found, (BORDER,) * 4, mode="replicate")
        maps = functional.interpolate(found, self.size, mode="bilinear", align_corners=False)
        cells = found.flatten(1)
        if self.counted is not None:
            cells = cells * self.counted  # none is below 0
        return cells.amax(dim=1), maps[:, 0]
