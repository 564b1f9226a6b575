"""The BEiT encoder: a ViT that can hide patches.

arXiv 2106.08254, section 2.2; modeling_pretrain.py, modeling_finetune.py. `vanilla` is
positions='absolute', layer_scale=0; `plus` is positions='shared_bias' (pre-training) or
'layer_bias' (fine-tuning) with LayerScale. Shape legend: B images, N tokens (CLS first), P patches,
D width, H heads, L layers.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Annotated

from flax import nnx
import jax
import jax.numpy as jnp

from beit_jax.errors import check, one_of
from beit_jax.models.attention import WAYS, hide_padding, padded_tokens
from beit_jax.models.initializers import Constant, TruncatedNormal, Uniform, parameter
from beit_jax.models.kernels import KERNEL_WAYS
from beit_jax.models.layers import Block, RelativePositionBias, linear
from beit_jax.models.patches import patchify
from beit_jax.models.presets import PRESETS
from beit_jax.models.ways import attention_way, kernel_settings
from beit_jax.settings.intervals import Count, Interval, Share, ShareBelow1

MAX_PATCHES = 2**13  # each has a bias to each other one
_EARLY = 0x636C73  # sets the keys of blocks behind an early layer apart from those of the others
# an embedding, biases of all layers or of each; the official --abs_pos_emb alone gives two of them
POSITIONS = (
    'absolute',
    'shared_bias',
    'layer_bias',
    'absolute+shared_bias',
    'absolute+layer_bias',
)
REMAT_POLICIES = {
    'nothing': None,  # save the input of a block only
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The architecture: `size`, overridden by `width`, `depth`, `heads`, `hidden` where not 0."""

    size: str = 'base'  # tiny | small | base | large
    patch_size: Count = 16  # side in pixels
    channels: Count = 3  # of a picture: those that config.data reads
    width: Annotated[int, Interval(0, 2**14)] = 0  # of a token; 0: that of the size
    depth: Annotated[int, Interval(0, 200)] = 0  # blocks; 0: those of the size
    heads: int = 0  # of attention; 0: those of the size
    hidden: Annotated[int, Interval(0, 2**16)] = 0  # of the MLP
    # absolute | shared_bias | layer_bias | absolute+shared_bias | absolute+layer_bias
    positions: str = 'shared_bias'
    qkv_bias: bool = True  # of queries and values; keys have none
    layer_scale: float = 0.1  # initial value; 0 leaves LayerScale out
    norm_eps: Share = 1e-6  # of the LayerNorms; weights from Hugging Face's hub run with 1e-12
    drop_path: ShareBelow1 = 0.1  # of the last block; grows linearly from 0
    # deviation of initial weights, cut there in pre-training; narrow models learn sooner from
    # larger ones
    init_std: Annotated[float, Interval(1e-6, 1)] = 0.02
    unroll: Count = 1  # blocks per step of the scan; the depth or more: no scan, slower to compile
    remat: bool = False  # recompute the blocks in the backward pass
    remat_policy: str = 'nothing'  # what remat still saves: nothing | dots
    # auto: the fastest of these that is possible | plain: JAX | cudnn: NVIDIA GPUs | pallas: TPUs
    attention: str = 'auto'
    # the products beside attention, with their norm; auto: the faster of these that is possible,
    # plain with remat | plain: JAX | pallas: TPUs
    projections: str = 'auto'
    mlp: str = 'auto'  # the MLP, with its norm; likewise

    def __post_init__(self):
        one_of('config.model.size', self.size, PRESETS)
        one_of('config.model.positions', self.positions, POSITIONS)
        one_of('config.model.remat_policy', self.remat_policy, REMAT_POLICIES)
        one_of('config.model.attention', self.attention, WAYS)
        one_of('config.model.projections', self.projections, KERNEL_WAYS)
        one_of('config.model.mlp', self.mlp, KERNEL_WAYS)
        for name, value in PRESETS[self.size].items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        check(
            self.width % self.heads == 0,
            f'config.model.width {self.width} is not a multiple of config.model.heads '
            f'{self.heads}.',
        )

    @property
    def patch_values(self) -> int:
        """Numbers that a patch of a picture has."""
        return self.channels * self.patch_size**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a picture of height x width pixels."""
        rows, columns = height // self.patch_size, width // self.patch_size
        check(
            (rows * self.patch_size, columns * self.patch_size) == (height, width),
            f'an image of {height} x {width} cannot be cut into patches of {self.patch_size}: '
            'change config.data.image_size or config.model.patch_size.',
        )
        check(
            rows * columns <= MAX_PATCHES,
            f'an image of {height} x {width} has {rows * columns} patches of {self.patch_size}, '
            f'more than {MAX_PATCHES}: change config.data.image_size or config.model.patch_size.',
        )
        return rows, columns


def make_blocks(
    config: EncoderConfig, grid: tuple[int, int], layers: range, kernel_init, *, dtype, rngs
) -> nnx.Dict:
    """Blocks '00', '01', ... that start as those of the depths `layers`, from 0."""
    kernels = kernel_settings(config)

    def block(layer):
        return Block(
            layer + 1,
            config.width,
            config.heads,
            config.hidden,
            layer_scale=config.layer_scale,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            kernel_init=kernel_init,
            grid=grid if 'layer_bias' in config.positions else None,
            way=config.attention,
            projections_way=kernels['projections'],
            mlp_way=kernels['mlp'],
            dtype=dtype,
            rngs=rngs,
        )

    return nnx.Dict({f'{i:02d}': block(layer) for i, layer in enumerate(layers)})


class Encoder(nnx.Module):
    """Images to token representations, before the last norm (which belongs to the heads)."""

    def __init__(
        self,
        config: EncoderConfig,
        grid: tuple[int, int],
        *,
        masked: bool = True,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Initialised for pre-training; where nothing can be hidden as modeling_finetune.py is.

        Args:
          config: the architecture.
          grid: rows and columns of patches.
          masked: whether patches can be hidden.
          dtype: of the products and of the residual stream.
        """
        self.config, self.grid_shape, self.dtype = config, grid, dtype
        # of the first blocks, that are not learned: they run by themselves, so that no gradient
        # goes through their scan, and without stochastic depth
        self.frozen = 0
        width, inputs = config.width, config.patch_values
        kernel_init = TruncatedNormal(config.init_std, config.init_std if masked else 2.0)
        patch_init, patch_bias_init = kernel_init, Constant(0.0)
        if not masked:
            patch_init = patch_bias_init = Uniform(inputs**-0.5)  # torch's default
        self.patch_embedding = linear(
            inputs, width, patch_init, bias_init=patch_bias_init, dtype=dtype, rngs=rngs
        )
        self.cls_token = parameter(kernel_init, (width,), rngs)
        self.mask_token = parameter(kernel_init, (width,), rngs) if masked else None
        absolute, shared = (kind in config.positions for kind in POSITIONS[:2])
        places = 1 + grid[0] * grid[1], width
        self.position_embedding = parameter(kernel_init, places, rngs) if absolute else None
        self.position_bias = RelativePositionBias(grid, config.heads, rngs=rngs) if shared else None

        # Parameters are kept per layer: the TPU estimate favours it over slices of stacked arrays
        # (docs/benchmarks.md).
        self.blocks = make_blocks(
            config, grid, range(config.depth), kernel_init, dtype=dtype, rngs=rngs
        )

    def __call__(
        self, images_BHWC, mask_BP=None, *, keys_B=None, every_layer: Callable | None = None
    ):
        """Encodes pictures of the grid's size.

        Args:
          images_BHWC: normalised pixels, float [B, height, width, channels].
          mask_BP: bool [B, P]; true patches are replaced by the mask token after the embedding, so
            that their pixels cannot be seen.
          keys_B: a key an image for stochastic depth, or None (evaluation).
          every_layer: what to return of each block's result, `dtype` [B, 1 + P, D], instead of the
            last one.

        Returns:
          `dtype` [B, 1 + P, D]; with every_layer what that makes of each block, stacked along a
            first axis L.
        """
        x_BND, bias_HNN = self._embed(images_BHWC, mask_BP)
        keep_L2B = self._draw_drop_path(keys_B)
        if every_layer is None:
            return self._tokens(self._run_blocks(x_BND, bias_HNN, keep_L2B))
        of_each = lambda x_BND: every_layer(self._tokens(x_BND))
        return self._run_blocks(x_BND, bias_HNN, keep_L2B, of_each)

    def taps(self, images_BHWC, blocks: Sequence[int], *, keys_B=None) -> list:
        """What some blocks give, by their numbers from 0 (-1: what the first one gets).

        Those behind the last of them are not run. Returns a list of `dtype` [B, 1 + P, D].
        """
        x_BND, bias_HNN = self._embed(images_BHWC)
        keep_L2B, made, done = self._draw_drop_path(keys_B), {}, 0
        for block in sorted(set(blocks)):
            if block >= done:
                which = slice(done, block + 1)
                x_BND = self._run_blocks(x_BND, bias_HNN, keep_L2B, which=which)
            made[block], done = self._tokens(x_BND), block + 1
        return [made[block] for block in blocks]

    def frozen_part(self, images_BHWC):
        """What the embeddings and the `frozen` blocks give, `dtype` [B, 1 + P, D]."""
        x_BND, bias_HNN = self._embed(images_BHWC)
        if not self.frozen:
            return x_BND
        return self._run_blocks(x_BND, bias_HNN, None, which=slice(0, self.frozen))

    def with_early(
        self, images_BHWC, mask_BP, early: int, blocks: nnx.Dict, *, keys_B=None
    ) -> tuple[jax.Array, jax.Array]:
        """What the last block gives, and what more blocks make of its CLS and of the patches of an
        early one (BEiT v2).

        Args:
          early: after how many blocks the patches are taken.
          blocks: see `make_blocks`; their stochastic depth is that of as many after the early one.
          images_BHWC, mask_BP, keys_B: see `__call__`.

        Returns:
          two arrays, `dtype` [B, 1 + P, D].
        """
        x_BND, bias_HNN = self._embed(images_BHWC, mask_BP)
        keep_L2B = self._draw_drop_path(keys_B)
        early_BND = self._run_blocks(x_BND, bias_HNN, keep_L2B, which=slice(0, early))
        last_BND = self._run_blocks(early_BND, bias_HNN, keep_L2B, which=slice(early, None))
        x_BND = jnp.concatenate([last_BND[:, :1], early_BND[:, 1:]], axis=1)
        if keys_B is not None:
            keys_B = jax.vmap(lambda key: jax.random.fold_in(key, _EARLY))(keys_B)
        keep_L2B = self._draw_drop_path(keys_B, slice(early, early + len(blocks)))
        x_BND = self._run_blocks(x_BND, bias_HNN, keep_L2B, blocks=blocks)
        return self._tokens(last_BND), self._tokens(x_BND)

    def attention(self, images_BHWC, layer: int):
        """How much each token looks at each other one in block `layer` (from 0).

        Returns float32 [B, H, N, N] (query, key); rows sum to 1.
        """
        x_BND, bias_HNN = self._embed(images_BHWC)
        blocks = list(self.blocks.values())
        for block in blocks[:layer]:
            x_BND = block(x_BND, bias_HNN)
        weights_BHNN = blocks[layer].attention.weights(blocks[layer].norm1(x_BND), bias_HNN)
        return weights_BHNN[..., : self._num_tokens, : self._num_tokens]

    @property
    def _num_tokens(self) -> int:
        return 1 + math.prod(self.grid_shape)

    def _tokens(self, x_BND):
        """Without what a sequence was filled up with."""
        return x_BND[:, : self._num_tokens]

    def _embed(self, images_BHWC, mask_BP=None):
        """(what the first block gets, the bias that the layers share or None)."""
        x_BPD = self.patch_embedding(patchify(images_BHWC, self.config.patch_size))
        if mask_BP is not None:
            x_BPD = jnp.where(mask_BP[..., None], self.mask_token[...].astype(self.dtype), x_BPD)
        batch, _, width = x_BPD.shape
        cls_B1D = jnp.broadcast_to(self.cls_token[...].astype(self.dtype), (batch, 1, width))
        x_BND = jnp.concatenate([cls_B1D, x_BPD], axis=1)
        if self.position_embedding is not None:
            x_BND = x_BND + self.position_embedding[...].astype(self.dtype)
        count = self._num_tokens
        tokens = padded_tokens(attention_way(self.config, self.grid_shape, self.dtype), count)
        if tokens > count:  # once, and with a token, of which no norm makes NaN
            x_BND = jnp.concatenate([x_BND, x_BND[:, : tokens - count]], axis=1)
        if self.position_bias is not None:
            return x_BND, self.position_bias(tokens)
        if tokens == count or 'bias' in self.config.positions:  # of each layer
            return x_BND, None
        return x_BND, hide_padding(jnp.zeros((self.config.heads, count, count)), tokens)

    def _draw_drop_path(self, keys_B, layers=slice(None)):
        """What each branch is multiplied by, float32 [L, 2, B], or None where nothing is dropped;
        for some of the layers.

        0 with the layer's rate, else 1 / (1 - rate).
        """
        if keys_B is None or not self.config.drop_path:
            return None
        rates_L = jnp.linspace(0, self.config.drop_path, self.config.depth)[layers]
        uniform_BL2 = jax.vmap(lambda key: jax.random.uniform(key, (len(rates_L), 2)))(keys_B)
        kept_L2B = uniform_BL2.transpose(1, 2, 0) >= rates_L[:, None, None]
        kept_L2B = kept_L2B / (1 - rates_L[:, None, None])
        return kept_L2B.at[: self.frozen].set(1.0) if self.frozen else kept_L2B

    def _run_blocks(
        self, x_BND, bias_HNN, keep_L2B, every_layer=None, which=slice(None), blocks=None
    ):
        """Runs some blocks (`which` of ours, or others): here alone a scan or a plain loop is
        chosen."""
        start, stop, _ = which.indices(len(blocks or self.blocks))
        if blocks is every_layer is None and start < self.frozen < stop:
            early, late = slice(start, self.frozen), slice(self.frozen, stop)
            x_BND = self._run_blocks(x_BND, bias_HNN, keep_L2B, which=early)
            return self._run_blocks(x_BND, bias_HNN, keep_L2B, which=late)
        config, blocks = self.config, list((blocks or self.blocks).values())[which]
        graphdef = nnx.graphdef(blocks[0])

        def apply(x_BND, layer):
            x_BND = nnx.merge(graphdef, layer['params'])(x_BND, bias_HNN, layer.get('keep'))
            return x_BND, (every_layer(x_BND) if every_layer else None)

        if config.remat:
            apply = jax.checkpoint(
                apply,
                policy=REMAT_POLICIES[config.remat_policy],
                prevent_cse=config.unroll >= config.depth,
            )
        params = [nnx.to_pure_dict(nnx.state(block, nnx.Param)) for block in blocks]
        keep = {} if keep_L2B is None else {'keep': keep_L2B[which]}
        if config.unroll < config.depth:
            stacked = {'params': jax.tree.map(lambda *layers: jnp.stack(layers), *params)} | keep
            x_BND, made = jax.lax.scan(apply, x_BND, stacked, unroll=config.unroll)
            return made if every_layer else x_BND
        made = []
        for i, layer_params in enumerate(params):
            layer = {'params': layer_params} | {name: value[i] for name, value in keep.items()}
            x_BND, result = apply(x_BND, layer)
            made.append(result)
        return jax.tree.map(lambda *each: jnp.stack(each), *made) if every_layer else x_BND
