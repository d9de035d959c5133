"""Mix four kinds of text so that a small language model becomes good at one of them."""

from __future__ import annotations

from pathlib import Path

import sklearn
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg

DOMAINS = ("prose", "code", "numbers", "noise")
CONTEXT, LETTERS = 8, 96


def texts() -> dict[str, Tensor]:
    """Return what scikit-learn's installation holds of each kind, as tensors of letters from 0 to 95."""
    folder = Path(sklearn.__file__).parent / "datasets"
    found = {
        "prose": "".join(path.read_text("utf-8") for path in sorted((folder / "descr").glob("*.rst"))),
        "code": "".join(path.read_text("utf-8") for path in sorted(folder.glob("_*.py"))),
        "numbers": (folder / "data" / "wine_data.csv").read_text("utf-8"),
    }
    codes = {name: torch.tensor([*text.encode()]).sub(31).clamp(0, 95) for name, text in found.items()}
    return codes | {"noise": torch.randint(LETTERS, (20_000,), generator=torch.Generator().manual_seed(1))}


def windows(text: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return random contexts and the letter that follows each."""
    pieces = text.unfold(0, CONTEXT + 1, 1)[torch.randint(len(text) - CONTEXT, (count,))]
    return pieces[:, :-1], pieces[:, -1]


def main(steps: int = 500) -> float:
    """Tune the shares of the domains in training, and return the model's loss on unseen prose."""
    domains = texts()
    train_part, valid_part, test_part = domains["prose"].split([12_000, 8_000, len(domains["prose"]) - 20_000])
    domains["prose"] = train_part  # little of it, and more of what may or may not help

    def fit(shares: Tensor | None) -> tuple[float, Tensor]:
        """Train with fixed or with tuned shares; return the test loss and the shares."""
        torch.manual_seed(0)
        layers = nn.Embedding(LETTERS, 16), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, LETTERS)
        model = nn.Sequential(*layers)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        logits = torch.zeros(4, requires_grad=True)
        outer_optimizer = torch.optim.Adam([logits], lr=0.03)

        def train_loss(batch: list[tuple[Tensor, Tensor]]) -> Tensor:
            losses = torch.stack([cross_entropy(model(contexts), letters) for contexts, letters in batch])
            return (logits.softmax(0) if shares is None else shares) @ losses

        def valid_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            return cross_entropy(model(batch[0]), batch[1])

        algorithm = hg.Implicit(hg.Identity(0.1), stationarity=float("inf"))
        hyper = hg.Live(model, [logits], train_loss, valid_loss, algorithm)
        for _ in range(steps):
            batch = [windows(domains[name], 64) for name in DOMAINS]
            optimizer.zero_grad()
            train_loss(batch).backward()
            optimizer.step()
            if shares is None:
                outer_optimizer.zero_grad()
                hyper.backward(batch, windows(valid_part, 256))
                outer_optimizer.step()
        with torch.no_grad():
            pieces = test_part.unfold(0, CONTEXT + 1, 1)
            return float(valid_loss((pieces[:, :-1], pieces[:, -1]))), logits.detach().softmax(0)

    (equal, _), (alone, _), (reached, shares) = fit(torch.ones(4) / 4), fit(torch.eye(4)[0]), fit(None)
    print(f"nats a letter on unseen prose: equal shares {equal:.3f}, prose alone {alone:.3f}, tuned {reached:.3f}")
    print("tuned shares:", ", ".join(f"{name} {share:.2f}" for name, share in zip(DOMAINS, shares, strict=True)))
    return reached


if __name__ == "__main__":
    main()
