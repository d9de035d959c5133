"""Low-rank adapters on a frozen network, with a learned gate for every rank of every layer."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import hypergrad as hg

Tree = dict[str, Tensor]
RANK = 8


def main(steps: int = 60) -> float:
    """Adapt a network for digits to digits in mirror writing, and return the test accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    old, train, valid, test = torch.randperm(len(x)).split([800, 60, 300, len(x) - 1160])
    mirrored, x = x.flip(2).flatten(1), x.flatten(1)

    first, second = nn.Linear(64, 64), nn.Linear(64, 10)
    network = nn.Sequential(first, nn.ReLU(), second)
    pretraining = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(min(steps, 10) * 15):
        pretraining.zero_grad()
        cross_entropy(network(x[old]), y[old]).backward()
        pretraining.step()
    network.requires_grad_(requires_grad=False)

    adapters = {
        "first_down": torch.randn(64, RANK) / 8,
        "first_up": torch.zeros(RANK, 64),
        "second_down": torch.randn(64, RANK) / 8,
        "second_up": torch.zeros(RANK, 10),
    }

    def predict(params: Tree, hparams: Tree, rows: Tensor) -> Tensor:
        """Return class scores: frozen layers plus inputs · down · diag(gate) · up."""
        inputs, gates = mirrored[rows], hparams["log_gates"].exp()
        hidden = (first(inputs) + (inputs @ params["first_down"] * gates[0]) @ params["first_up"]).relu()
        scores: Tensor = second(hidden) + (hidden @ params["second_down"] * gates[1]) @ params["second_up"]
        return scores

    problem = hg.Problem(
        inner=lambda params, hparams: cross_entropy(predict(params, hparams, train), y[train]),
        outer=lambda params, hparams: cross_entropy(predict(params, hparams, valid), y[valid]),
        penalty=lambda params, _: 1e-3 * torch.stack([value.square().sum() for value in params.values()]).sum(),
    )
    algorithm = hg.Unrolled(steps=200, inner=hg.GradientDescent(lr=0.05, momentum=0.9))

    def on_test(log_gates: Tensor) -> tuple[float, float]:
        """Return loss and accuracy on the test images after training the adapters with these gates."""
        hparams = {"log_gates": log_gates}
        scores = predict(hg.solve(problem, adapters, hparams, algorithm), hparams, test)
        return float(cross_entropy(scores, y[test])), float((scores.argmax(1) == y[test]).double().mean())

    trainer = hg.Trainer(problem, algorithm, hg.outer.Torch(torch.optim.Adam, lr=0.05))
    tuned = trainer.fit(adapters, {"log_gates": torch.zeros(2, RANK)}, steps=steps).hparams["log_gates"]
    before, after = on_test(torch.zeros(2, RANK)), on_test(tuned)
    print(f"all gates 1:   test loss {before[0]:.3f}, accuracy {before[1]:.3f}")
    print(f"tuned gates:   test loss {after[0]:.3f}, accuracy {after[1]:.3f}")
    for layer, gates in zip(("first", "second"), tuned.exp(), strict=True):
        print(f"gates of the {layer} layer: {' '.join(f'{float(gate):.2f}' for gate in gates.sort().values)}")
    return after[1]


if __name__ == "__main__":
    main()
