"""Needle prompts: whole, at their depth, within their length, and answered by what is hidden alone."""

import re

import numpy as np
import pytest

from feedworks.contracts.synthetic_text import write_synthetic_text
from feedworks.errors import ConfigError, DataError
from feedworks.ksa.corpus import encode, fit_tokenizer, load_tokenizer, read_documents
from feedworks.ksa.hiding import apart
from feedworks.ksa.losses import IGNORED
from feedworks.ksa.needle_tasks import HIDDEN, TASKS, Made, counts
from feedworks.ksa.needles import (
    Haystack,
    make_needles,
    read_needles,
    score,
    sentences_of,
    training_rows,
    write_needles,
)

DEPTHS = (0.0, 0.3, 1.0)


@pytest.fixture(scope="module")
def haystack(tmp_path_factory):
    data = write_synthetic_text(tmp_path_factory.mktemp("data"), num_documents=20, num_words=300)
    folder = fit_tokenizer(data, tmp_path_factory.mktemp("fit") / "tokenizer", vocab_size=600)
    return Haystack(load_tokenizer(folder), (document.text for document in read_documents(data, "test")))


@pytest.fixture(scope="module")
def needles(haystack):
    return make_needles(haystack, tasks=TASKS, lengths=(200, 500), depths=DEPTHS, per_cell=3, seed=7)


def test_every_cell_has_its_prompts(needles):
    cells = [(n.task, n.length, n.depth) for n in needles]
    assert len(cells) == 2 * 3 * (4 * len(DEPTHS) + 1)
    assert {depth for task, _, depth in cells if task == "frequent"} == {None}
    assert all(cells.count((task, 500, 0.3)) == 3 for task in HIDDEN)


def test_prompts_fill_their_length_and_no_more(needles):
    for needle in needles:
        used = len(needle.prompt_ids) + len(needle.target_ids) + 1
        assert needle.length - 25 < used <= needle.length


def test_ids_are_those_of_the_text(needles, haystack):
    for needle in needles:
        prompt, whole = encode(haystack.tokenizer, [needle.prompt, needle.prompt + needle.target])
        assert prompt.tolist() == needle.prompt_ids.tolist()
        assert whole.tolist() == [*needle.prompt_ids.tolist(), *needle.target_ids.tolist()]


def test_the_target_holds_the_answers_and_the_text_tells_them(needles):
    for needle in needles:
        assert score(needle.answers, needle.target) == 1.0
        assert all(answer in needle.prompt for answer in needle.answers)
        context, _, question = needle.prompt.rpartition(" Remember:")
        if needle.task in ("single", "multi_key"):
            key = re.fullmatch(r" the code of the (.*) is", question)
            assert key
            assert re.findall(rf"The code of the {key[1]} is (\d+)\.", context) == list(needle.answers)
        elif needle.task == "multi_value":
            key = re.fullmatch(r" the codes of the (.*) are", question)
            assert key
            assert re.findall(rf"A code of the {key[1]} is (\d+)\.", context) == list(needle.answers)
            assert len(needle.answers) == 3
        elif needle.task == "tracking":
            value = re.fullmatch(r" equal to (\d+) are", question)
            assert value
            held = {value[1]}
            for name, source in re.findall(r"Let (\w+) be (\w+)\.", context):
                held |= {name} if source in held else set()
            assert held == {value[1], *needle.answers}
        else:
            words = context.split()
            ranked = sorted(set(words), key=words.count, reverse=True)
            assert ranked[:3] == list(needle.answers)
            assert len({words.count(word) for word in ranked[:4]}) == 4


def test_others_look_like_the_needle_where_there_is_room(needles):
    for needle in needles:
        roomy = needle.length == 500
        if needle.task == "multi_key":
            assert needle.prompt.count("The code of the") in ((4,) if roomy else (2, 3, 4))
        if needle.task == "tracking":
            assert needle.prompt.count("Let ") in ((6,) if roomy else (3, 4, 5, 6))


def test_the_needle_lies_at_its_depth(needles, haystack):
    hidden = re.compile(r" (?:(?:The|A) code of the [^.]+\.|Let \w+ be \w+\.)")
    for needle in needles:
        if needle.depth is None:
            continue
        context = needle.prompt.rpartition(" Remember:")[0]
        sought = {
            "tracking": needle.prompt.rpartition("equal to ")[2].split()[0] + ".",
            "multi_value": needle.answers[0],
        }.get(needle.task, needle.answers[0])
        place = next(m.start() for m in hidden.finditer(context) if sought in m.group())
        before, after = (
            sum(1 for _ in sentences_of(hidden.sub("", part))) for part in (context[:place], context[place:])
        )
        assert before / (before + after) == pytest.approx(needle.depth, abs=0.5 / (before + after) + 1e-9)


def test_equal_arguments_give_equal_prompts_and_a_seed_others(haystack, needles):
    arguments = {"tasks": ["tracking"], "lengths": (200,), "depths": (0.3,), "per_cell": 3}
    again = make_needles(haystack, **arguments, seed=7)
    cell = [n for n in needles if (n.task, n.length, n.depth) == ("tracking", 200, 0.3)]
    assert [n.prompt for n in again] == [n.prompt for n in cell], "a cell does not depend on the others"
    assert len({n.prompt for n in again}) == 3
    assert not {n.target for n in again} & {n.target for n in make_needles(haystack, **arguments, seed=8)}


def test_depths_are_drawn_for_training(haystack):
    found = make_needles(haystack, tasks=["single"], lengths=(200,), depths=None, per_cell=60, seed=0)
    depths = np.array([needle.depth for needle in found], float)
    assert depths.min() < 0.15
    assert depths.max() > 0.85


@pytest.fixture(scope="module")
def asked_often(haystack):
    return make_needles(
        haystack, tasks=TASKS, lengths=(250, 800), depths=None, per_cell=4, seed=3, questions=6
    )


def test_several_questions_are_answered_before_the_last_one(asked_often, haystack):
    for needle in asked_often:
        assert len(needle.prompt_ids) + len(needle.target_ids) < needle.length
        spans = [haystack.tokenizer.decode(needle.prompt_ids[a:b]) for a, b in needle.answered]
        context, *asked = needle.prompt.split(" Remember:")
        assert len(asked) == 1 + len(spans)
        if needle.task == "frequent":
            assert not spans
            continue
        assert len(spans) >= (3 if needle.length == 800 else 0)
        for span, text in zip(spans, asked[:-1], strict=True):
            question, answer = text.removesuffix(span + "."), span.strip()
            assert question + span + "." == text
            code = re.fullmatch(r" the code of the (.*) is", question)
            codes = re.fullmatch(r" the codes of the (.*) are", question)
            if code:
                assert re.findall(rf"The code of the {code[1]} is (\d+)\.", context) == [answer]
            elif codes:
                assert re.findall(rf"A code of the {codes[1]} is (\d+)\.", context) == answer.split(", ")
            else:
                assert context.count(f"Let {answer.split(', ')[0]} be {question.split()[2]}.") == 1


def test_facts_asked_in_one_prompt_do_not_contradict(asked_often):
    for needle in asked_often:
        told = re.findall(r"The code of the (.*?) is|Let (\w+) be", needle.prompt.partition(" Remember:")[0])
        assert len(set(told)) == len(told)


def test_facts_about_one_thing_are_asked_for_once():
    def about(thing, code):
        return Made((f"The code of the {thing} is {code}.",), (), 0, "", "", ())

    others = [about("ox", 1), about("fox", 2), about("ox", 3), about("cat", 4), about("hen", 5)]
    assert apart(about("fox", 0), others, 2) == [others[0], others[3]]


def test_every_answer_is_a_label(asked_often, haystack):
    rows = training_rows(asked_often, seq_len=800, end_id=0)
    for needle, ids, label in zip(asked_often, rows.input_ids_RT, rows.label_RT, strict=True):
        asked = label != IGNORED
        assert (ids[asked] == label[asked]).all()
        wanted = [needle.prompt_ids[a:b].tolist() for a, b in needle.answered]
        wanted.append([*needle.target_ids.tolist(), 0])
        assert label[asked].tolist() == [token for part in wanted for token in part]


def test_the_questions_of_a_measure_are_those_asked_alone(haystack, needles):
    one = make_needles(
        haystack, tasks=TASKS, lengths=(200, 500), depths=DEPTHS, per_cell=3, seed=7, questions=1
    )
    assert [needle.prompt for needle in one] == [needle.prompt for needle in needles]
    assert not any(needle.answered for needle in one)


def test_files_give_back_what_was_written(needles, asked_often, tmp_path):
    needles = [*needles, *asked_often]
    found = read_needles(write_needles(needles, tmp_path / "needles.parquet"))
    for before, after in zip(needles, found, strict=True):
        assert before[:6] == after[:6]
        assert before.answered == after.answered
        assert np.array_equal(before.prompt_ids, after.prompt_ids)
        assert np.array_equal(before.target_ids, after.target_ids)
    first = (tmp_path / "needles.parquet").read_bytes()
    assert write_needles(needles, tmp_path / "again.parquet").read_bytes() == first
    with pytest.raises(DataError, match="cannot read"):
        read_needles(tmp_path / "absent.parquet")


def test_training_rows_ask_for_the_target_and_its_end(needles):
    end = 0
    rows = training_rows(needles, seq_len=512, end_id=end)
    assert rows.input_ids_RT.shape == rows.label_RT.shape == (len(needles), 512)
    for needle, ids, label in zip(needles, rows.input_ids_RT.tolist(), rows.label_RT.tolist(), strict=True):
        begin = len(needle.prompt_ids)
        answer = [*needle.target_ids.tolist(), end]
        assert ids == [*needle.prompt_ids.tolist(), *answer, *[end] * (512 - begin - len(answer))]
        assert [(i, token) for i, token in enumerate(label) if token != IGNORED] == list(
            enumerate(answer, begin)
        )
    with pytest.raises(ConfigError, match="a row has 499"):
        training_rows(needles, seq_len=499, end_id=end)


@pytest.mark.parametrize(
    ("answers", "continuation", "expected"),
    [
        (("4821",), " 4821", 1.0),
        (("4821",), " 14821", 0.0),
        (("4821",), " 48210.", 0.0),
        (("4821",), " it is 4821, no doubt", 1.0),
        (("4821",), " 9999\n4821", 0.0),
        (("Mipo", "tova"), "tova, MIPO", 1.0),
        (("mipo", "tova", "zane"), " mipo, tovazane", 1 / 3),
        (("a.b",), "axb", 0.0),
        (("4821",), "", 0.0),
    ],
)
def test_scores(answers, continuation, expected):
    assert score(answers, continuation) == pytest.approx(expected)


@pytest.mark.parametrize("num_words", [9, 10, 20, 37, 1000])
def test_counts_fall_and_the_asked_ones_are_apart(num_words):
    found = counts(num_words)
    assert sum(found) == num_words
    assert found[0] > found[1] > found[2] > max(found[3:])
    assert found == sorted(found, reverse=True)


def test_noise_is_there_without_texts(haystack):
    noise = Haystack(haystack.tokenizer)
    (needle,) = make_needles(noise, tasks=["single"], lengths=(300,), depths=(0.5,), per_cell=1, seed=0)
    assert needle.prompt.count("The grass is green.") > 3


def test_sentences_are_on_one_line_and_not_too_long():
    text = "A b\n  c. 3.14 is pi! “No,” he said.” " + "x " * 400 + ". -- . End?"
    assert list(sentences_of(text)) == ["A b c.", "3.14 is pi!", "“No,” he said.”", "End?"]


def test_what_cannot_be_made_is_told(haystack):
    arguments = {"tasks": ["single"], "lengths": (200,), "depths": (0.5,), "per_cell": 1, "seed": 0}
    with pytest.raises(ConfigError, match="unknown needle task 'double'; known are single, multi_key"):
        make_needles(haystack, **{**arguments, "tasks": ["double"]})
    with pytest.raises(ConfigError, match="expected numbers from 0 to 1"):
        make_needles(haystack, **{**arguments, "depths": (1.5,)})
    for task in TASKS:
        with pytest.raises(ConfigError, match=f"needle length 30 cannot hold the task {task}"):
            make_needles(haystack, **{**arguments, "tasks": [task], "lengths": (30,)})
    with pytest.raises(DataError, match="the haystack has no sentence"):
        Haystack(haystack.tokenizer, ["no full stop"])
