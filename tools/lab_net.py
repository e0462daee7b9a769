"""The network of lab-tiny: the Llama architecture in plain PyTorch, small enough to read.

Its parameters carry the names Hugging Face's LlamaForCausalLM uses, so that the exporter of
ONNX Runtime GenAI takes them as they are. Written here because training wants two things of
its own: positions that jump (a window of a long count) and a loss on the answers only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ROPE_THETA = 1_000_000.0  # slow enough to compare a number with one 4,000 tokens away
NORM_EPSILON = 1e-5
LONG = 300  # tokens in a row


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    feed_forward: int = 576
    context: int = 4096

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


def rotary(positions: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary position embedding, each (batch, 1, length, head)."""
    frequencies = ROPE_THETA ** (-torch.arange(0, head, 2, dtype=torch.float32) / head)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of a query or key by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention, each tensor (batch, heads, length, head).

    Written out it is three times as fast as PyTorch's own on a CPU while the rows are short.
    """
    length = query.shape[2]
    if length > LONG:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    future = torch.full((length, length), -torch.inf).triu(1)  # 32 bits wide, and so the softmax
    weights = (scores + future).softmax(-1)
    return weights.to(value.dtype) @ value


class Attention(nn.Module):
    """Causal attention with several heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def look_for_the_same(self) -> None:
        """Let each head begin with attention to tokens like the one it stands at.

        Query and key are one projection, so that they agree where the inputs do: mimetic
        initialization, after Trockman and Kolter, https://arxiv.org/abs/2305.09828. Copying,
        and to stop a count at the number asked for, are then learnt in half the time.
        """
        for query, key in zip(
            self.q_proj.weight.split(self.shape.head),
            self.k_proj.weight.split(self.shape.head),
            strict=True,
        ):
            same = nn.init.orthogonal_(torch.empty_like(query))
            query.data += same
            key.data += same

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.shape.head).transpose(1, 2)

        query = rotate(split(self.q_proj(x)), cosine, sine).to(x.dtype)
        key = rotate(split(self.k_proj(x)), cosine, sine).to(x.dtype)
        value = split(self.v_proj(x)).to(x.dtype)
        mixed = attend(query, key, value)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU: a gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, NORM_EPSILON)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, NORM_EPSILON)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, NORM_EPSILON)


class LabNet(nn.Module):
    """Token numbers in, hidden states out; `logits` turns those into scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 / (2 * shape.layers) ** 0.5 if deep else 0.02
                nn.init.normal_(parameter, std=scale)
        for layer in self.model.layers:
            layer.self_attn.look_for_the_same()

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Hidden states (batch, length, hidden) for `tokens` at `positions` (batch, length)."""
        cosine, sine = rotary(positions, self.shape.head)
        x: Tensor = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cosine, sine)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token; the embedding serves as output matrix too."""
        return functional.linear(hidden, self.model.embed_tokens.weight)
