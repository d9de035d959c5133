"""THE TABLE of networks: small models of every kind that people train, with what second derivatives stumble over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint


class Transformer(nn.Module):
    """One block of self-attention without weights, which takes the fused kernel, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unflatten(1, (3, 2)))
        mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        out: Tensor = self.head(self.norm(tokens + mixed).mean(1))
        return out


class CausalTransformer(nn.Module):
    """The same by hand, with torch's scaled dot-product attention under a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project = nn.Linear(2, 4), nn.Linear(4, 12)
        self.norm, self.head, self.dropout = nn.LayerNorm(4), nn.Linear(4, 3), 0.1

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unflatten(1, (3, 2)))
        q, k, v = self.project(tokens).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True
        )
        out: Tensor = self.head(self.norm(tokens + mixed.transpose(1, 2).flatten(2)).mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.cells = kind(2, 3, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cells(x.unflatten(1, (3, 2)))[0][:, -1])
        return out


class TiedEmbedding(nn.Module):
    """A language model in small: the embedding is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.output = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
        self.output.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.output(torch.tanh(self.body(self.embed(tokens).mean(1))))
        return out


class Bag(nn.Module):
    """A mean of embeddings in one kernel, which torch cannot differentiate twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.bag(tokens)))
        return out


class Adapted(nn.Module):
    """A frozen layer with a trained correction of low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(6, 6).requires_grad_(requires_grad=False), nn.Linear(6, 3)
        self.head.requires_grad_(requires_grad=False)
        self.down, self.up = nn.Parameter(torch.randn(2, 6) / 2), nn.Parameter(torch.randn(6, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.base(x) + x @ self.down.mT @ self.up.mT))
        return out


class Buffered(nn.Module):
    """Buffers of its own that forward writes to, in place and by assignment, and that the output depends on."""

    count: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("centre", torch.full((4,), 0.1))
        self.register_buffer("scale", torch.ones(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if self.training:
            self.count += 1
            with torch.no_grad():
                self.centre.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
            self.scale = 0.9 * self.scale + 0.1 * hidden.detach().std(0)
        hidden = (hidden - self.centre.clone()) / self.scale
        out: Tensor = self.head(torch.tanh(hidden)) * (1 + 0.1 * self.count)
        return out


class Positive(nn.Module):
    """A parametrization of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x)

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.abs().expm1().log()


class Checkpointed(nn.Module):
    """Runs its body, with dropout and batch statistics, a second time in an ordinary backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2))
        self.first, self.head, self.reentrant = nn.Linear(6, 6), nn.Linear(5, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = checkpoint(self.body, self.first(x), use_reentrant=self.reentrant)
        out: Tensor = self.head(hidden)
        return out


class Unchanged(nn.Module):
    """The first layer is frozen, the middle one sees its features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)
        self.first.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


def mlp(first: nn.Module) -> nn.Module:
    """Return a perceptron with a given layer from 6 to 5 features."""
    return nn.Sequential(first, nn.Tanh(), nn.Linear(5, 3))


def conv() -> nn.Sequential:
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3))


def positive() -> nn.Module:
    linear = nn.Linear(6, 5)
    parametrize.register_parametrization(linear, "weight", Positive())
    return mlp(linear)


@dataclass(frozen=True)
class Network:
    """A row.

    Attributes:
        make: builds the module, in train mode.
        shape: of one example; whole numbers below ``tokens`` if that is above 0.
        tokens: size of the vocabulary.
        classes: of the output.
        layout: memory format of the module and of its input.
        judged_in_eval: whether the outer loss switches to eval mode and back, as most validation code does.
        refusal: what every method of second order answers, if it cannot serve this network.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (6,)
    tokens: int = 0
    classes: int = 3
    layout: torch.memory_format = torch.contiguous_format
    judged_in_eval: bool = False
    refusal: str = ""


NETWORKS: dict[str, Network] = {
    "mlp-dropout": Network(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 3))),
    "conv-batch-norm": Network(conv, shape=(2, 4, 4)),
    "conv-judged-in-eval": Network(conv, shape=(2, 4, 4), judged_in_eval=True),
    "channels-last": Network(conv, shape=(2, 4, 4), layout=torch.channels_last),
    "multi-head-attention": Network(Transformer),
    "scaled-dot-product-attention": Network(CausalTransformer),
    "gru": Network(lambda: Recurrent(nn.GRU)),
    "lstm": Network(lambda: Recurrent(nn.LSTM)),
    "tied-embedding": Network(TiedEmbedding, shape=(3,), tokens=5, classes=5),
    "embedding-bag": Network(Bag, shape=(3,), tokens=5, refusal="no second derivative"),
    "frozen-layers": Network(Unchanged),
    "low-rank-adapters": Network(Adapted),
    "own-buffers": Network(Buffered),
    "weight-norm": Network(lambda: mlp(parametrizations.weight_norm(nn.Linear(6, 5)))),
    "spectral-norm": Network(lambda: mlp(parametrizations.spectral_norm(nn.Linear(6, 5)))),
    "orthogonal": Network(lambda: mlp(parametrizations.orthogonal(nn.Linear(6, 5)))),
    "own-parametrization": Network(positive),
    "checkpoint": Network(lambda: Checkpointed(reentrant=False)),
    "reentrant-checkpoint": Network(lambda: Checkpointed(reentrant=True)),
}
