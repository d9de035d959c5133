"""``hypergrad clean``: find the examples whose labels are wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np

from hypergrad.cleaning.reading import Reading
from hypergrad.cleaning.reading.labels import safe_cell
from hypergrad.cleaning.settings import Settings
from hypergrad.cleaning.trusted import Parts
from hypergrad.commands.fields import flag, positional
from hypergrad.commands.status import SUCCESS
from hypergrad.errors import HypergradWarning, MissingDependencyError
from hypergrad.files import write_whole

T = TypeVar("T")
RESULT, KEPT, REPORT, FILES = "result.json", "cleaned_indices.npy", "report.html", "files.csv"


@final
@dataclass(frozen=True, kw_only=True)
class Clean(Settings, Reading):
    """Find the examples whose labels are wrong, by tuning one weight for each on a trusted part.

    The input is a CSV or Parquet table, an .npz archive with the arrays X and y, a folder with one folder of images for
    each class, or a data set that Hugging Face's datasets saved to disk. It is not changed. The results are written to
    a folder of their own: weights, suspicious.csv, cleaned_indices.npy, result.json and report.html. An interrupted run
    goes on with hypergrad resume.

    Attributes:
        input: the file or folder.
        trusted: a file or folder with examples whose labels are right, in the form of the input; or a share, such as
            0.1, that is split off the input and is right by assumption only.
        test: a file or folder with right labels in the form of the input, for the accuracies only.
        out: folder for the results.
        overwrite: replace the results of an earlier run in that folder.
        quiet: show no progress.
        json: print the result as one JSON object.

    Example:
        $ hypergrad clean flowers.csv --label species --trusted 0.2 --out flowers
        $ hypergrad clean reviews.csv --label rating --text review --trusted checked.csv --out reviews
    """

    input: Path = positional(metavar="INPUT")
    trusted: float | Path | None = flag(None, metavar="SHARE|FILE")
    test: Path | None = None
    out: Path = Path("hypergrad-clean")
    overwrite: bool = False
    quiet: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        """Check the settings of reading and of the method."""
        Reading.__post_init__(self)
        Settings.__post_init__(self)

    def __call__(self) -> int:
        """Run it, and return the exit status."""
        return self._run(resume=False)

    def resume(self) -> int:
        """Go on with the run in ``out``, and return the exit status."""
        return self._run(resume=True)

    def _run(self, *, resume: bool) -> int:
        from hypergrad.cleaning import clean
        from hypergrad.cleaning.reading import is_folder_of_images
        from hypergrad.cleaning.reading.images import picture_files
        from hypergrad.cleaning.trusted import read_parts
        from hypergrad.report import write_report

        with warnings.catch_warnings():
            warnings.simplefilter("always", HypergradWarning)  # said, and never an error that stops the command
            warnings.showwarning = _warn
            parts = read_parts(
                self.input,
                self.trusted,
                self._part(Reading),
                test=self.test,
                seed=self.seed,
            )
            self._say(parts.train.notes)
            files = picture_files(self.input) if is_folder_of_images(self.input) else []
            clean(
                parts.train,
                parts.trusted,
                self._part(Settings),
                test=parts.test,
                out=self.out,
                overwrite=self.overwrite,
                resume=resume,
                callbacks=self._callbacks(),
            )
        result = self._completed(parts)
        if files:
            write_whole(self.out / FILES, lambda to: _list(to, files))
        try:
            write_report(self.out)
        except MissingDependencyError as error:  # hours of work are no reason to fail
            print(f"note: {REPORT} was not written; {error.do}, then hypergrad report {self.out}", file=sys.stderr)
        print(json.dumps(result, allow_nan=False) if self.json else self._summary(result))
        return SUCCESS

    def _part(self, kind: Callable[..., T]) -> T:
        """Return the fields that belong to one of the two classes of settings."""
        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: getattr(self, name) for name in names})

    def _say(self, notes: tuple[str, ...]) -> None:
        if not self.quiet:
            for note in notes:
                print(f"note: {note}", file=sys.stderr)

    def _callbacks(self) -> Callable[[int], list[Any]]:
        import hypergrad as hg
        from hypergrad.commands.saved import save_command
        from hypergrad.report import Record

        class Remember(hg.Callback):
            """Saves the command once its inputs are known to be right, and the folder is ready."""

            def start(self, run: hg.Run, steps: int) -> None:
                save_command(command, command.out)

        command, shown = self, not (self.quiet or self.json)

        def of_seed(seed: int) -> list[hg.Callback]:
            folder = command.out if seed == command.seed else command.out / f"seed-{seed}"
            record = Record(folder, kind="cleaning", title=f"Cleaning of {command.input.name}")
            return [Remember(), record, *([hg.ProgressBar()] if shown else [])]

        return of_seed

    def _completed(self, parts: Parts) -> dict[str, Any]:
        """Write down what only this command knows: the input, what its reader said, and that trusted rows are kept."""
        path, kept = self.out / RESULT, self.out / KEPT
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        notes = [note for note in result.get("notes") or [] if note not in parts.train.notes]
        result |= {"input": str(self.input), "notes": [*parts.train.notes, *notes]}
        if parts.split_off:
            rows = np.union1d(np.load(kept, allow_pickle=False), parts.trusted.index)
            write_whole(kept, lambda to: _save(to, rows))
            result["kept"] = len(rows)
        text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_whole(path, lambda to: to.write_text(text, encoding="utf-8"))
        return result

    def _summary(self, result: dict[str, Any]) -> str:
        page = REPORT if (self.out / REPORT).exists() else "suspicious.csv"
        lines = [f"{result['suspicious']:,} of {result['examples']:,} labels look wrong; open {self.out / page}"]
        skipped = result.get("skipped") or []
        if skipped:
            lines.append(f"{len(skipped):,} inputs were left out: see {self.out / RESULT}")
        return "\n".join(lines)


def _list(path: Path, files: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "file"])
        writer.writerows((index, safe_cell(name)) for index, name in enumerate(files))


def _save(path: Path, rows: np.ndarray[Any, Any]) -> None:
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
