"""What is learnt: which frame a token answers for, losses in units of a guess, networks and heads that move."""

from dataclasses import replace

import pytest
import torch

from hear_transformers.networks.trunk import TimeAxis
from hear_transformers.training.corpus.stream import PHONES
from hear_transformers.training.distil import clips, objectives, run
from hear_transformers.training.distil.objectives import Head, Target, predicted_frames
from tests.helpers.distilling import CPU, SIZES, SMALL, Loudness, corpus


@pytest.mark.parametrize(
    ("hop", "offset", "predictions", "expected"),
    [
        (4, 0.0, 1, [0, 4, 8]),
        (8, 0.0, 2, [-2, 2, 6, 10, 14, 18]),
        (4, 1.5, 1, [2, 6, 10]),
    ],
)
def test_tokens_answer_for_the_frames_around_their_centres(hop, offset, predictions, expected):
    assert predicted_frames(TimeAxis(hop, offset, None), 3, predictions).tolist() == expected


def test_frames_before_and_after_a_clip_are_not_compared():
    head = Head(Target("x", "classes", 10, True), 1, predictions=2)
    torch.nn.init.zeros_(head.linear.weight)
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([9.0] + [0.0] * 9 + [0.0] * 9 + [9.0]))
    values = torch.tensor([[9, 9, 9, 9, 0, 0, 0, 0]])  # frames 2 and 6 are compared, but not -2 and 10
    tokens = torch.zeros(1, 1, 1)
    assert head.loss_of_frames(tokens, values, TimeAxis(8, 0.0, None)) < 0.01


@pytest.mark.parametrize(
    ("target", "values"),
    [
        (Target("numbers", "numbers", 3, False), torch.randn(500, 3) * torch.tensor([1.0, 5.0, 9.0]) + 4),
        (Target("numbers of frames", "numbers", 3, True), torch.randn(50, 10, 3) * 4 + 2),
        (Target("truths", "truths", 4, True), torch.rand(50, 10, 4) < torch.tensor([0.5, 0.1, 0.02, 0.0])),
        (Target("classes", "classes", 4, True), torch.randint(0, 3, (50, 10))),
    ],
    ids=lambda each: each.name if isinstance(each, Target) else "",
)
def test_a_head_that_has_only_observed_guesses_and_a_guess_has_loss_one(target, values):
    head = Head(target, 2)
    head.observe(values)
    torch.nn.init.zeros_(head.linear.weight)
    rows = values.flatten(0, -2) if target.values != "classes" else values.flatten()
    outputs = head.linear(torch.zeros(len(rows), 2))
    assert head.loss(outputs, rows).item() == pytest.approx(1, abs=0.01)


def test_rare_outliers_of_a_teacher_are_clipped():
    head = Head(Target("x", "numbers", 1, False), 1)
    head.observe(torch.tensor([[0.0], [1.0]] * 500))
    assert head.loss(torch.zeros(1, 1), torch.tensor([[1e6]])) <= objectives.LARGEST_NUMBER**2 * 1.01


def new_run(student: str):
    recipe = replace(SMALL, student=student, steps=40, warm_up=5)
    held_out = clips.held_out(recipe, corpus, [Loudness()], CPU)
    training = run.new_run(recipe, held_out, CPU)
    training.objective.observe(held_out)
    return training, held_out


def test_labels_of_frames_are_numbers_truths_or_classes_by_their_type():
    frames = {
        "words": torch.zeros(2, 8, 96, dtype=torch.float16),
        "events": torch.zeros(2, 8, 5, dtype=torch.uint8),
        "phones": torch.zeros(2, 8, dtype=torch.uint8),
    }
    clips_of_all = {"speech": clips.Clips(torch.zeros(2, 128, 8), frames, {"logits": torch.zeros(2, 7)})}
    assert objectives.targets_of(clips_of_all) == [
        Target("words", "numbers", 96, True),
        Target("events", "truths", 5, True),
        Target("phones", "classes", len(PHONES), True),
        Target("logits", "numbers", 7, False),
    ]


@pytest.mark.parametrize("student", SIZES)
def test_every_step_moves_network_and_heads(student):
    training, _ = new_run(student)
    before = {name: tensor.clone() for name, tensor in training.objective.state_dict().items()}
    (batch,) = clips.batches(SMALL, corpus, [Loudness()], CPU, range(1))
    losses = training.advance(batch)
    after = training.objective.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert set(losses) == {"logits", "penultimate", "events", "phones", "pitches"}
    assert {name.partition(".")[0] for name in moved} == {"trunk", "heads"}
    assert {f"heads.{name}.linear.weight" for name in losses if f"heads.{name}.linear.weight" in after} <= moved


@pytest.mark.parametrize("student", SIZES)
def test_a_batch_is_learnt_by_heart(student):
    training, _ = new_run(student)
    (batch,) = clips.batches(SMALL, corpus, [Loudness()], CPU, range(1))
    losses = [training.advance(batch) for _ in range(15)]
    first, last = (sum(losses[i].values()) for i in (0, -1))
    assert last < 0.9 * first


@pytest.mark.parametrize("student", SIZES)
def test_heads_fit_a_network_that_stays_as_it_is(student):
    training, held_out = new_run(student)
    objective = training.objective
    network = {name: tensor.clone() for name, tensor in objective.trunk.state_dict().items()}
    before = objectives.score(training, held_out)
    objective.fit_heads(held_out, seed=0)
    after = objectives.score(training, held_out)
    torch.testing.assert_close(dict(objective.trunk.state_dict()), network, rtol=0, atol=0)
    fitted = [name for name, head in objective.heads.items() if head.linear is not None]
    assert all(after[f"valid_{name}"] < 0.95 * before[f"valid_{name}"] for name in fitted)


def test_a_network_with_logits_learns_the_teachers_as_they_are():
    training, held_out = new_run("mast_mini")
    assert training.objective.heads["logits"].linear is None
    assert torch.equal(training.network.head.bias, held_out["scenes"].by_clip["logits"].mean(0))


def test_a_weight_multiplies_its_loss():
    recipe = replace(SMALL, weights=(("phones", 3.0),))
    held_out = clips.held_out(recipe, corpus, [Loudness()], CPU)
    plain, weighted = (run.new_run(each, held_out, CPU).objective.eval() for each in (SMALL, recipe))
    batch = {kind: part.part(slice(0, 2)) for kind, part in held_out.items()}
    torch.testing.assert_close(weighted(batch)["phones"], 3 * plain(batch)["phones"])
    torch.testing.assert_close(weighted(batch)["logits"], plain(batch)["logits"])


def test_a_target_of_several_kinds_has_one_head_and_the_mean_of_their_losses():
    teacher = Loudness()
    teacher.hears = ("scenes", "notes")
    held_out = clips.held_out(SMALL, corpus, [teacher], CPU)
    objective = run.new_run(SMALL, held_out, CPU).objective.eval()
    objective.observe(held_out)
    answers = torch.cat([held_out[kind].by_clip["penultimate"] for kind in teacher.hears])
    torch.testing.assert_close(objective.heads["penultimate"].mean, answers.mean(0))
    of_kinds = [objective.losses(held_out[kind])["penultimate"] for kind in teacher.hears]
    torch.testing.assert_close(objective(held_out)["penultimate"], torch.stack(of_kinds).mean())


def test_score_is_the_share_of_the_targets_that_is_explained():
    training, held_out = new_run("tiny")
    scores = objectives.score(training, held_out)
    losses = [loss for name, loss in scores.items() if name.startswith("valid_")]
    assert scores["explained"] == pytest.approx(1 - sum(losses) / 5)
    assert next(iter(scores)) == "explained"


def test_initial_weights_leave_the_global_seed_alone():
    before = torch.get_rng_state()
    new_run("tiny")
    assert torch.equal(torch.get_rng_state(), before)
