"""The demo: does it find the wrong labels, and does it write what it promises?"""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hypergrad as hg
from hypergrad.demo import data, experiment, run
from hypergrad.errors import InputError, MissingDependencyError

FILES = {
    *("result.json", "history.jsonl", "weights.npz", "cleaning.png", "checkpoint.pt"),
    *("run.json", "hparams.jsonl", "previews.json", "report.html"),
}
KEYS = {"accuracy", "precision", "recall", "f1", "auc", "seconds", "seed", "versions", "model", "data"}
Images = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def mnist() -> Images:
    return data.load("mnist")


@pytest.fixture
def short(mnist: Images, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A run of few steps that does not parse MNIST again."""
    monkeypatch.setattr(experiment, "load", lambda *_: mnist)

    def start(out: Path, steps: int = 3, **options: Any) -> dict[str, Any]:
        return run(out=out, **{"steps": steps, "progress": False, "stream": io.StringIO(), **options})

    return start


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """The run that ``hypergrad demo`` makes."""
    out, stream = tmp_path_factory.mktemp("demo") / "new" / "folder", io.StringIO()
    return run(out=out, progress=False, stream=stream), out, stream.getvalue()


def test_default_run_reaches_its_targets(default: tuple[dict[str, Any], Path, str]) -> None:
    result, _, _ = default
    accuracy = result["accuracy"]
    recovered = (accuracy["cleaned"] - accuracy["noisy"]) / (accuracy["oracle"] - accuracy["noisy"])
    assert accuracy["oracle"] - accuracy["noisy"] > 0.05
    assert recovered >= 0.90
    assert result["f1"] >= 0.92
    assert result["auc"] >= 0.95


def test_default_run_writes_its_files(default: tuple[dict[str, Any], Path, str]) -> None:
    result, out, _ = default
    assert {path.name for path in out.iterdir()} == FILES
    assert json.loads((out / "result.json").read_text(encoding="utf-8")) == result
    assert set(result) == KEYS
    assert set(result["accuracy"]) == {"clean", "noisy", "cleaned", "oracle"}
    assert set(result["versions"]) == {"python", "torch", "numpy", "hypergrad"}
    numbers = [*result["accuracy"].values(), *(result[key] for key in ("precision", "recall", "f1", "auc", "seconds"))]
    assert {type(number) for number in numbers} == {float}
    assert (result["model"], result["data"], result["seed"]) == ("linear", "mnist", 0)
    history = hg.read_history(out / "history.jsonl")
    assert [line["step"] for line in history] == list(range(1, 41))
    assert history[-1]["outer_loss"] < history[0]["outer_loss"]
    assert hg.load_checkpoint(out)["step_number"] == 40


def test_weights_file_gives_the_scores(default: tuple[dict[str, Any], Path, str], mnist: Images) -> None:
    result, out, _ = default
    arrays = np.load(out / "weights.npz")
    assert set(arrays) == {"index", "given_label", "weight", "corrupted"}
    assert {array.shape for array in arrays.values()} == {(2000,)}
    assert len(set(arrays["index"].tolist())) == 2000
    assert ((arrays["weight"] > 0) & (arrays["weight"] < 1)).all()
    wrong = mnist[1].numpy()[arrays["index"]] != arrays["given_label"]
    assert (wrong == arrays["corrupted"]).all()
    flagged = arrays["weight"] < 0.5
    assert (flagged & wrong).sum() / flagged.sum() == pytest.approx(result["precision"])
    assert (flagged & wrong).sum() / wrong.sum() == pytest.approx(result["recall"])
    assert 2 / (1 / result["precision"] + 1 / result["recall"]) == pytest.approx(result["f1"])
    below = arrays["weight"][wrong][:, None] < arrays["weight"][~wrong]
    ties = arrays["weight"][wrong][:, None] == arrays["weight"][~wrong]
    assert below.mean() + ties.mean() / 2 == pytest.approx(result["auc"])


def test_four_trainings_are_what_they_are_called(default: tuple[dict[str, Any], Path, str], mnist: Images) -> None:
    result, out, _ = default
    parts, weights = data.split(*mnist, seed=0), torch.from_numpy(np.load(out / "weights.npz")["weight"])
    images, given = parts.train.images, parts.train.labels
    kept = ~parts.corrupted
    for name, examples, chosen in (
        ("clean", data.Examples(images, parts.true_labels), torch.ones(2000)),
        ("noisy", data.Examples(images, given), torch.ones(2000)),
        ("cleaned", data.Examples(images, given), weights),
        ("oracle", data.Examples(images[kept], given[kept]), torch.ones(1000)),
    ):
        scores = experiment.class_scores(experiment.train("linear", examples, chosen, seed=0), parts.test.images)
        accuracy = float((scores.argmax(dim=1) == parts.test.labels).double().mean())
        assert accuracy == pytest.approx(result["accuracy"][name], abs=0.0025), name


def test_table_says_everything(default: tuple[dict[str, Any], Path, str]) -> None:
    result, _, text = default
    shown = [f"{value:.1%}" for value in result["accuracy"].values()]
    shown += [f"{result[key]:.3f}" for key in ("precision", "recall", "f1", "auc")]
    lines = text.splitlines()
    for name, number in zip(
        ("clean ", "noisy", "cleaned", "oracle", "precision", "recall", "F1", "ROC", "seconds"),
        [*shown, f"{result['seconds']:.1f}"],
        strict=True,
    ):
        assert [line for line in lines if name in line and line.endswith(number)], name
    assert "The test set was used once" in text
    assert max(map(len, lines)) <= 88


def test_report_shows_what_was_found(default: tuple[dict[str, Any], Path, str]) -> None:
    result, out, _ = default
    page = (out / "report.html").read_text(encoding="utf-8")
    shown = hg.report.summary(out)
    assert [number["value"] for number in shown["numbers"]] == [
        f"{int((np.load(out / 'weights.npz')['weight'] < 0.5).sum()):,}",
        f"{100 * result['accuracy']['cleaned']:.1f} %",
        f"{result['f1']:.3f}".rstrip("0"),
    ]
    assert page.count('<img src="data:image/png;base64,') == 60
    assert shown["status"] == "finished after 40 of 40 steps"
    assert "Neumann" in page


def test_the_demo_needs_no_jinja2(
    short: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypergrad.report import page

    page._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    short(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"report.html"}


def test_picture_shows_something(default: tuple[dict[str, Any], Path, str]) -> None:
    from matplotlib.image import imread

    _, out, _ = default
    picture = imread(out / "cleaning.png")
    assert picture.shape[:2] == (888, 1680)
    orange = np.abs(picture[..., :3] - np.array([0xD5, 0x5E, 0x00]) / 255).max(axis=-1) < 0.02
    assert orange[:, 840:].sum() > 5000, "frames of 24 suspicious images, most of them corrupted"
    dark = picture[..., :3].max(axis=-1) < 0.2
    assert dark[:, :840].sum() > 1000
    assert dark[:, 840:].sum() > 20_000


def test_two_runs_agree(short: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    first, second = (short(tmp_path / name, seed=7) for name in "ab")
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    weights = [np.load(tmp_path / name / "weights.npz")["weight"] for name in "ab"]
    assert (weights[0] == weights[1]).all()


def test_a_second_run_replaces_the_first(short: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    short(tmp_path, steps=3)
    result = short(tmp_path, steps=2, seed=1)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"notes.txt"}
    assert len((tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == result


def test_tuning_sees_neither_test_data_nor_the_truth(
    short: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misled(images: Tensor, labels: Tensor, seed: int) -> data.NoisySplit:
        parts = data.split(images, labels, seed)
        shuffled = torch.randperm(len(parts.test.labels), generator=torch.Generator().manual_seed(0))
        return dataclasses.replace(
            parts,
            test=data.Examples(torch.zeros_like(parts.test.images), parts.test.labels[shuffled]),
            true_labels=parts.true_labels.flip(0),
            corrupted=parts.corrupted.flip(0),
        )

    honest = short(tmp_path / "honest")
    monkeypatch.setattr(experiment, "split", misled)
    other = short(tmp_path / "misled")
    assert other["accuracy"]["cleaned"] < 0.3 < honest["accuracy"]["cleaned"]
    assert other["f1"] < honest["f1"]
    first, second = (np.load(tmp_path / name / "weights.npz")["weight"] for name in ("honest", "misled"))
    assert (first == second).all()


def test_mlp_cleans(short: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = short(tmp_path, model="mlp", steps=10)
    assert result["model"] == "mlp"
    assert result["f1"] > 0.85
    assert result["accuracy"]["cleaned"] > result["accuracy"]["noisy"] + 0.05
    assert result["accuracy"]["clean"] > 0.85


@pytest.mark.data
def test_fashion_cleans(tmp_path: Path) -> None:
    if not (data.FASHION_FOLDER / data.FASHION_FILES[0]).exists() and not os.environ.get("HYPERGRAD_DATA"):
        reason = "Fashion-MNIST is not installed: apt-get install dataset-fashion-mnist"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    result = run(data="fashion", steps=10, out=tmp_path, progress=False, stream=io.StringIO())
    assert result["data"] == "fashion"
    assert result["f1"] > 0.85
    assert result["accuracy"]["cleaned"] > result["accuracy"]["noisy"] + 0.01
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_interrupt_leaves_history_and_checkpoint(
    short: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ControlC(hg.Callback):
        def step(self, run: hg.Run, progress: hg.Progress) -> None:
            if progress.step == 2:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(hg, "ProgressBar", ControlC)
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path, progress=True)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"history.jsonl", "checkpoint.pt", "run.json", "hparams.jsonl"}
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["stopped"] == "interrupted"
    lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert lines[-1].endswith("\n")
    assert hg.load_checkpoint(tmp_path)["step_number"] == 2


def test_progress_goes_to_standard_error(
    short: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short(tmp_path, steps=1, progress=True, stream=None)
    printed = capsys.readouterr()
    assert "step 1/1" in printed.err
    assert printed.out.count("test accuracy") == 4
    assert "step 1/1" not in printed.out


def test_split_is_disjoint_and_half_corrupted(mnist: Images) -> None:
    images, labels = mnist
    parts = data.split(images, labels, seed=3)
    assert [len(rows) for rows in parts.index] == [2000, 1000, 2000]
    assert len(set(torch.cat(parts.index).tolist())) == 5000
    assert int(parts.corrupted.sum()) == 1000
    assert torch.equal(parts.train.labels != parts.true_labels, parts.corrupted)
    for part, rows, right in zip(
        (parts.train, parts.validation, parts.test),
        parts.index,
        (parts.true_labels, parts.validation.labels, parts.test.labels),
        strict=True,
    ):
        assert torch.equal(right, labels[rows])
        assert torch.allclose(part.images + parts.mean, images[rows] / 255, atol=1e-6)
    assert torch.allclose(parts.train.images.mean(dim=0), torch.zeros(784), atol=1e-5)


def test_wrong_labels_are_evenly_spread(mnist: Images) -> None:
    parts = data.split(*mnist, seed=3)
    shift = (parts.train.labels - parts.true_labels)[parts.corrupted] % 10
    counts = torch.bincount(shift, minlength=10)
    assert counts[0] == 0
    assert counts[1:].min() > 70  # 111 expected


def test_seed_decides_the_split(mnist: Images) -> None:
    first, again, other = (data.split(*mnist, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.index[0], again.index[0])
    assert torch.equal(first.train.labels, again.train.labels)
    assert not torch.equal(first.index[0], other.index[0])
    assert not torch.equal(first.corrupted, other.corrupted)


def test_detection_by_hand() -> None:
    weights = torch.tensor([0.1, 0.2, 0.5, 0.9])
    corrupted = torch.tensor([True, False, True, False])
    found = experiment.detection(weights, corrupted)
    assert found == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "auc": 0.75}


def test_detection_of_nothing() -> None:
    found = experiment.detection(torch.full((4,), 0.6), torch.tensor([True, False, True, False]))
    assert found == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "auc": 0.5}


def test_weight_zero_is_leaving_out(mnist: Images) -> None:
    examples = data.split(*mnist, seed=0).train
    few = data.Examples(examples.images[:200], examples.labels[:200])
    weights = torch.zeros(2000)
    weights[:200] = 3.0
    weighted = experiment.train("linear", examples, weights, seed=0)
    subset = experiment.train("linear", few, torch.ones(200), seed=0)
    first, second = (experiment.class_scores(params, examples.images) for params in (weighted, subset))
    assert float((first - second).abs().max()) < 0.02 * float(second.abs().max())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "linaer"}, "did you mean 'linear'"),
        ({"data": "fasion"}, "did you mean 'fashion'"),
        ({"steps": 0}, "steps=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_out_that_is_a_file_is_refused(short: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="which is a file"):
        short(tmp_path / "file")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("module", "package"),
    [("mlxtend.data", "mlxtend"), ("matplotlib.figure", "matplotlib"), ("sklearn.metrics", "scikit-learn")],
)
def test_missing_package_is_named(module: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=package) as caught:
        run(out=tmp_path / "new")
    assert caught.value.do == 'pip install "hypergrad-engine[demo]"'
    assert not (tmp_path / "new").exists()


def test_importing_the_demo_needs_no_optional_package() -> None:
    code = "import sys, hypergrad.demo; print({'matplotlib', 'mlxtend', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def idx(array: Any) -> bytes:
    """An idx file of an array of bytes."""
    array = np.asarray(array, dtype=np.uint8)
    header = bytes([0, 0, 0x08, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + bytes(array.tobytes())


def write_fashion(folder: Path, images: Any, labels: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in zip(data.FASHION_FILES, (images, labels), strict=True):
        (folder / name).write_bytes(gzip.compress(idx(array), compresslevel=1))
    return folder


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A folder with files in the form of Fashion-MNIST's, and what they hold."""
    labels = np.arange(5000, dtype=np.uint8) % 10
    images = np.zeros((5000, 28, 28), dtype=np.uint8)
    images[np.arange(5000), labels, :] = 200
    return write_fashion(tmp_path_factory.mktemp("fake"), images, labels), images, labels


def test_fashion_is_read_from_root(fake: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, images, labels = fake
    monkeypatch.setenv("HYPERGRAD_DATA", "/nowhere")
    found = data.load("fashion", folder)
    assert (found[0].numpy() == images.reshape(5000, 784)).all()
    assert (found[1].numpy() == labels).all()


def test_fashion_is_read_from_the_environment(fake: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, labels = fake
    monkeypatch.setenv("HYPERGRAD_DATA", str(folder))
    monkeypatch.setattr(data, "FASHION_FOLDER", Path("/nowhere"))
    assert (data.load("fashion")[1].numpy() == labels).all()


def test_fashion_is_read_from_debians_folder(fake: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, labels = fake
    monkeypatch.delenv("HYPERGRAD_DATA", raising=False)
    monkeypatch.setattr(data, "FASHION_FOLDER", folder)
    assert (data.load("fashion")[1].numpy() == labels).all()


@pytest.mark.parametrize("where", ["root", "environment", "debian"])
def test_missing_data_names_the_package(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_FOLDER", tmp_path / "debian")
    monkeypatch.delenv("HYPERGRAD_DATA", raising=False)
    if where == "environment":
        monkeypatch.setenv("HYPERGRAD_DATA", str(tmp_path / where))
    with pytest.raises(MissingDependencyError, match="apt-get install dataset-fashion-mnist") as caught:
        run(data="fashion", out=tmp_path / "new", root=tmp_path / where if where == "root" else None)
    assert str(tmp_path / where) in caught.value.passed
    assert not (tmp_path / "new").exists()


GOOD = idx(np.arange(6).reshape(2, 3))
BROKEN = {
    "empty": (b"", "cannot be read|none"),
    "no gzip": (b"not a gzip file", "BadGzipFile"),
    "cut gzip": (gzip.compress(GOOD)[:-12], "cannot be read"),
    "flipped bits": (gzip.compress(GOOD)[:12] + b"\xff\xff\xff" + gzip.compress(GOOD)[15:], "cannot be read"),
    "nothing inside": (gzip.compress(b""), "none"),
    "magic": (gzip.compress(b"\x01" + GOOD[1:]), "01 00 08 02"),
    "floats": (gzip.compress(GOOD[:2] + b"\x0d" + GOOD[3:]), "00 00 0d 02"),
    "no dimensions": (gzip.compress(b"\0\0\x08\0" + b"x"), "00 00 08 00"),
    "cut header": (gzip.compress(GOOD[:9]), "ends inside its header"),
    "too short": (gzip.compress(GOOD[:-1]), "holds only 5"),
    "too long": (gzip.compress(GOOD + b"x"), "holds more"),
    "huge": (gzip.compress(b"\0\0\x08\x02" + b"\xff" * 8), "4294967295"),
    "no entries": (gzip.compress(b"\0\0\x08\x01" + b"\0" * 4), r"says \(0,\)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_idx_file_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        data.read_idx(path)
    assert str(path) in caught.value.passed
    assert "reinstall" in caught.value.do


def test_good_idx_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(GOOD))
    assert data.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("images", "labels", "file"),
    [
        (np.zeros((5000, 28, 27)), np.zeros(5000), 0),
        (np.zeros((4999, 28, 28)), np.zeros(4999), 0),
        (np.zeros((5000, 784)), np.zeros(5000), 0),
        (np.zeros((5000, 28, 28)), np.zeros(4999), 1),
        (np.zeros((5000, 28, 28)), np.full(5000, 10), 1),
    ],
    ids=["27 columns", "too few", "flat images", "other count", "label 10"],
)
def test_files_of_another_data_set_are_refused(images: Any, labels: Any, file: int, tmp_path: Path) -> None:
    folder = write_fashion(tmp_path / "other", images, labels)
    with pytest.raises(InputError, match=data.FASHION_FILES[file]):
        run(data="fashion", out=tmp_path / "new", root=folder)
