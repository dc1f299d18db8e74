"""The formulas of the corruptions in `corrupt`: what light, lens, sensor and mounting do.

Each takes an (H, W, 3) uint8 RGB image, a generator, and its parameters as keywords, and gives
a new image of the same shape. x is a pixel's value / 255; results are clipped to [0, 1] and
rounded. A parameter called a length is a share of the image's `extent` sqrt(H W). How many
draws are taken, and in which order, does not depend on the parameters, so that an image suffers
the same draw at every severity.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Between stored values and light; sRGB's curve is close to this power.
_GAMMA = 2.2
# Values of a generator's draws, so that no image is spared: a strength is at least so much.
_LEAST = 0.7
_SPOTS = 3
# JPEG holds sides up to 65500; longer images are coded in pieces that end at a block's border.
_JPEG_SIDE = 65_488
# OpenCV's warp counts coordinates in 16 bits.
_WARP_SIDE = 32_000


def extent(height: int, width: int) -> float:
    """sqrt(H W) in pixels: what lengths are shares of."""
    return math.sqrt(height * width)


def lighting(
    image: Image,
    rng: np.random.Generator,
    *,
    gain: float,
    gradient: float,
    gamma: float,
    offset: float,
) -> Image:
    """y = x^(exp(-s c)) (1 + s g + a r) + s b: a lamp that ages, is exchanged, or moves.

    s is -1 (darker) or 1 (brighter); g, c and b are `gain`, `gamma` and `offset`, each times a
    draw of [0.7, 1]; a is `gradient`, and r runs from -1 to 1 over the frame in a drawn
    direction.
    """
    s = 1.0 if rng.random() < 0.5 else -1.0
    g, c, b = (float(v) for v in rng.uniform(_LEAST, 1.0, 3) * (gain, gamma, offset))
    angle = rng.uniform(0, 2 * np.pi)
    across, down = float(np.cos(angle)), float(np.sin(angle))
    height, width = image.shape[:2]
    columns, rows = _centred(width), _centred(height)
    r = (across * columns[None, :] + down * rows[:, None]) / (abs(across) + abs(down))
    factor = (1.0 + s * g + gradient * r).astype(np.float32)
    curve = np.power(np.arange(256) / 255.0, np.exp(-s * c)).astype(np.float32)
    return _stored(curve[image] * factor[:, :, None] + np.float32(s * b))


def jpeg(image: Image, rng: np.random.Generator, *, quality: float) -> Image:
    """Coded as JPEG and decoded: libjpeg's `quality`, colour at half the resolution (4:2:0).

    The blocks are the format's own, 8 pixels (16 for colour) whatever the image's size.
    """
    result = np.empty_like(image)
    height, width = image.shape[:2]
    for top in range(0, height, _JPEG_SIDE):
        for left in range(0, width, _JPEG_SIDE):
            piece = (slice(top, top + _JPEG_SIDE), slice(left, left + _JPEG_SIDE))
            coded = simplejpeg.encode_jpeg(
                np.ascontiguousarray(image[piece]),
                quality=int(quality),
                colorspace="RGB",
                colorsubsampling="420",
            )
            result[piece] = simplejpeg.decode_jpeg(coded, "RGB")
    return result


def blur(image: Image, rng: np.random.Generator, *, sigma: float) -> Image:
    """Convolved with a Gaussian of standard deviation `sigma` (a length)."""
    return np.asarray(
        cv2.GaussianBlur(
            image, (0, 0), sigma * extent(*image.shape[:2]), borderType=cv2.BORDER_REFLECT_101
        ),
        np.uint8,
    )


def defocus(image: Image, rng: np.random.Generator, *, radius: float) -> Image:
    """Convolved with a disc of `radius` (a length): the image of a point out of focus."""
    r = radius * extent(*image.shape[:2])
    columns, rows = _kernel_grid(r)
    return _convolve(image, np.clip(r + 0.5 - np.hypot(columns, rows), 0.0, 1.0))


def motion(image: Image, rng: np.random.Generator, *, length: float) -> Image:
    """Convolved with a line of `length` in a drawn direction: the part moves while exposed."""
    angle = rng.uniform(0, np.pi)
    half = 0.5 * length * extent(*image.shape[:2])
    columns, rows = _kernel_grid(half)
    along = np.abs(columns * np.cos(angle) + rows * np.sin(angle))
    beside = np.abs(rows * np.cos(angle) - columns * np.sin(angle))
    return _convolve(image, np.clip(half + 0.5 - along, 0, 1) * np.clip(1.0 - beside, 0, 1))


def noise(
    image: Image, rng: np.random.Generator, *, shot: float, read: float, grain: float
) -> Image:
    """y = (L + sqrt(shot L + read^2) n)^(1/2.2) with L = x^2.2: photons, and the amplifier.

    n is Gaussian with variance 1, smoothed to a grain of standard deviation `grain` (a length)
    so that noise survives the reduction of a large image as it does that of a small one. The
    channels of a colour image have noise of their own; a grey image stays grey.
    """
    grey = is_grey(image)
    height, width = image.shape[:2]
    n = rng.standard_normal((height, width, 1 if grey else 3), dtype=np.float32)
    n = _grained(n, grain * extent(height, width))
    light = np.power(np.arange(256) / 255.0, _GAMMA)
    deviation = np.sqrt(shot * light + read**2).astype(np.float32)
    pixels = image[:, :, :1] if grey else image
    n *= deviation[pixels]
    n += light.astype(np.float32)[pixels]
    np.clip(n, 0.0, 1.0, out=n)
    noisy = _stored(np.power(n, np.float32(1.0 / _GAMMA), out=n))
    return np.repeat(noisy, 3, axis=2) if grey else noisy


def contrast(image: Image, rng: np.random.Generator, *, kept: float) -> Image:
    """y = m + kept (x - m), m the mean of each channel: haze, or dust on the lens."""
    mean = image.reshape(-1, 3).mean(axis=0, dtype=np.float64) / 255.0  # (3,)
    values = np.arange(256)[:, None] / 255.0
    table = _stored(mean + kept * (values - mean))  # (256, 3)
    return np.stack([table[image[:, :, c], c] for c in range(3)], axis=2)


def glare(image: Image, rng: np.random.Generator, *, strength: float, radius: float) -> Image:
    """y = x + strength sum_k w_k exp(-d_k^2 / 2): three white highlights, which saturate.

    d_k is the distance from a drawn centre, in units of `radius` (a length) times a draw of
    [0.6, 1] along a drawn axis, and of as much times a draw of [0.4, 1] across it; w_1 = 1, the
    others are draws of [0.3, 0.8].
    """
    height, width = image.shape[:2]
    whole = np.zeros((height, width), np.float32)
    unit = radius * extent(height, width)
    for k in range(_SPOTS):
        row, column = rng.uniform(0.1, 0.9, 2) * (height - 1, width - 1)
        angle = rng.uniform(0, np.pi)
        along = unit * rng.uniform(0.6, 1.0)
        across = along * rng.uniform(0.4, 1.0)
        drawn = rng.uniform(0.3, 0.8)
        rows = (np.arange(height) - row).astype(np.float32)[:, None]
        columns = (np.arange(width) - column).astype(np.float32)[None, :]
        u = (columns * np.float32(np.cos(angle)) + rows * np.float32(np.sin(angle))) / along
        v = (rows * np.float32(np.cos(angle)) - columns * np.float32(np.sin(angle))) / across
        whole += np.float32(1.0 if k == 0 else drawn) * np.exp(-0.5 * (u * u + v * v))
    added = np.float32(strength) * whole
    return _stored(image.astype(np.float32) / np.float32(255.0) + added[:, :, None])


def spots(image: Image, rng: np.random.Generator, *, strength: float, radius: float) -> Image:
    """y = x + strength sum_k w_k exp(-d_k^2 / 2): round highlights side by side all over the frame.

    d_k is the distance from a centre in units of `radius` (a length). Centres are five of these
    units apart, on a square grid that is shifted by chance; the w_k are draws of [0.3, 1].
    """
    height, width = image.shape[:2]
    unit = radius * extent(height, width)
    step = 5 * unit
    profiles = []
    for length, shift in zip((height, width), rng.uniform(0, step, 2)):
        centres = np.arange(-shift, length + step, step)[:, None]
        profiles.append(np.exp(-0.5 * ((np.arange(length) - centres) / unit) ** 2))
    rows, columns = profiles  # (a, H) and (b, W)
    weights = rng.uniform(0.3, 1.0, (len(rows), len(columns)))
    added = (strength * (rows.T @ weights @ columns)).astype(np.float32)  # (H, W)
    return _stored(image.astype(np.float32) / np.float32(255.0) + added[:, :, None])


def gain(image: Image, rng: np.random.Generator, *, factor: float) -> Image:
    """y = factor x: the lamp brighter or darker, and nothing else."""
    return _stored(np.arange(256) / 255.0 * factor)[image]


def white_noise(image: Image, rng: np.random.Generator, *, deviation: float) -> Image:
    """y = x + deviation n / 255, n standard normal at each pixel; a grey image stays grey."""
    grey = is_grey(image)
    height, width = image.shape[:2]
    n = rng.standard_normal((height, width, 1 if grey else 3), dtype=np.float32)
    n *= np.float32(deviation)
    n += image[:, :, :1] if grey else image
    noisy = _stored(n / np.float32(255.0))
    return np.repeat(noisy, 3, axis=2) if grey else noisy


def geo_jitter(
    image: npt.NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    degrees: float,
    shift: float,
    zoom: float,
    nearest: bool = False,
) -> npt.NDArray[np.uint8]:
    """Turned and scaled about the centre, and shifted: a camera that was knocked.

    The angle is `degrees`, the shift `shift` (a length) in a drawn direction, and the scale
    1 + `zoom` or 1 - `zoom`, each times a draw of [0.7, 1], the angle of either sign. What
    comes in at the border is reflected. Also takes a mask (H, W), with `nearest`: its pixels
    keep their values.
    """
    turns, scales = (1.0 if one < 0.5 else -1.0 for one in rng.random(2))
    angle, far, larger = (float(v) for v in rng.uniform(_LEAST, 1.0, 3) * (degrees, shift, zoom))
    direction = rng.uniform(0, 2 * np.pi)
    height, width = image.shape[:2]
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    moved = far * extent(height, width) * np.array([np.cos(direction), np.sin(direction)])
    cosine, sine = np.cos(np.deg2rad(turns * angle)), np.sin(np.deg2rad(turns * angle))
    # from a pixel of the result to its place in the image
    linear = np.array([[cosine, sine], [-sine, cosine]]) / (1.0 + scales * larger)
    matrix = np.column_stack([linear, centre - linear @ (centre + moved)])
    if max(height, width) > _WARP_SIDE:
        return _warp_long(image, matrix, nearest)
    method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return np.asarray(
        cv2.warpAffine(
            image,
            matrix,
            (width, height),
            flags=method | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        ),
        np.uint8,
    )


def is_grey(image: Image) -> bool:
    """Return whether the three channels are the same."""
    return bool(
        (image[:, :, 0] == image[:, :, 1]).all() and (image[:, :, 0] == image[:, :, 2]).all()
    )


def _centred(count: int) -> npt.NDArray[np.float64]:
    """Return `count` positions from -1 to 1; one alone is at 0."""
    return np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)


def _stored(values: npt.NDArray[np.floating]) -> Image:
    return np.asarray(np.rint(np.clip(values, 0.0, 1.0) * 255.0), np.uint8)


def _kernel_grid(reach: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Columns (1, k) and rows (k, 1) of a kernel that holds all within `reach` of its middle."""
    side = math.ceil(reach + 0.5)
    positions = np.arange(-side, side + 1, dtype=np.float64)
    return positions[None, :], positions[:, None]


def _convolve(image: Image, kernel: npt.NDArray[np.float64]) -> Image:
    weights = (kernel / kernel.sum()).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, weights, borderType=cv2.BORDER_REFLECT_101), np.uint8)


def _grained(n: Floats, sigma: float) -> Floats:
    """White noise (H, W, C) smoothed, with its variance as it was."""
    if sigma < 0.25:  # less than a pixel's own extent
        return n
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
    smooth = cv2.sepFilter2D(n, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    smooth = np.asarray(smooth, np.float32).reshape(n.shape)
    return np.asarray(smooth / np.float32(np.square(kernel).sum()), np.float32)


def _warp_long(
    image: npt.NDArray[np.uint8], matrix: npt.NDArray[np.float64], nearest: bool
) -> npt.NDArray[np.uint8]:
    """Warp as `cv2.warpAffine` does, for sides that it cannot count."""
    from scipy.ndimage import affine_transform

    turned = matrix[::-1][:, [1, 0, 2]]  # rows before columns
    planes = image[:, :, None] if image.ndim == 2 else image
    done = [
        affine_transform(
            planes[:, :, c].astype(np.float32),
            turned[:, :2],
            turned[:, 2],
            order=0 if nearest else 1,
            mode="mirror",
        )
        for c in range(planes.shape[2])
    ]
    return np.asarray(np.rint(np.stack(done, axis=2)), np.uint8).reshape(image.shape)
