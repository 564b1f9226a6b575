"""The peer of `benchmark step`: the arithmetic of BEiT's official pre-training step in PyTorch,
with random weights (modeling_pretrain.py, engine_for_pretraining.py, optim_factory.py; the
tokenizer as in dall_e/encoder.py).

bfloat16 autocast where that is asked for, but not around the tokenizer, which has the precision of
ours; AdamW in its fused form on a GPU, convolutions as cuDNN's trials choose them, the head on the
hidden patches alone, 75 an image. Shape legend: B images, N tokens, D width, H heads, P patches, K
hidden patches.
"""

import math
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from beit_jax.models.layers import num_relative_positions, relative_position_index
from beit_jax.models.tokenizers import precision_here
from beit_jax.tasks.pretrain import Config

VARIANTS = {  # name: (attention by torch's fused kernels, compiled)
    'eager': (False, False),
    'eager-fused': (True, False),
    'compiled': (False, True),
    'compiled-fused': (True, True),
}


class _Attention(nn.Module):
    def __init__(self, width, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BND, bias_HNN):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        qkv = functional.linear(x_BND, self.qkv.weight, bias).unflatten(2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:
            mask = None if bias_HNN is None else bias_HNN.to(q.dtype)[None]
            read = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            read = (logits if bias_HNN is None else logits + bias_HNN).softmax(-1) @ v
        return self.proj(read.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, model, drop_path, fused):
        super().__init__()
        width, self.drop_path = model.width, drop_path
        self.norm1 = nn.LayerNorm(width, model.norm_eps)
        self.norm2 = nn.LayerNorm(width, model.norm_eps)
        self.attn = _Attention(width, model.heads, fused)
        self.mlp = nn.Sequential(
            nn.Linear(width, model.hidden), nn.GELU(), nn.Linear(model.hidden, width)
        )
        self.gamma_1 = self.gamma_2 = 1.0
        if model.layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((width,), model.layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((width,), model.layer_scale))

    def forward(self, x_BND, bias_HNN):
        x_BND = x_BND + self._drop(self.gamma_1 * self.attn(self.norm1(x_BND), bias_HNN))
        return x_BND + self._drop(self.gamma_2 * self.mlp(self.norm2(x_BND)))

    def _drop(self, x_BND):
        if not self.drop_path:
            return x_BND
        kept_B11 = torch.rand(len(x_BND), 1, 1, device=x_BND.device) >= self.drop_path
        return x_BND * kept_B11.to(x_BND.dtype) / (1 - self.drop_path)


class MaskedImageModel(nn.Module):
    """Pictures float [B, 3, side, side], mask bool [B, P], slots int64 [B, K]
    -> logits [B, K, vocabulary]."""

    def __init__(self, config: Config, vocabulary: int, fused: bool = False):
        super().__init__()
        model, (rows, columns) = config.model, config.grid
        self.patch_embed = nn.Conv2d(3, model.width, model.patch_size, model.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, model.width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, model.width))
        self.pos_embed = self.table = None
        if 'absolute' in model.positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, model.width))
        if 'bias' in model.positions:
            positions = num_relative_positions(config.grid)
            self.table = nn.Parameter(torch.zeros(positions, model.heads))
        self.register_buffer('index', torch.from_numpy(relative_position_index(config.grid)).long())
        rates = np.linspace(0, model.drop_path, model.depth).tolist()
        self.blocks = nn.ModuleList(_Block(model, rate, fused) for rate in rates)
        self.norm = nn.LayerNorm(model.width, model.norm_eps)
        self.lm_head = nn.Linear(model.width, vocabulary)

    def forward(self, images, mask_BP, slots_BK):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.where(mask_BP[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
        x = x if self.pos_embed is None else x + self.pos_embed
        bias_HNN = None if self.table is None else self.table[self.index].permute(2, 0, 1)
        for block in self.blocks:
            x = block(x, bias_HNN)
        x = self.norm(x)[:, 1:]
        return self.lm_head(x.gather(1, slots_BK[..., None].expand(-1, -1, x.shape[2])))


class _TokenizerBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        widths, layers = (inputs, *[outputs // 4] * 3, outputs), []
        for i, size in enumerate((3, 3, 3, 1)):
            layers += [nn.ReLU(), nn.Conv2d(widths[i], widths[i + 1], size, padding=size // 2)]
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.branch(x) / 64


class Tokenizer(nn.Module):
    """DALL-E's encoder: pictures float [B, 3, side, side] in [0, 1] -> ids int64 [B, P].

    precision: one of `models.tokenizers.PRECISIONS`. The last convolution is in float32, or TF32
    where products may be rounded.
    """

    def __init__(self, width: int = 256, vocabulary: int = 8192, precision: str = 'float32'):
        super().__init__()
        here = precision_here(precision)
        self.dtype = {'float16': torch.float16, 'bfloat16': torch.bfloat16}.get(here, torch.float32)
        self.tf32 = here != 'float32'
        layers, inputs = [nn.Conv2d(3, width, 7, padding=3)], width
        for group in range(4):
            outputs = width * 2**group
            layers += [_TokenizerBlock(inputs, outputs), _TokenizerBlock(outputs, outputs)]
            if group < 3:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.ReLU()).to(self.dtype)
        self.output = nn.Conv2d(inputs, vocabulary, 1)

    def forward(self, images):
        x = self.layers((0.8 * images + 0.1).to(self.dtype))
        return self.output(x.float()).argmax(1).flatten(1)


class PeerTokenizer:
    """The tokenizer on random pictures, ready, in the precision of the config's."""

    def __init__(self, config: Config, compiled: bool, vocabulary: int = 8192):
        device, precision = _set_up(), config.tokenizer.precision
        tokenizer = Tokenizer(vocabulary=vocabulary, precision=precision).eval().to(device)
        # convolutions are faster with channels last
        tokenizer = tokenizer.to(memory_format=torch.channels_last)
        self._tf32, self._encode = tokenizer.tf32, tokenizer
        if compiled:
            self._encode = torch.compile(tokenizer)
        rows, columns = config.grid
        self._images = torch.rand(config.batch_size, 3, 8 * rows, 8 * columns, device=device)
        self._images = self._images.to(memory_format=torch.channels_last)

    def encode(self) -> torch.Tensor:
        """int64 [B, P]"""
        torch.backends.cudnn.allow_tf32 = self._tf32
        with torch.no_grad():
            tokens = self._encode(self._images)
        torch.backends.cudnn.allow_tf32 = True
        return tokens

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self._images.device.type == 'cuda':
            torch.cuda.synchronize()


def _set_up() -> torch.device:
    """Where PyTorch computes, as fast as the official code or JAX would have it."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # run_beit_pretraining.py
    torch.backends.cuda.matmul.allow_tf32 = True  # JAX's default for float32
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


class Peer:
    """One variant, ready to take steps on random pictures. `compile_seconds`: of the first step, of
    everything that it compiles."""

    def __init__(self, config: Config, variant: str, vocabulary: int = 8192):
        fused, compiled = VARIANTS[variant]
        self._config, self._device = config, _set_up()
        device = self._device
        self._model = MaskedImageModel(config, vocabulary, fused).to(device)
        self._tokenizer = PeerTokenizer(config, compiled, vocabulary)
        matrices = [weights for weights in self._model.parameters() if weights.ndim > 1]
        others = [weights for weights in self._model.parameters() if weights.ndim <= 1]
        settings = config.optimizer
        self._optimizer = torch.optim.AdamW(
            [
                {'params': matrices, 'weight_decay': settings.weight_decay},
                {'params': others, 'weight_decay': 0.0},
            ],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=device.type == 'cuda',
        )
        B, (rows, columns), side = config.batch_size, config.grid, config.data.image_size
        P, K = rows * columns, config.mask.patches
        self._images = torch.rand(B, 3, side, side, device=device)
        self._slots = torch.rand(B, P, device=device).argsort(1)[:, :K]
        self._mask = torch.zeros(B, P, dtype=torch.bool, device=device)
        self._mask.scatter_(1, self._slots, True)
        self._tokens = torch.randint(vocabulary, (B, P), device=device)
        self._forward = torch.compile(self._model) if compiled else self._model
        began = time.perf_counter()
        self.step(), self.step_on_given_tokens()
        self.wait()
        self.compile_seconds = time.perf_counter() - began

    def step(self):
        """The whole step: tokens, loss, gradients, update."""
        return self._learn(self._tokenizer.encode())

    def step_on_given_tokens(self):
        return self._learn(self._tokens)

    def _learn(self, tokens):
        with self._autocast():
            logits = self._forward(self._images, self._mask, self._slots)
        hidden_BK = tokens.gather(1, self._slots)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), hidden_BK.flatten())
        self._optimizer.zero_grad()
        loss.backward()
        clip_norm = self._config.optimizer.clip_norm or math.inf
        nn.utils.clip_grad_norm_(self._model.parameters(), clip_norm)
        self._optimizer.step()
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self._device.type, torch.bfloat16, self._config.compute_dtype == 'bfloat16'
        )

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        self._tokenizer.wait()

    def peak_memory(self) -> int:
        """Bytes on the GPU; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == 'cuda' else 0
