"""Encoders for X-ARES keep its contract, and its program fails aloud; X-ARES itself where it is installed."""

import importlib
import io
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers import FAMILIES, catalogue, tiny
from hear_transformers.audio.reading import read
from hear_transformers.errors import AudioError, OptionError
from hear_transformers.xares import FrameEmbedder, module_of, run
from tests.networks.test_contract import SMALL


class EighthBlockEncoder(FrameEmbedder, model="tiny", layer=8, hop_ms=100):
    pass


@pytest.fixture(scope="module")
def encoder() -> FrameEmbedder:
    return importlib.import_module("hear_transformers.xares.tiny").TinyEncoder()


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5


# What X-ARES looks for: attr_from_py_path, audio_encoder_checker


def encoders_in(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if name.endswith("Encoder")]


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_of_families_and_variants_hold_one_encoder_each(family) -> None:
    modules = [module_of(family), *(module_of(f"{family}/{variant}") for variant in catalogue.sizes()[family])]
    names = [encoders_in(module) for module in modules]
    assert all(len(each) == 1 for each in names)
    assert len({each[0] for each in names}) == len(modules) == len(set(modules))  # X-ARES' folders


def test_the_package_itself_holds_none() -> None:
    assert not encoders_in("hear_transformers.xares")


def test_modules_are_found_by_a_new_process() -> None:
    program = "from hear_transformers.xares.panns.cnn10 import PannsCnn10Encoder as it; print(it.model)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "panns/cnn10"


def test_classes_are_pickled() -> None:
    kind = importlib.import_module("hear_transformers.xares.passt").PasstEncoder
    assert pickle.loads(pickle.dumps(kind)) is kind


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_what_x_ares_checks(family) -> None:
    options = {"pretrained": False, "network": SMALL.get(family, {})}
    if family == "passt":
        options |= {"layer": "norm", "framing": "native", "pool": "mean"}
    kind = type("SmallEncoder", (FrameEmbedder,), {}, model=family, **options)
    encoder = kind()
    embeddings = encoder(noise(2, 50_000))
    assert embeddings.shape[::2] == (2, encoder.output_dim)
    seconds = 50_000 / encoder.sampling_rate
    assert embeddings.shape[1] == int(1000 * seconds / encoder.hop_size_in_ms) + 1


def test_a_class_of_ones_own_chooses_what_is_embedded() -> None:
    encoder = EighthBlockEncoder()
    own = tiny.load_model(layer=8, hop_ms=100)
    clip = noise(1, 32_000)
    assert encoder.hop_size_in_ms == 100
    torch.testing.assert_close(encoder(clip), own.embed_timestamps(clip)[0], atol=1e-5, rtol=0)


def test_unknown_models_and_options_are_named() -> None:
    with pytest.raises(OptionError, match="model='pasta' is unknown"):
        type("Encoder", (FrameEmbedder,), {}, model="pasta")()
    with pytest.raises(OptionError, match="option 'layers' is unknown to tiny"):
        type("Encoder", (FrameEmbedder,), {}, layers=8)()


# Batches


def padded(clips: list[torch.Tensor]) -> torch.Tensor:
    """Pad clips with zeros to the longest, as X-ARES does."""
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)


def test_a_clip_is_embedded_as_if_it_were_alone(encoder) -> None:
    clips = [noise(n_samples) for n_samples in (32_000, 77_777, 9_000, 1)]
    together = encoder(padded(clips))
    for clip, frames in zip(clips, together, strict=True):
        alone = encoder(clip)[0]
        # What blocks put out before the last normalisation is as large as 70.
        torch.testing.assert_close(frames[: len(alone)], alone, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(frames.mean(0), alone.mean(0), atol=1e-5, rtol=1e-6)


def test_silence_does_not_depend_on_others(encoder) -> None:
    together = encoder(padded([torch.zeros(8_000), noise(64_000)]))
    torch.testing.assert_close(together[0].mean(0), encoder(torch.zeros(8_000))[0].mean(0), atol=1e-5, rtol=0)


def test_frames_are_those_of_the_length_that_was_given(encoder) -> None:
    assert encoder(padded([torch.zeros(64_000), noise(8_000)])).shape[1] == 41


def test_a_single_clip_is_a_batch_of_one(encoder) -> None:
    clip = noise(20_000)
    assert torch.equal(encoder(clip), encoder(clip[None]))


def test_nothing_is_recorded_for_gradients(encoder) -> None:
    with torch.inference_mode():
        inside = encoder(noise(1, 16_000))
    assert torch.equal(inside, encoder(noise(1, 16_000)))


def test_samples_that_are_no_numbers_name_the_clip(encoder) -> None:
    clips = noise(2, 16_000)
    clips[1, 7] = float("nan")
    with pytest.raises(AudioError, match="input 1"):
        encoder(clips)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_card_embeds_as_the_processor_does(encoder) -> None:
    clips = padded([noise(32_000), noise(9_000)])
    on_cpu = encoder(clips)
    found = importlib.import_module("hear_transformers.xares.tiny").TinyEncoder().cuda()(clips.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), on_cpu, atol=1e-4, rtol=0)


# Reading in the place of torchaudio


def test_clips_are_decoded_as_everywhere(audio_file) -> None:
    path = audio_file("a.flac", sample_rate=44_100)
    waveform, rate = run.decode(".flac", path.read_bytes(), sample_rate=32_000)
    assert rate == 32_000
    assert torch.equal(waveform, read(path, 32_000))


def test_other_files_of_a_tar_are_left_to_webdataset() -> None:
    assert run.decode(".json", b"{}", sample_rate=32_000) is None


def test_what_cannot_be_decoded_is_an_error_without_a_temporary_name() -> None:
    with pytest.raises(AudioError) as raised:
        run.decode(".wav", b"no audio at all", sample_rate=32_000)
    assert "content.wav" not in str(raised.value)


def test_failures_name_few_clips_and_count_all() -> None:
    failures = run.Failures()
    for number in range(9):
        error = SimpleNamespace(__cause__=AudioError("it is damaged"), key=f"clip{number}", url="env/fold-1.tar")
        assert failures(error)
    with pytest.raises(
        run.HarnessError, match=r"9 failed beside 3 clips.*clip0 in fold-1.tar: it is damaged;.* 4 more"
    ):
        failures.check(3, ["env/fold-*.tar"])


def test_no_clips_are_an_error() -> None:
    with pytest.raises(run.HarnessError, match=r"fold-\*.tar: no clips"):
        run.Failures().check(0, ["env/fold-*.tar"])


def batches(monkeypatch, tars: dict[str, dict[str, bytes]]):
    """Return `run.read_batches` of tars over a fake of X-ARES' reader: a batch for each tar, of what is decoded."""
    data = SimpleNamespace(expand_with_brace=lambda files: [name for name in tars if name in files])
    data.wds = SimpleNamespace(torch_audio=None)
    data.Audiowebdataset = lambda files, handler: (files, handler)

    def create(files, target_sample_rate, num_workers):
        return reading(files, data.wds.torch_audio, data.Audiowebdataset(files)[1])

    def reading(files, decode, handler):
        for name in data.expand_with_brace(files):
            clips = []
            for key, content in tars[name].items():
                try:
                    clips.append((decode(".wav", content)[0], key))
                except AudioError as cause:
                    error = RuntimeError()
                    error.__cause__, error.key, error.url = cause, key, name
                    assert handler(error)
            yield ([each for each, _ in clips], None), None, [key for _, key in clips]

    data.create_rawaudio_webdataset = create
    monkeypatch.setitem(sys.modules, "xares", SimpleNamespace(audiowebdataset=data))
    monkeypatch.setitem(sys.modules, "xares.audiowebdataset", data)
    return run.read_batches([*tars] or ["none.tar"], target_sample_rate=16_000)


def test_clips_that_fail_are_an_error_behind_those_that_do_not(monkeypatch, audio_file) -> None:
    good = audio_file("a.wav").read_bytes()
    reading = batches(monkeypatch, {"1.tar": {"a": good, "b": b"no audio"}, "2.tar": {"c": good}})
    assert [next(reading)[-1], next(reading)[-1]] == [["a"], ["c"]]
    with pytest.raises(run.HarnessError, match=r"1 failed beside 2 clips of 1.tar, 2.tar: b in 1.tar: "):
        next(reading)


def test_all_clips_without_a_failure_are_no_error(monkeypatch, audio_file) -> None:
    assert len([*batches(monkeypatch, {"1.tar": {"a": audio_file("a.wav").read_bytes()}})]) == 1


def test_no_tars_are_an_error(monkeypatch) -> None:
    with pytest.raises(run.HarnessError, match=r"none.tar: no clips"):
        next(batches(monkeypatch, {}))


# What is kept: a task as xares.task.XaresTask is


class Task(SimpleNamespace):
    def __init__(self, folder: Path, provenance, *, encodes: bool = True) -> None:
        config = SimpleNamespace(
            name="esc", force_encode=False, xares_settings=SimpleNamespace(audio_ready_filename=".audio_tar_ready")
        )
        encoder = SimpleNamespace() if provenance is None else SimpleNamespace(provenance=lambda: provenance)
        ready = folder / ".encoded_tar_ready"
        super().__init__(config=config, encoder=encoder, encoded_tar_dir=folder, encoded_ready_path=ready)
        self.env_dir, self.ckpt_dir, self.encoder_name, self.encodes = (
            folder,
            folder / "checkpoints",
            "AnEncoder",
            encodes,
        )

    def encode(self) -> None:
        if self.encodes:
            self.encoded_ready_path.touch()


def test_embeddings_of_the_same_model_are_kept(tmp_path) -> None:
    for _ in range(2):
        run.make_encoded_tar(Task(tmp_path, {"layers": (8,)}), Task.encode)
    assert run.run_mlp(Task(tmp_path, {"layers": (8,)}), lambda task: (0.5, 10)) == (0.5, 10)


@pytest.mark.parametrize("call", [run.make_encoded_tar, run.run_mlp])
def test_embeddings_of_another_model_are_not_taken_for_those_of_a_class(tmp_path, call) -> None:
    run.make_encoded_tar(Task(tmp_path, {"layers": [8]}), Task.encode)
    with pytest.raises(run.HarnessError, match=r"another model, or other options.*give the class another name"):
        call(Task(tmp_path, {"layers": [9]}), Task.encode)


def test_embeddings_that_a_plain_run_marked_are_not_taken(tmp_path) -> None:
    task = Task(tmp_path, {"layers": [8]})
    task.encode()
    with pytest.raises(run.HarnessError, match="a program that does not say what made them"):
        run.make_encoded_tar(task, Task.encode)


def test_encoders_of_others_are_not_asked(tmp_path) -> None:
    run.make_encoded_tar(Task(tmp_path, None), Task.encode)
    assert run.run_mlp(Task(tmp_path, None), lambda task: (0.5, 10)) == (0.5, 10)


def test_a_task_that_was_not_encoded_is_an_error(tmp_path) -> None:
    with pytest.raises(run.HarnessError, match="esc has no embeddings of AnEncoder; its audio must lie in"):
        run.make_encoded_tar(Task(tmp_path, {}, encodes=False), Task.encode)


# The command


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "hear_transformers.xares", *map(str, arguments)]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


def test_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xares", None)
    with pytest.raises(OptionError, match=r"X-ARES needs xares.*pip install 'hear_transformers\[xares\]'"):
        run.run("tiny", ["tasks/esc50_task.py"])


@pytest.fixture
def xares(monkeypatch) -> SimpleNamespace:
    """Replace X-ARES by a fake, whose main notes its arguments."""
    seen: list = []
    kind = type("XaresTask", (), {"make_encoded_tar": None, "run_mlp": None})
    task = SimpleNamespace(XaresTask=kind, create_rawaudio_webdataset="theirs")
    logger = SimpleNamespace(error=lambda message: None)
    theirs = SimpleNamespace(main=seen.append, logger=logger, mp=SimpleNamespace(Pool=None, Manager=None), seen=seen)
    package = SimpleNamespace(run=theirs, task=task)
    theirs.mp.Pool = lambda **how: None
    monkeypatch.setitem(sys.modules, "xares", package)
    monkeypatch.setitem(sys.modules, "xares.run", theirs)
    return package


@pytest.mark.parametrize(
    ("encoder", "module"),
    [
        ("passt", "hear_transformers.xares.passt"),
        ("panns/cnn10", "hear_transformers.xares.panns.cnn10"),
        ("mn04_as", "hear_transformers.xares.efficientat.mn04_as"),
        ("hear_transformers.xares.tiny", "hear_transformers.xares.tiny"),
        ("my/passt_encoder.py", "my/passt_encoder.py"),
    ],
)
def test_models_modules_and_files_are_encoders(xares, encoder, module) -> None:
    run.run(encoder, ["a_task.py", "b_task.py"], to_stage=1)
    (arguments,) = xares.run.seen
    assert vars(arguments) == {
        "encoder_py": module,
        "tasks_py": ["a_task.py", "b_task.py"],
        "max_jobs": 0,
        "from_stage": 0,
        "to_stage": 1,
    }


def test_x_ares_reads_by_this_package_while_it_runs(xares) -> None:
    readers = []
    xares.run.main = lambda arguments: readers.append(xares.task.create_rawaudio_webdataset)
    run.run("tiny", ["a_task.py"])
    assert readers == [run.read_batches]
    assert xares.task.create_rawaudio_webdataset == "theirs"


def test_what_x_ares_only_logs_is_an_error(xares) -> None:
    xares.run.main = lambda arguments: xares.run.logger.error("Error in stage 0 (download): no route")
    with pytest.raises(run.HarnessError, match=r"X-ARES ended with: Error in stage 0 \(download\): no route"):
        run.run("tiny", ["a_task.py"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_need_a_gpu(xares) -> None:
    with pytest.raises(OptionError, match="max_jobs=2: X-ARES gives each process a GPU, and there is none"):
        run.run("tiny", ["a_task.py"], max_jobs=2)


def test_help_says_what_an_encoder_is(tmp_path) -> None:
    done = command("--help", folder=tmp_path)
    assert done.returncode == 0
    assert "whose name ends in Encoder" in done.stdout


TASK = """
from xares.task import TaskConfig

def local_config(encoder):
    return TaskConfig(encoder=encoder, name="local", k_fold_splits=[1, 2], output_dim=2, eval_weight=12,
                      label_processor=lambda row: int(row["label"]), epochs=2, torch_num_threads=1)
"""


@pytest.fixture
def local_task(tmp_path) -> Path:
    """Make a task of two folds with twelve clips each: tones and noise."""
    data = pytest.importorskip(
        "xares.audiowebdataset", reason="X-ARES is not installed: pip install 'hear_transformers[xares]'"
    )
    (tmp_path / "local_task.py").write_text(TASK)
    folder = tmp_path / "env" / "local"
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    for fold in (1, 2):
        paths = []
        for number in range(12):
            times = np.arange(4_000 + 500 * number) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * drawn.uniform(200, 800) * times)
            paths.append(tmp_path / f"clip{fold}_{number}.wav")
            soundfile.write(paths[-1], drawn.uniform(-0.3, 0.3, len(times)) if number % 2 else tone, 16_000)
        tar = str(folder / f"wds-audio-fold-{fold}-*.tar")
        data.write_audio_tar(paths, [str(number % 2) for number in range(12)], tar, num_shards=2)
    (folder / ".audio_tar_ready").touch()
    return folder


@pytest.mark.slow
def test_x_ares_scores_a_local_task(local_task) -> None:
    done = command("tiny", "local_task.py", folder=local_task.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    score = float((local_task / "checkpoints" / "TinyEncoder" / "knn_score.txt").read_text().split()[0])
    assert score > 0.8


@pytest.mark.slow
def test_a_clip_that_cannot_be_read_is_named_and_its_task_not_marked(local_task) -> None:
    webdataset = importlib.import_module("webdataset")
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="WAV")
    with webdataset.TarWriter(str(local_task / "wds-audio-fold-2-extra.tar")) as tar:
        tar.write({"__key__": "broken", "wav": file.getvalue()[:20_000], "json": b'{"label": "0"}'})
    done = command("tiny", "local_task.py", folder=local_task.parents[1])
    assert done.returncode == 1
    assert "1 failed beside 12 clips" in done.stderr
    assert "broken in wds-audio-fold-2-extra.tar" in done.stderr
    assert not [*local_task.rglob(".encoded_tar_ready")]


@pytest.mark.slow
def test_a_task_without_audio_is_an_error(local_task) -> None:
    for path in local_task.glob("*.tar"):
        path.unlink()
    done = command("tiny", "local_task.py", folder=local_task.parents[1])
    assert done.returncode == 1
    assert "no clips" in done.stderr


@pytest.mark.slow
def test_x_ares_own_check_passes() -> None:
    checker = pytest.importorskip(
        "xares.audio_encoder_checker", reason="X-ARES is not installed: pip install 'hear_transformers[xares]'"
    )
    assert checker.check_audio_encoder(EighthBlockEncoder())


@pytest.mark.slow
def test_processes_of_x_ares_read_by_this_package() -> None:
    pytest.importorskip("xares", reason="X-ARES is not installed: pip install 'hear_transformers[xares]'")
    reader = "__import__('xares.task').task.create_rawaudio_webdataset.__module__"
    with multiprocessing.get_context("spawn").Pool(1, initializer=run.adapt) as pool:
        assert pool.apply(eval, (reader,)) == run.__name__
