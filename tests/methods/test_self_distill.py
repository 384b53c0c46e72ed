"""Self-distillation: what the teacher reads, the divergence by an independent formula, the draws, and what steps then do."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from raycl.adapters.backbone import Inputs
from raycl.methods.common.base import Step
from raycl.methods.common.demonstrations import draw, drawn, shown, with_answers
from raycl.methods.common.teacher import holding, summed
from raycl.methods.registry import method_params
from raycl.state.stage_state import StageState
from raycl.testing.probes import encoder_of, labels_of, make_method, padded, same_part
from raycl.testing.ranks import FEW, Job, assert_a_pair_does_what_one_does
from raycl.testing.toys import make_toy_task
from raycl.train.batches import Encoded
from raycl.train.module import StageModule, summed_loss
from tests.kit.cases import CASES

PARAMS = CASES["self_distill"].params | {"dropout": 0.0, "teacher_rate": 0.5}
DATA = PARAMS | {"samples": "data"}
ROWS = [
    Encoded((5, 6, 7), (8, 9, 2), body=(1, 2)),
    Encoded((4,), (3, 2), body=(0, 1)),
    Encoded((9, 8, 7, 6), (5, 2), body=(1, 3)),
]
"""Prompts of 3, 1 and 4 tokens, answers of 3, 2 and 2 that end in token 2."""


class Installed:
    """A method in training on a model in fp64, with a student and a teacher of random weights."""

    def __init__(self, tiny, params):
        self.method = make_method(params, 2)
        self.backbone = tiny.backbone
        self.method.install(tiny.backbone, StageState())
        tiny.backbone.model.double().train()
        self.module = StageModule(tiny.backbone, self.method)
        self.weights = self.method.trainee.parameters()
        scatter = torch.Generator().manual_seed(7)
        for values in ({name: weight.data for name, weight in self.weights.items()}, self.method.teacher):
            for name, value in values.items():
                values[name] = 0.3 * torch.randn(value.shape, generator=scatter, dtype=torch.float64)
                if values is not self.method.teacher:
                    self.weights[name].data = values[name]
        self.method.progress = 0.0
        self.seen: list[Inputs] = []
        self.training: list[tuple[bool, bool]] = []

    def run(self, inputs):
        """As the loop's, with a note of what is read, and whether dropout and gradients are on."""
        self.seen.append(inputs)
        self.training.append((self.backbone.model.training, torch.is_grad_enabled()))
        return self.module.predict(inputs)[0]

    def step(self, inputs, tokens=1.0, add=lambda tensors: None):
        """A training pass."""
        logits, labels = self.module.predict(inputs)
        return Step(
            inputs, logits, labels, summed_loss(inputs, logits, labels, None) / tokens, 0.0, self.run, add, tokens
        )

    def gradient(self, value):
        """Of a scalar, as one vector."""
        found = torch.autograd.grad(value, list(self.weights.values()), retain_graph=True, allow_unused=True)
        pairs = zip(found, self.weights.values(), strict=True)
        return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten() for g, w in pairs])

    def alone(self, prompt, answer):
        """The log-probabilities (len(answer), V) of a row by itself, without padding, straight from the model."""
        ids, model = torch.tensor([[*prompt, *answer]]), self.backbone.model
        if self.backbone.encoder_decoder:
            start = model.config.decoder_start_token_id
            read = torch.tensor([[start, *answer[:-1]]])
            logits = model(input_ids=torch.tensor([list(prompt)]), decoder_input_ids=read).logits[0]
        else:
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return logits - logits.exp().sum(dim=-1, keepdim=True).log()


@contextmanager
def installed(tiny, params):
    """And taken off again; the model is in fp32 as before."""
    backup = {name: value.clone() for name, value in tiny.backbone.model.state_dict().items()}
    one = Installed(tiny, params)
    try:
        yield one
    finally:
        one.method.remove()
        tiny.backbone.model.float().eval().load_state_dict(backup)


def collated(tiny, rows):
    """Rows as a batch."""
    return encoder_of(tiny).collate(rows, "cpu")


def same_inputs(mine, other):
    """The same tokens in the same places; what stands on padding does not matter."""
    real = mine.mask.bool()
    return (
        torch.equal(mine.mask, other.mask)
        and torch.equal(mine.ids[real], other.ids[real])
        and torch.equal(mine.prompt_mask, other.prompt_mask)
        and torch.equal(labels_of(mine), labels_of(other))
    )


# --- what is read ---------------------------------------------------------------------------------------------------------


def test_a_demonstration_by_hand():
    """Decoder-only, padded on the left: x y* x y, labels on y alone; encoder-decoder, on the right: x y* x."""
    ids, mask = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    own = Inputs(ids, mask, torch.tensor([[0, 1, 0], [1, 0, 0]]), torch.tensor([[-100, -100, 6], [-100, 8, 9]]))
    found = shown(own, with_answers(own, torch.tensor([[-100, -100, 3], [-100, 4, 3]]), False), False)
    assert found.ids.tolist() == [[0, 0, 5, 6, 5, 3], [7, 8, 9, 7, 4, 3]]
    assert found.mask.tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert found.prompt_mask.tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert found.labels.tolist() == [[-100] * 5 + [3], [-100] * 4 + [4, 3]]
    ids, mask = torch.tensor([[5, 0], [7, 8]]), torch.tensor([[1, 0], [1, 1]])
    own = Inputs(ids, mask, mask, torch.tensor([[6, 1, -100], [9, 4, 1]]))
    other = torch.tensor([[2, 2, -100], [3, 3, 3]])
    found = shown(own, with_answers(own, other, True), True)
    assert (found.ids * found.mask).tolist() == [[5, 6, 1, 5, 0, 0, 0], [7, 8, 9, 4, 1, 7, 8]]
    assert found.mask.tolist() == found.prompt_mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]
    assert torch.equal(labels_of(found), other)


def test_a_demonstration_is_the_row_that_the_encoder_would_make(tiny):
    """Prompt, answer, prompt as one prompt; wider padding around the batch does not matter, nor does a filler row."""
    rows = [*ROWS, Encoded(ROWS[0].prompt, ())]
    both = tiny.backbone.encoder_decoder
    wanted = collated(tiny, [Encoded((*one.prompt, *one.answer, *one.prompt), one.answer) for one in rows])
    inputs = collated(tiny, rows)
    assert same_inputs(shown(inputs, inputs, both), wanted)
    wide = padded(inputs, 0, *((0, 3) if both else (3, 0)))
    assert same_inputs(shown(wide, wide, both), wanted)
    weighed = replace(inputs, weights=torch.arange(4.0), stages=torch.arange(4))
    found = shown(weighed, weighed, both)
    assert found.weights.tolist() == found.stages.tolist() == [0, 1, 2, 3] and found.body_mask is None


# --- the divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["reverse", "forward"])
@pytest.mark.parametrize("samples", ["data", "student"])
def test_the_divergence_and_its_gradient_row_by_row(tiny, kl, samples):
    """In fp64, from rows by themselves without padding: sum p (ln p - ln q) over the vocabulary, with the teacher's weights
    in the teacher, which no gradient reaches; the weight of a row, and the tokens of the batch."""
    with installed(tiny, PARAMS | {"kl": kl, "samples": samples, "weight": 0.25}) as one:
        weights = [1.0, 2.0, 0.5]
        inputs = replace(collated(tiny, ROWS), weights=torch.tensor(weights, dtype=torch.float64))
        term = one.method.penalties(one.step(inputs, tokens=5.0))["distillation"]
        assert term.weight == 0.25 and term.raw.dtype == torch.float64
        total = torch.zeros((), dtype=torch.float64)
        read = inputs if samples == "data" else one.seen[-2]
        for row, weight, labels in zip(ROWS, weights, labels_of(read), strict=True):
            answer = labels[labels != -100].tolist()
            assert len(answer) == len(row.answer) and (samples == "student" or answer == list(row.answer))
            count = answer.index(2) + 1 if 2 in answer else len(answer)
            student = one.alone(row.prompt, answer)[:count]
            with torch.no_grad(), holding(one.weights, one.method.teacher):
                teacher = one.alone((*row.prompt, *row.answer, *row.prompt), answer)[:count]
            p, q = (student, teacher) if kl == "reverse" else (teacher, student)
            total = total + weight * (p.exp() * (p - q)).sum()
        assert term.raw.item() == pytest.approx(total.item() / 5.0, rel=1e-9)
        mine, wanted = one.gradient(term.raw), one.gradient(total / 5.0)
        assert (mine - wanted).norm() <= 1e-8 * wanted.norm() and wanted.norm() > 0


def test_dropout_and_gradients_are_the_students_alone(tiny):
    """Passes in order: draws and teacher without both, the student with both; no random number is used up where there is
    no dropout to draw, and the student's weights are back."""
    with installed(tiny, PARAMS | {"dropout": 0.5}) as one:
        before = {name: weight.data.clone() for name, weight in one.weights.items()}
        states = []
        step = one.step(collated(tiny, ROWS))

        def run(inputs):
            states.append(torch.get_rng_state())
            return one.run(inputs)

        one.method.penalties(replace(step, run=run))
        states.append(torch.get_rng_state())
        assert one.training == [(False, False)] * 3 + [(True, True), (False, False)]
        assert [torch.equal(a, b) for a, b in pairwise(states)] == [True] * 3 + [False, True]
        assert one.backbone.model.training
        assert all(torch.equal(weight.data, before[name]) for name, weight in one.weights.items())


def test_rows_that_fill_up_a_batch_count_nothing(tiny):
    """Neither in the sum nor in its gradient, nor do they change what is drawn; a batch of them alone has a term of 0."""
    for params in (PARAMS, DATA):
        with installed(tiny, params) as one:
            rows = [ROWS, [*ROWS, Encoded(ROWS[0].prompt, ()), Encoded(ROWS[2].prompt, ())]]
            found = [one.method.penalties(one.step(collated(tiny, some)))["distillation"].raw for some in rows]
            assert found[0].item() == pytest.approx(found[1].item(), rel=1e-9)
            plain, filled = map(one.gradient, found)
            assert (plain - filled).norm() <= 1e-8 * plain.norm()
            none = one.method.penalties(one.step(collated(tiny, [Encoded((5, 6), ())] * 2)))["distillation"].raw
            assert none.item() == 0 and not one.gradient(none).any()


def test_parts_of_a_batch_add_up(tiny):
    """Rows one by one, each by as many tokens as the batch's: the same sum, the same gradient, the same draws."""
    for params in (PARAMS, DATA):
        with installed(tiny, params) as one:
            whole = one.method.penalties(one.step(collated(tiny, ROWS), 7.0))["distillation"].raw
            each = [one.method.penalties(one.step(collated(tiny, [row]), 7.0))["distillation"].raw for row in ROWS]
            assert whole.item() == pytest.approx(sum(one.item() for one in each), rel=1e-9)
            mine, wanted = one.gradient(whole), sum(map(one.gradient, each))
            assert (mine - wanted).norm() <= 1e-8 * wanted.norm()


def test_the_cross_entropy_counts_as_often_as_is_said(tiny):
    """c times in the whole loss, and exactly not at all with c = 0; at 1 there is no term for it."""
    for weight in (0.0, 0.5, 1.0):
        with installed(tiny, DATA | {"cross_entropy": weight}) as one:
            step = one.step(collated(tiny, ROWS), 7.0)
            terms = one.method.penalties(step)
            assert ("cross_entropy" in terms) == (weight != 1)
            loss = step.loss + sum(term.raw * term.weight for term in terms.values())
            rest = loss - terms["distillation"].raw
            assert rest.item() == pytest.approx(weight * step.loss.item(), abs=1e-12)
            gradient = one.gradient(step.loss + sum(t.raw * t.weight for n, t in terms.items() if n != "distillation"))
            assert torch.allclose(gradient, weight * one.gradient(step.loss), rtol=1e-9, atol=0)
            assert gradient.any() == (weight > 0)


def test_a_sum_over_tokens_by_hand():
    """Tokens of the first row weigh 2, that of the second 5."""
    marked, each = torch.tensor([[True, True], [False, True]]), torch.tensor([1.0, 2.0, 3.0])
    assert summed(each, marked, torch.tensor([2.0, 5.0])).item() == 2 + 4 + 15
    assert summed(each, marked, None).item() == 6


# --- the draws ------------------------------------------------------------------------------------------------------------


def test_a_draw_by_hand():
    """Of (0.2, 0, 0.3, 0.5) a number below 0.2 draws token 0, one up to 0.5 token 2; what cannot be is not drawn."""
    logits = torch.tensor([[0.2, 0.0, 0.3, 0.5]]).log().expand(5, -1)
    assert draw(logits, torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.9999]).double()).tolist() == [0, 0, 2, 2, 3]
    assert draw(torch.zeros(0, 4), torch.zeros(0).double()).tolist() == []
    generator = torch.Generator().manual_seed(0)
    many = draw(logits[:1].expand(20000, -1), torch.rand(20000, generator=generator, dtype=torch.float64))
    shares = torch.bincount(many, minlength=4) / 20000
    assert torch.allclose(shares, torch.tensor([0.2, 0.0, 0.3, 0.5]), atol=4 * math.sqrt(0.25 / 20000))


def test_answers_are_drawn_token_by_token_from_the_prompt_alone(tiny):
    """Each as from the row by itself, where every token is drawn given those before it; the end token ends it."""
    chances = torch.rand(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    both = tiny.backbone.encoder_decoder
    with installed(tiny, PARAMS) as one:
        read, counted = drawn(collated(tiny, ROWS), one.run, chances, both)
        assert len(one.seen) == 3
        for index, (row, numbers) in enumerate(zip(ROWS, chances, strict=True)):
            answer: list[int] = []
            for number in numbers[: len(row.answer)]:
                last = one.alone(row.prompt, [*answer, 0])[-1].exp()
                answer.append(int((last.cumsum(dim=0) <= number).sum()))
            labels = labels_of(read)[index]
            assert labels[labels != -100].tolist() == answer
            if not both:
                assert read.ids[index][read.mask[index].bool()].tolist() == [*row.prompt, *answer]
            until = answer.index(2) + 1 if 2 in answer else len(answer)
            assert counted[index].sum() == until and labels[counted[index]].tolist() == answer[:until]


def test_what_follows_the_end_token_does_not_count(tiny):
    """A model that says its first row's end token (2) second, and others never: 2, 2 and 2 tokens of 3, 2 and 2 count."""
    both, inputs = tiny.backbone.encoder_decoder, collated(tiny, ROWS)

    def run(read):
        labels = labels_of(read)
        logits = torch.zeros(*labels.shape, 12)
        place = (labels != -100).cumsum(dim=1)
        logits[..., 2] = torch.where(place == 2, 50.0, -50.0)
        return logits if both else logits[:, -3:]

    chances = torch.full((3, 3), 0.5, dtype=torch.float64)
    read, counted = drawn(inputs, run, chances, both)
    assert counted.sum(dim=1).tolist() == [2, 2, 2]
    assert all(labels_of(read)[row][counted[row]].tolist()[-1] == 2 for row in range(3))
    read, counted = drawn(inputs, run, chances[:, :1], both)
    assert counted.sum(dim=1).tolist() == [1, 1, 1], "the first n tokens alone"
    own = labels_of(inputs)
    assert torch.equal(labels_of(read) == -100, own == -100)
    assert ((labels_of(read) != own) <= counted).all(), "the others stay the row's own"


def test_all_workers_take_the_same_passes(tiny):
    """As many as the longest answer of any of them has tokens, `max_tokens` at most; none longer is read into a row."""
    for other, most, wanted in ((0, 16, 2), (3, 16, 3), (16, 16, 16), (1, 16, 2), (4, 4, 4), (0, 1, 1)):

        def add(tensors, other=other):
            for tensor in tensors:
                tensor[other] += 1

        with installed(tiny, PARAMS | {"max_tokens": most}) as one:
            one.method.penalties(one.step(collated(tiny, ROWS[1:]), add=add))
            assert len(one.seen) == wanted + 2
            assert all(inputs.ids.shape == one.seen[0].ids.shape for inputs in one.seen[:-1])


def test_draws_hang_on_seed_stage_step_and_prompt(tiny):
    """Padding and neighbours do not change them; each of the four does."""
    with installed(tiny, PARAMS) as one:
        step = one.step(collated(tiny, ROWS))
        chances = one.method._chances(step)
        assert chances.shape == (3, 3) and ((chances >= 0) & (chances < 1)).all()
        wide = padded(step.inputs, 0, *((0, 3) if tiny.backbone.encoder_decoder else (3, 0)))
        assert torch.equal(one.method._chances(replace(step, inputs=wide)), chances)
        some = step.inputs.rows(torch.tensor([2, 1]))
        assert torch.equal(one.method._chances(replace(step, inputs=some)), chances[[2, 1], :2])
        assert len(set(chances[:, 0].tolist())) == 3
        assert not (one.method._chances(replace(step, progress=0.5)) == chances).any()
        for stage, seed in ((3, 0), (2, 1)):
            one.method.info = make_method(PARAMS, stage, seed=seed).info
            assert not (one.method._chances(step) == chances).any()


# --- the teacher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "wanted"), [(0.25, 2.0 + 0.25 * 4.0), (0.0, 2.0)])
def test_the_teacher_follows_once_a_step(tiny, rate, wanted):
    """From 2 towards 6: by alpha at a new step, and not again in its other micro-batches."""
    with installed(tiny, DATA | {"teacher_rate": rate}) as one:
        for name, weight in one.weights.items():
            weight.data.fill_(6.0)
            one.method.teacher[name].fill_(2.0)
        for progress in (0.0, 0.5, 0.5):
            one.method._follow(progress)
        assert one.method.running().keys() == one.weights.keys()
        assert all((value == wanted).all() for value in one.method.running().values())


def test_a_teacher_that_is_the_student_is_held_nowhere(tiny):
    """alpha = 1, or no weight: no copy of the branch."""
    for params in (DATA | {"teacher_rate": 1.0}, PARAMS | {"weight": 0.0}):
        with installed(tiny, params) as one:
            assert not one.method.running()


def test_a_stage_begins_with_itself_as_a_teacher(tiny, toy_tasks, run_sequence):
    """The copy is of the branch that the stage continues, and what it is at the end of the stage is handed on nowhere."""
    results = run_sequence(tiny, DATA | {"teacher_rate": 0.0}, toy_tasks[:2])
    first, second = (result.part.branch for result in results)
    held = results[1].method.running()
    for path in first.a:
        assert torch.equal(held[f"a {path}"], first.a[path]) and torch.equal(held[f"b {path}"], first.b[path])
        assert not torch.equal(held[f"b {path}"], second.b[path])
    assert not results[1].part.tensors


# --- stages ---------------------------------------------------------------------------------------------------------------


def test_without_its_weight_it_is_sin_lora(tiny, toy_tasks, run_sequence):
    """Bit for bit, over two tasks, dropout included."""
    ours = run_sequence(tiny, CASES["self_distill"].params | {"weight": 0.0}, toy_tasks[:2])
    plain = run_sequence(tiny, CASES["sin_lora"].params, toy_tasks[:2])
    assert all(same_part(a.part, b.part) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("samples", ["data", "student"])
def test_the_student_comes_to_say_what_the_teacher_says(tiny, toy_tasks, run_stage, samples):
    """Without any cross-entropy, and with a teacher that stays, the divergence falls to a third. On answers of its own that
    is to be seen at the first token: what a random model's teacher says after others is noise for each of them."""
    params = PARAMS | {"samples": samples, "max_tokens": 1, "cross_entropy": 0.0, "teacher_rate": 0.0}
    log = run_stage(tiny, params, toy_tasks, epochs=45, batch_size=16).log
    raw = [record["terms"]["distillation"]["raw"] for record in log]
    assert min(raw) > 0 and sum(raw[-5:]) < sum(raw[:5]) / 3
    assert log[0]["terms"]["cross_entropy"]["weighted"] == pytest.approx(-log[0]["loss"])


def test_micro_batches_do_not_change_the_terms(tiny, toy_tasks, run_stage):
    """One micro-batch of 8 or four of 2: the same logged terms, up to rounding."""
    logs = [run_stage(tiny, PARAMS, toy_tasks, micro_batch_size=size, lr=1e-3).log for size in (8, 2)]
    for one, four in zip(*logs, strict=True):
        assert one["terms"]["distillation"]["raw"] == pytest.approx(
            four["terms"]["distillation"]["raw"], rel=1e-3, abs=1e-6
        )


def test_a_loss_of_nothing_is_refused():
    """By name, with what to do."""
    with pytest.raises(ValueError, match="weight: 0 with cross_entropy 0 leaves no loss; set one of them above 0"):
        method_params("self_distill")(weight=0, cross_entropy=0)


@pytest.mark.slow
def test_two_workers_at_any_zero_stage_do_what_one_does(tiny_folders, tmp_path):
    """Though their answers are of other lengths, in micro-batches of one row; the base weights may lie in pieces."""
    tasks, train = [make_toy_task(number, 5, 3, spread=3) for number in (1, 2)], FEW | {"micro_batch_size": 1}
    jobs = [Job(PARAMS, train | {"zero_stage": zero}, f"zero {zero}", tiny_folders["llama"]) for zero in (2, 3)]
    assert_a_pair_does_what_one_does(tmp_path, jobs, tasks)
