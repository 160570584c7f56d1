"""What each endpoint answers, over HTTP."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from hear_transformers import catalogue, labels
from hear_transformers.serve import answers, models
from hear_transformers.serve.models import Served
from tests.helpers.live import live

TOLERANCE = {"rtol": 0, "atol": 1e-5}
EMBEDDINGS, TAGS, SEARCH = "/v1/embeddings", "/v1/tags", "/v1/search"


@pytest.fixture(scope="module")
def alone(served, clips) -> dict[str, np.ndarray]:
    return {path.name: served.model.encode(path) for path in clips.iterdir()}


def form(*paths) -> list:
    return [("file", (path.name, path.read_bytes())) for path in paths]


def vectors(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_files_of_a_form_are_embedded_as_by_encode(server, clips, alone):
    answer = server.post(EMBEDDINGS, files=form(*sorted(clips.iterdir())))
    np.testing.assert_allclose(vectors(answer), [alone[name] for name in sorted(alone)], **TOLERANCE)
    assert [item["file"] for item in answer.json()["data"]] == sorted(alone)


def test_an_answer_says_what_made_it(server, served, clips):
    body = server.post(EMBEDDINGS, files=form(clips / "a.wav")).json()
    assert (body["model"], body["layer"]) == ("tiny/tiny", "8")
    assert body["provenance"] == json.loads(json.dumps(served.model.provenance()))
    assert body["usage"]["audio_seconds"] == body["data"][0]["seconds"] == 0.5


@pytest.mark.parametrize("kind", ["audio/wav", "application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_is_a_file_whatever_its_type(server, clips, alone, kind):
    answer = server.post(EMBEDDINGS, data=(clips / "a.wav").read_bytes(), headers={"Content-Type": kind})
    np.testing.assert_allclose(vectors(answer)[0], alone["a.wav"], **TOLERANCE)


@pytest.mark.parametrize("start", ["", "data:audio/wav;base64,"])
def test_json_holds_files_in_base64(server, clips, alone, start):
    content = start + base64.b64encode((clips / "b.wav").read_bytes()).decode()
    answer = server.post(EMBEDDINGS, json={"input": [content], "model": "tiny"})
    np.testing.assert_allclose(vectors(answer)[0], alone["b.wav"], **TOLERANCE)


def test_json_holds_samples(server, served):
    samples = 0.1 * np.random.default_rng(1).standard_normal((2, 16_000)).astype(np.float32)
    sound = {"array": samples.tolist(), "sampling_rate": 16_000}
    expected = served.model.encode({"array": samples, "sampling_rate": 16_000})
    np.testing.assert_allclose(vectors(server.post(EMBEDDINGS, json={"input": sound}))[0], expected, **TOLERANCE)


def test_embeddings_along_time_come_with_their_times(server, served, clips):
    (item,) = server.post(EMBEDDINGS, params={"timestamps": True}, files=form(clips / "b.wav")).json()["data"]
    expected = served.model.encode_timestamps(clips / "b.wav")
    np.testing.assert_allclose(item["embedding"], expected.embeddings, **TOLERANCE)
    np.testing.assert_allclose(item["timestamps_ms"], expected.centres_ms)


def test_base64_holds_float32(server, clips, alone):
    answer = server.post(EMBEDDINGS, params={"encoding_format": "base64"}, files=form(clips / "a.wav"))
    numbers = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(numbers, alone["a.wav"], **TOLERANCE)


def test_the_body_names_the_encoding_as_clients_of_openai_do(server, clips):
    content = base64.b64encode((clips / "a.wav").read_bytes()).decode()
    answer = server.post(EMBEDDINGS, json={"input": content, "encoding_format": "base64"})
    assert isinstance(answer.json()["data"][0]["embedding"], str)


def test_npy_is_one_array_of_all_files(server, clips, alone):
    answer = server.post(EMBEDDINGS, params={"encoding_format": "npy"}, files=form(*sorted(clips.iterdir())))
    assert answer.headers["Content-Type"] == "application/x-npy"
    numbers = np.load(io.BytesIO(answer.content), allow_pickle=False)
    np.testing.assert_allclose(numbers, [alone[name] for name in sorted(alone)], **TOLERANCE)


def test_npz_is_what_embed_audio_writes(server, served, clips):
    params = {"encoding_format": "npz", "timestamps": True}
    answer = server.post(EMBEDDINGS, params=params, files=form(clips / "c.wav"))
    with np.load(io.BytesIO(answer.content), allow_pickle=False) as archive:
        found = archive["embedding"], archive["timestamps"]
    for numbers, expected in zip(found, served.model.encode_timestamps(clips / "c.wav"), strict=True):
        np.testing.assert_allclose(numbers, expected, **TOLERANCE)


def test_what_is_too_much_for_json_is_to_be_asked_for_otherwise(server, clips, monkeypatch):
    monkeypatch.setattr(answers, "MOST_NUMBERS", 100)
    answer = server.post(EMBEDDINGS, files=form(clips / "a.wav"))
    assert (answer.status_code, "192 numbers are too many" in answer.text) == (400, True)
    assert server.post(EMBEDDINGS, params={"encoding_format": "npz"}, files=form(clips / "a.wav")).ok


def test_vectors_are_normalised(server, clips):
    answer = server.post(EMBEDDINGS, params={"normalize": True}, files=form(clips / "a.wav"))
    assert np.linalg.norm(vectors(answer)[0]) == pytest.approx(1.0)


def test_answers_do_not_depend_on_who_shares_the_batch(served, clips, alone):
    paths = sorted(clips.iterdir()) * 4
    # Wait for all of them, so that there is one batch.
    with live(served, wait_ms=60_000, batch=len(paths), decoders=2) as shared:
        with ThreadPoolExecutor(len(paths)) as clients:
            answers = list(clients.map(lambda path: shared.post(EMBEDDINGS, files=form(path)), paths))
        assert 'batch_clips_bucket{le="8"} 0' in shared.get("/metrics").text
    for path, answer in zip(paths, answers, strict=True):
        np.testing.assert_allclose(vectors(answer)[0], alone[path.name], **TOLERANCE)


def test_one_channel_is_read_where_it_is_asked_for(server, served):
    samples = 0.1 * np.random.default_rng(2).standard_normal((2, 16_000)).astype(np.float32)
    sound = {"array": samples.tolist(), "sampling_rate": 16_000}
    expected = served.model.encode(samples[1], sampling_rate=16_000)
    answer = server.post(EMBEDDINGS, params={"channel": 2}, json={"input": sound})
    np.testing.assert_allclose(vectors(answer)[0], expected, **TOLERANCE)


def test_damaged_files_are_kept_where_it_is_asked_for(server, clips):
    cut = (clips / "a.wav").read_bytes()[:-1000]
    refused, kept = (server.post(EMBEDDINGS, params={"keep_damaged": keep}, data=cut) for keep in (False, True))
    assert refused.status_code == 422
    assert "what is there was taken" in kept.json()["data"][0]["warnings"][0]


def test_audio_is_warned_of(server):
    loud = io.BytesIO()
    soundfile.write(loud, np.tile([3000.0, -3000.0], 8_000), 16_000, format="WAV", subtype="FLOAT")
    (item,) = server.post(EMBEDDINGS, files={"file": ("loud.wav", loud.getvalue())}).json()["data"]
    assert item["warnings"]
    assert all("loud.wav" in warning for warning in item["warnings"])


@pytest.fixture(scope="module")
def classifier(small_weights) -> Served:
    return models.load("efficientat", str(small_weights), "cpu", {"variant": "mn01_as"})


def test_tags_are_those_of_the_logits(classifier, small_weights, clips):
    options = {"variant": "mn01_as", "layer": "logits"}
    model = catalogue.load("efficientat", str(small_weights), "cpu", options)
    with live(classifier) as server:
        answer = server.post(TAGS, params={"top_k": 3}, files=form(clips / "a.wav"))
    expected = labels.top_tags(model.encode(clips / "a.wav"), 3)
    found = answer.json()["data"][0]["tags"]
    assert [tag["label"] for tag in found] == [tag.label for tag in expected]
    assert [tag["probability"] for tag in found] == pytest.approx([tag.probability for tag in expected], abs=1e-5)


def test_tags_and_embeddings_share_a_network(classifier):
    assert classifier.tagger.trunk is classifier.model.trunk


def test_a_network_without_classes_says_so(server, clips):
    answer = server.post(TAGS, files=form(clips / "a.wav"))
    assert answer.status_code == 501
    assert "tiny/tiny names no classes" in answer.json()["error"]["message"]


def test_a_sound_finds_itself_in_the_table(server, clips):
    answer = server.post(SEARCH, params={"k": 2}, files=form(clips / "b.wav"))
    best, second = answer.json()["data"][0]["matches"]
    assert (best["file"], best["cosine"]) == (str(clips / "b.wav"), pytest.approx(1.0, abs=1e-4))
    assert second["cosine"] < 0.9


def test_a_row_finds_others(server, clips):
    (item,) = server.get(SEARCH, params={"row": 1}).json()["data"]
    assert {match["file"] for match in item["matches"]} == {str(clips / "a.wav"), str(clips / "c.wav")}


def test_the_table_is_searched_by_its_own_layer_of_the_same_network(served):
    assert served.table.reading.model.layers == ("4",)
    assert served.table.reading.model.trunk is served.model.trunk


def test_without_a_model_that_of_the_table_is_served(table):
    assert models.load(None, device="cpu", table=table).model.layers == ("4",)


def test_the_server_describes_itself(server):
    info = server.get("/info").json()
    assert (info["model"], info["scene_embedding_size"], info["table"]["rows"]) == ("tiny/tiny", 192, 3)
    assert info["limits"]["files"] == 32
    assert server.get("/v1/models").json()["data"][0]["id"] == "tiny/tiny"
    assert {EMBEDDINGS, TAGS, SEARCH} <= server.get("/openapi.json").json()["paths"].keys()


def test_health_is_that_of_the_threads(server):
    assert server.get("/health").status_code == server.get("/health/live").status_code == 200
    server.service.is_closing = True
    try:
        assert server.get("/health/ready").status_code == 503
    finally:
        server.service.is_closing = False


def test_metrics_count_what_was_asked(served, clips):
    with live(served) as server:
        server.post(EMBEDDINGS, files=form(clips / "b.wav"))
        server.post(EMBEDDINGS, data=b"no audio")
        server.get("/made/up")
        text = server.get("/metrics").text
        assert server.metric("audio_seconds_total") == pytest.approx(2.3)
    assert 'hear_transformers_requests_total{endpoint="/v1/embeddings",status="200"} 1' in text
    assert 'hear_transformers_requests_total{endpoint="other",status="404"} 1' in text
    assert 'hear_transformers_rejections_total{reason="bad_audio"} 1' in text
    assert 'hear_transformers_request_seconds_count{endpoint="/v1/embeddings"} 2' in text
    assert "hear_transformers_batch_clips_count 1" in text
    assert "\nhear_transformers_queue_length 0" in text


@pytest.mark.parametrize(
    ("path", "options", "status", "words"),
    [
        (EMBEDDINGS, {"params": {"timestamp": "true"}}, 400, "did you mean timestamps?"),
        (EMBEDDINGS, {"params": {"timestamps": "perhaps"}}, 400, "timestamps: input should be a valid boolean"),
        (EMBEDDINGS, {"params": {"encoding_format": "mp3"}}, 400, "encoding_format: input should be 'float', 'base64'"),
        (SEARCH, {"params": {"k": 0}}, 400, "k: input should be greater than or equal to 1"),
        (EMBEDDINGS, {"params": {"encoding_format": "npy", "timestamps": 1}}, 400, "ask for npz"),
        (EMBEDDINGS, {"json": {"input": "AAAA", "model": "gpt"}}, 404, "tiny/tiny is"),
        (EMBEDDINGS, {"json": {"inputs": "AAAA"}}, 400, "the body has no input"),
        (EMBEDDINGS, {"json": {"input": "AAAA", "dimensions": 2}}, 400, "'dimensions' is unknown"),
        (EMBEDDINGS, {"json": {"input": 3}}, 400, "neither base64 nor an array"),
        (EMBEDDINGS, {"json": {"input": []}}, 400, "no audio was sent"),
        (EMBEDDINGS, {"json": {"input": {"array": [0.1], "sampling_rate": 0}}}, 400, "sampling_rate=0"),
        (EMBEDDINGS, {"json": {"input": {"array": [], "sampling_rate": 8000}}}, 422, "0 samples"),
        (EMBEDDINGS, {"json": {"input": {"array": ["x"], "sampling_rate": 8000}}}, 422, "no list of numbers"),
        (EMBEDDINGS, {"data": "{", "headers": {"Content-Type": "application/json"}}, 400, "the body is not JSON"),
        (EMBEDDINGS, {}, 400, "no audio was sent"),
        (EMBEDDINGS, {"files": {"timestamps": (None, "true")}}, 400, "options go into the address"),
        (EMBEDDINGS, {"data": b"x" * 99}, 422, "not audio"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(server, path, options, status, words):
    if "files" not in options and "json" not in options and "data" not in options and "params" in options:
        options = {**options, "data": b"x" * 99}
    answer = server.post(path, **options)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, status)
    assert words in error["message"]


def test_one_bad_file_is_named(server, clips):
    answer = server.post(EMBEDDINGS, files=[*form(clips / "a.wav"), ("file", ("broken.flac", b"fLaC" + bytes(99)))])
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("broken.flac: ")


def test_other_methods_and_addresses_are_refused(server):
    assert server.get(EMBEDDINGS).status_code == 405
    assert server.get("/v1/../../etc/passwd").status_code == 404
