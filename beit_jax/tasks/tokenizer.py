"""Training a discrete VAE (arXiv 2102.12092, section 2.1 and appendix A.2): pictures through a grid
of relaxed one-hot codes and back.

The codes are relaxed by Gumbel-softmax at a temperature that falls along a cosine; the weight of
the KL term to the uniform distribution rises along one. Shape legend: B images, S side in pixels, h
w rows and columns of tokens, V vocabulary.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.data.config import DataConfig
from beit_jax.errors import check, one_of
from beit_jax.images.color import to_float
from beit_jax.models.tokenizers import dvae, token_ids
from beit_jax.models.tokenizers.dvae import DVAE, map_pixels, unmap_pixels
from beit_jax.settings.intervals import Interval, PositiveShare, Shown
from beit_jax.settings.run import RunConfig
from beit_jax.tasks import Task, of_channels
from beit_jax.tasks.tokenizer_quality import drawn_psnr
from beit_jax.weights.tokenizer import save_tokenizer

MEASURED = 64  # training images whose PSNR is known where nothing is held out
RECONSTRUCTIONS = ('logit_laplace', 'l2', 'smooth_l1')
Temperature = Annotated[float, Interval(0.001, 1000)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Temperatures and weights as DALL-E's (appendix A.2)."""

    task: str = 'tokenizer'
    data: DataConfig = DataConfig()
    model: dvae.Config = dvae.Config()
    reconstruction: str = 'logit_laplace'  # logit_laplace | l2 | smooth_l1
    temperature: Temperature = 1.0  # at the start
    final_temperature: Temperature = 1 / 16  # at the end
    temperature_share: PositiveShare = 0.25  # of the run, after which the temperature is final
    kl_weight: float = 6.6  # at the end of its ramp
    kl_share: PositiveShare = 0.01  # of the run, after which the KL weight is final
    # pulls the mean code of a batch to the uniform one: against codes that nobody uses (not in
    # DALL-E)
    usage_weight: float = 0.0
    pictures: Shown = 0  # held-out pictures that are drawn, reconstructed, at each evaluation

    def __post_init__(self):
        super().__post_init__()
        one_of('config.reconstruction', self.reconstruction, RECONSTRUCTIONS)
        object.__setattr__(self, 'model', of_channels(self.model, self.data))
        check(
            not any(side % self.model.factor for side in self.data.shape),
            f'config.data.image_size {self.data.image_size} is not a multiple of '
            f'{self.model.factor}, the pixels per token of {self.model.groups} groups: change one '
            'of them.',
        )
        check(
            self.final_temperature <= self.temperature,
            f'config.final_temperature is {self.final_temperature}, above config.temperature '
            f'{self.temperature}: it falls.',
        )


def reconstruction_loss(kind: str, images, prediction):
    """Loss of each pixel and channel.

    Args:
      kind: 'logit_laplace' (negative log-density), 'l2' or 'smooth_l1'.
      images: float [..., C] in [0.1, 0.9] (`map_pixels`).
      prediction: float32 [..., 2 C], location and log-scale in logit space.

    Returns:
      float32 [..., C].
    """
    location, log_scale = jnp.split(prediction, 2, axis=-1)
    if kind == 'logit_laplace':
        distance = jnp.abs(jax.scipy.special.logit(images) - location)
        return distance * jnp.exp(-log_scale) + log_scale + jnp.log(2 * images * (1 - images))
    error = jax.nn.sigmoid(location) - images
    if kind == 'l2':
        return jnp.square(error)
    return jnp.where(jnp.abs(error) < 0.1, 5 * jnp.square(error), jnp.abs(error) - 0.05)


@dataclasses.dataclass(frozen=True)
class Tokenizer(Task):
    """The task: see `beit_jax.tasks.Task`."""

    config: Config
    graphdef: nnx.GraphDef

    @property
    def views(self):
        return (self.config.data.view('image', 0, 'lanczos3'),)

    def build(self, rngs):
        return DVAE(self.config.model, dtype=self.config.compute_dtype, rngs=rngs)

    def loss(self, params, batch, keys_B, *, progress, train):
        config, model = self.config, nnx.merge(self.graphdef, params)
        images_BSS3 = map_pixels(to_float(batch['image']))
        logits_BhwV = model.encoder(images_BSS3)
        ids_Bhw = token_ids(logits_BhwV)
        if train:
            share = _cosine(progress / config.temperature_share)
            low, high = config.final_temperature, config.temperature
            temperature = low + (high - low) * share
            noise_Bn = jax.vmap(lambda key: jax.random.gumbel(key, (logits_BhwV[0].size,)))(keys_B)
            noisy_BhwV = logits_BhwV + noise_Bn.reshape(logits_BhwV.shape)
            codes_BhwV = jax.nn.softmax(noisy_BhwV / temperature)
        else:
            codes_BhwV = jax.nn.one_hot(ids_Bhw, config.model.vocabulary)
        prediction_BSS6 = model.decoder(codes_BhwV)
        losses_BSS3 = reconstruction_loss(config.reconstruction, images_BSS3, prediction_BSS6)
        reconstruction_B = jnp.mean(losses_BSS3, axis=(1, 2, 3))
        log_q_BhwV = jax.nn.log_softmax(logits_BhwV)
        excess_BhwV = log_q_BhwV + jnp.log(config.model.vocabulary)
        kl_Bhw = jnp.sum(jnp.exp(log_q_BhwV) * excess_BhwV, axis=-1)
        # per pixel and channel, as the reconstruction
        kl_B = jnp.sum(kl_Bhw, axis=(1, 2)) / images_BSS3[0].size
        kl_weight = config.kl_weight * (1 - _cosine(progress / config.kl_share))
        drawn_BSS3 = unmap_pixels(jax.nn.sigmoid(prediction_BSS6[..., : config.model.channels]))
        error_B = jnp.mean(jnp.square(drawn_BSS3 - unmap_pixels(images_BSS3)), axis=(1, 2, 3))
        valid_B = batch['valid']
        sum_q_V = jnp.einsum('bhwv,b->v', jnp.exp(log_q_BhwV), valid_B)
        mean_q_V = sum_q_V / (jnp.sum(valid_B) * ids_Bhw[0].size)
        # KL(mean code || uniform)
        disuse = jnp.sum(mean_q_V * jnp.log(mean_q_V * config.model.vocabulary + 1e-10))
        loss_B = reconstruction_B + kl_weight * kl_B + config.usage_weight * disuse
        loss = jnp.sum(loss_B * valid_B)
        counts_V = jnp.zeros(config.model.vocabulary).at[ids_Bhw].add(valid_B[:, None, None])
        sums = {
            'loss': loss,
            'weight': jnp.sum(valid_B),
            'reconstruction': jnp.sum(reconstruction_B * valid_B),
            'kl': jnp.sum(kl_B * valid_B),
            'squared_error': jnp.sum(error_B * valid_B),
            'token_counts': counts_V,
        }
        return loss, sums

    def summarize(self, sums):
        """`psnr` in dB; `codebook_usage` is the share of the vocabulary that occurred,
        `token_perplexity` its effective number."""
        metrics = {name: sums[name] / sums['weight'] for name in ('loss', 'reconstruction', 'kl')}
        error = jnp.maximum(sums['squared_error'] / sums['weight'], 1e-10)
        metrics['psnr'] = -10 * jnp.log10(error)
        return metrics | token_statistics(sums['token_counts'])

    def describe(self):
        return {
            'architecture': 'dvae',
            **dataclasses.asdict(self.config.model),
            'image_size': self.config.data.image_size,
            'pixels': '0.8 x + 0.1 for x in [0, 1]',
        }

    def finish(self, params, workdir: Path, batches, metrics):
        """Writes the tokenizer, with its PSNR of held-out images, or where there are none of some
        training images."""
        path, size = workdir / 'tokenizer', self.config.data.image_size
        if metrics:
            psnr = float(metrics['eval/psnr'])
        else:
            batch = next(batches('train', self.config.batch_size))
            images_BSS3 = to_float(batch['image'][batch['valid'] > 0][:MEASURED])
            psnr = drawn_psnr(dvae.Tokenizer(self.config.model, size), params, images_BSS3)
        if jax.process_index() == 0:
            save_tokenizer(path, 'dvae', self.config.model, size, params, psnr)


def _cosine(share):
    """From 1 at 0 to 0 at 1 and beyond."""
    return (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1))) / 2


def token_statistics(counts_V) -> dict:
    """`token_perplexity` (exp of the entropy, in [1, V]) and `codebook_usage` (share of V that
    occurs) of token counts, float32 [V]."""
    shares_V = counts_V / jnp.maximum(jnp.sum(counts_V), 1)
    used_V = shares_V > 0
    entropy = -jnp.sum(jnp.where(used_V, shares_V * jnp.log(jnp.where(used_V, shares_V, 1)), 0))
    return {'token_perplexity': jnp.exp(entropy), 'codebook_usage': jnp.mean(counts_V > 0)}


def make(config: Config) -> Tokenizer:
    build = lambda: DVAE(config.model, dtype=config.compute_dtype, rngs=nnx.Rngs(0))
    return Tokenizer(config, nnx.graphdef(nnx.eval_shape(build)))
