"""How good a tokenizer is: what its reconstructions keep, how much of its vocabulary it uses,
whether lower precision changes its tokens, and how fast it is."""

from collections.abc import Callable, Iterable
import dataclasses
import functools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from beit_jax.data.config import DataConfig
from beit_jax.images.color import to_float
from beit_jax.images.quality import WINDOW, psnr, ssim
from beit_jax.models.tokenizers import PRECISIONS, make_tokenizer, precision_here
from beit_jax.weights.tokenizer import known_psnr, load_tokenizer

KEPT = 8  # pictures that are given back
AT_A_TIME = 8  # pictures that are drawn, where all of a batch might not fit
FAR = 6.0  # dB below what a tokenizer keeps of its own pictures: these are others


def measure(tokenizer, params, batches: Iterable[np.ndarray]) -> dict:
    """Figures of a tokenizer (see `load_tokenizer`) over batches of pictures, uint8 or
    uint16 [B, H, W, C]; all but the last of one size.

    Returns:
      a dict: `psnr` (dB) and `ssim`, means over images, None where nothing draws; `codebook_usage`,
        the share of tokens that occur; `token_perplexity`, the effective number of tokens;
        `position_entropy`, bits, [rows][columns]; `agreement` by precision, the share of positions
        with the token of float32; `images_per_second` by precision; `precision_here`, which one
        each is on this device; and `pictures`, float [2, 8, H, W, C]: originals, reconstructions.
    """
    params = jax.device_put(params)
    make = functools.partial(
        make_tokenizer, tokenizer.kind, dataclasses.asdict(tokenizer.config), tokenizer.image_size
    )
    here = {precision: precision_here(precision) for precision in PRECISIONS}
    encode = {precision: jax.jit(make(precision).encode) for precision in here.values()}
    draw = jax.jit(functools.partial(_draw, tokenizer))
    same = dict.fromkeys(encode, 0)
    seconds = {precision: [] for precision in encode}
    quality, kept, counts_PV, total, size = [], [], None, 0, 0
    for pixels in batches:
        images = jax.block_until_ready(to_float(jnp.asarray(pixels)))
        ids = {}
        for precision, run in encode.items():
            began = time.perf_counter()
            ids[precision] = np.asarray(run(params, images))
            if len(pixels) == size:  # else it compiles
                seconds[precision].append((time.perf_counter() - began) / size)
        size, exact_BP = len(pixels), ids['float32']
        positions = exact_BP.shape[1]
        if counts_PV is None:
            counts_PV = np.zeros((positions, tokenizer.vocabulary))
        np.add.at(counts_PV, (np.arange(positions), exact_BP), 1)
        total += exact_BP.size
        for precision, ids_BP in ids.items():
            same[precision] += int((ids_BP == exact_BP).sum())
        if 'decoder' in params and tokenizer.decodes == 'pixels':
            pictures, *figures = draw(params, exact_BP, images)
            quality.append(np.stack(figures))
            kept = kept or [np.asarray(images[:KEPT]), np.asarray(pictures[:KEPT])]
    counts_V = counts_PV.sum(0)
    entropy_P = np.array([_entropy(counts) for counts in counts_PV])
    grid = [side // tokenizer.factor for side in images.shape[1:3]]
    return _means(quality) | {
        'codebook_usage': float((counts_V > 0).mean()),
        'token_perplexity': float(2 ** _entropy(counts_V)),
        'position_entropy': entropy_P.reshape(grid).tolist(),
        'agreement': {precision: same[one] / total for precision, one in here.items()},
        'images_per_second': {
            precision: 1 / float(np.median(seconds[one])) if seconds[one] else None
            for precision, one in here.items()
        },
        'precision_here': here,
        'images': total // len(counts_PV),
        'vocabulary': tokenizer.vocabulary,
        'device': jax.devices()[0].device_kind,
        'pictures': kept,
    }


def drawn_psnr(tokenizer, params, images) -> float:
    """PSNR in dB, of all pixels together, of what a tokenizer keeps of pictures in [0, 1],
    float [B, H, W, C]; `params` has its decoder. A few at a time: a whole batch may not fit."""
    grid = tuple(side // tokenizer.factor for side in images.shape[1:3])

    @jax.jit
    def error(params, images):
        def of_one(image):
            ids_BP = tokenizer.encode(params, image[None])
            return jnp.mean(jnp.square(tokenizer.decode(params, ids_BP, grid) - image))

        return jnp.mean(jax.lax.map(of_one, images, batch_size=AT_A_TIME))

    return -10 * math.log10(max(float(error(params, images)), 1e-10))


def far_from(tokenizer, path: str, pictures: Callable, data: DataConfig) -> list[str]:
    """A line for the user where the tokenizer in `path` draws pictures, which are asked for where
    it can draw, far worse than those that it was trained on; `data` says where they are from."""
    known = known_psnr(path)
    params = load_tokenizer(path, decoder=True)[1] if known is not None else {}
    if 'decoder' not in params:
        return []
    psnr = drawn_psnr(tokenizer, params, pictures())
    if psnr > known - FAR:
        return []
    given = f'--config.data.name={data.name}'
    given += f' --config.data.path={data.path}' * bool(data.path)
    return [
        f'WARNING: the tokenizer {path} draws these pictures at {psnr:.1f} dB PSNR, its own at '
        f'{known:.1f} dB: its tokens say little of them. Train one on these: the command that '
        f'made it, with another --workdir and {given}'
    ]


def _draw(tokenizer, params, ids_BP, images):
    """(reconstructions, their PSNR [B], their SSIM [B], NaN where pictures are too small)."""
    sides = images.shape[1:3]
    pictures = tokenizer.decode(params, ids_BP, tuple(side // tokenizer.factor for side in sides))
    large = min(sides) >= WINDOW
    similarity = ssim(images, pictures) if large else jnp.full(len(images), jnp.nan)
    return pictures, psnr(images, pictures), similarity


def _means(quality: list[np.ndarray]) -> dict:
    """Of batches [2, B], PSNR and SSIM."""
    if not quality:
        return {'psnr': None, 'ssim': None}
    mean_psnr, mean_ssim = np.concatenate(quality, axis=1).mean(1).tolist()
    return {'psnr': mean_psnr, 'ssim': None if math.isnan(mean_ssim) else mean_ssim}


def _entropy(counts_V: np.ndarray) -> float:
    """Bits."""
    shares = counts_V[counts_V > 0] / counts_V.sum()
    return -np.sum(shares * np.log2(shares))
