"""Search an architecture: every cell mixes candidate operations by a softmax of tuned logits (as DARTS does)."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import hypergrad as hg

NAMES = ("nothing", "blur", "conv 1", "conv 3", "conv 5")


class Network(nn.Module):
    """Three cells; each adds up its five operations times their shares."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        sizes = (1, 3, 5) * 3
        self.convolutions = nn.ModuleList(nn.Conv2d(8, 8, size, padding=size // 2) for size in sizes)
        self.blur = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, images: Tensor, shares: Tensor) -> Tensor:
        """Return class scores for shares of shape (3, 5)."""
        hidden = self.stem(images).relu()
        for cell in range(3):
            convolved = [convolution(hidden) for convolution in self.convolutions[3 * cell : 3 * cell + 3]]
            found = torch.stack([hidden, self.blur(hidden), *convolved])
            hidden = torch.einsum("o,onchw->nchw", shares[cell], found).relu()
        scores: Tensor = self.head(hidden.amax((2, 3)))
        return scores


def main(steps: int = 120) -> float:
    """Search with one half of the images, train what was found, and return its test accuracy."""
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None], torch.tensor(digits.target)
    train, valid, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split([200, 200, 1397])

    def fit(logits: Tensor, *, search: bool) -> float:
        """Train the network, tune the logits meanwhile if asked, and return the test accuracy."""
        torch.manual_seed(0)
        model = Network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        logits.requires_grad_()
        outer_optimizer = torch.optim.Adam([logits], lr=0.05)

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(model(x[rows], logits.softmax(1)), y[rows])

        algorithm = hg.Implicit(hg.Identity(0.1), stationarity=float("inf"))  # one step of training ahead
        hyper = hg.Live(model, [logits], loss, loss, algorithm)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(train).backward()
            optimizer.step()
            if search:
                outer_optimizer.zero_grad()
                hyper.backward(train, valid)
                outer_optimizer.step()
        with torch.no_grad():
            return float((model(x[test], logits.softmax(1)).argmax(1) == y[test]).double().mean())

    logits = torch.zeros(3, 5)
    fit(logits, search=True)
    chosen = logits.detach().argmax(1)
    draw = torch.Generator().manual_seed(1)
    others = [torch.randint(5, (3,), generator=draw) for _ in range(min(4, steps))]
    random = [fit(100.0 * one_hot(choice, 5), search=False) for choice in others]
    reached = fit(100.0 * one_hot(chosen, 5), search=False)
    print(f"found: {', '.join(NAMES[place] for place in chosen.tolist())}; test accuracy {reached:.3f}")
    print(f"{len(random)} random architectures: mean {sum(random) / len(random):.3f}, best {max(random):.3f}")
    return reached


if __name__ == "__main__":
    main()
