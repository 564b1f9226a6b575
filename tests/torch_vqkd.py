"""VQ-KD of BEiT v2 in PyTorch, after ../shared/facts/beit2.md, with the official names."""

import torch
from torch import nn
from torch.nn import functional

from tests.torch_models import randomize


class Attention(nn.Module):
    """Queries and values have biases, keys none."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in functional.linear(x, self.qkv.weight, bias).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, side, patch_size, channels, width, depth, heads, hidden):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (side // patch_size) ** 2, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, width, patch_size, patch_size)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        """[B, channels, S, S] -> what the patches are after the norm, [B, P, width]."""
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:])


def task_layer(width, outputs):
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


class VQKD(nn.Module):
    def __init__(
        self, *, side, patch_size, width, depth, decoder_depth, heads, hidden, vocabulary,
        code_width, features,
    ):  # fmt: skip
        super().__init__()
        sizes = {'width': width, 'heads': heads, 'hidden': hidden}
        self.encoder = ViT(side, patch_size, 3, depth=depth, **sizes)
        self.decoder = ViT(side // patch_size, 1, code_width, depth=decoder_depth, **sizes)
        self.encode_task_layer = task_layer(width, code_width)
        self.decode_task_layer = task_layer(width, features)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Module()
        rows = functional.normalize(torch.randn(vocabulary, code_width), dim=-1)
        self.quantize.embedding.weight = nn.Parameter(rows, requires_grad=False)

    def vectors(self, images):
        """Pixels in [0, 1], [B, 3, S, S] -> [B, P, C]."""
        return functional.normalize(self.encode_task_layer(self.encoder(2 * images - 1)), dim=-1)

    def ids(self, vectors):
        return torch.cdist(vectors, self.quantize.embedding.weight[None]).argmin(-1)

    def decode(self, codes):
        """[B, P, C] -> [B, P, F]."""
        side = round(codes.shape[1] ** 0.5)
        maps = codes.transpose(1, 2).unflatten(2, (side, side))
        return self.decode_task_layer(self.decoder(maps))


def make(seed=0, **sizes):
    """With random weights, rows of the codebook of length 1."""
    model = randomize(VQKD(**sizes), seed)
    with torch.no_grad():
        # vectors that go apart
        model.encode_task_layer[2].weight.mul_(3)
        rows = model.quantize.embedding.weight
        rows.copy_(functional.normalize(rows, dim=-1))
    return model


def official_file(model):
    """What a released file holds, the teacher and the statistics of training among it."""
    vocabulary, width = model.quantize.embedding.weight.shape
    return {
        'model': model.state_dict()
        | {
            'quantize.cluster_size': torch.ones(vocabulary),
            'quantize.embedding.cluster_size': torch.ones(vocabulary),
            'quantize.embedding.embed_avg': torch.ones(vocabulary, width),
            'quantize.embedding.initted': torch.ones(1),
            'teacher_model.visual.proj': torch.ones(7, 5),
            'teacher_model.visual.class_embedding': torch.ones(7),
            'scaling_layer.shift': torch.ones(1, 3, 1, 1),
        }
    }
