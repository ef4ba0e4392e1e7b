"""Text comes out token by token as it does at once, and nothing of a stop string ever does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from feedworks.errors import ModelError
from feedworks.ksa.vocabulary import TemplateError, TextStream, Vocabulary
from feedworks.storage import read_json, write_json

from . import served

ANY = st.lists(st.integers(0, served.VOCAB - 3), max_size=40)
PLAIN = st.text(max_size=60).filter(lambda text: not any(each in text for each in served.SPECIAL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> Vocabulary:
    return Vocabulary(folder)


def streamed(vocabulary: Vocabulary, tokens: list[int], stop: list[str]) -> list[str]:
    stream = TextStream(stop)
    parts = []
    for place, token in enumerate(tokens):
        text, stopped = stream.push(vocabulary.bytes_of(token), last=place == len(tokens) - 1)
        parts.append(text)
        if stopped:
            break
    return parts


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


@given(tokens=ANY)
def test_bytes_are_what_the_tokenizer_decodes(
    vocabulary: Vocabulary, theirs: PreTrainedTokenizerFast, tokens: list[int]
) -> None:
    expected = theirs.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert vocabulary.text(tokens) == expected
    assert "".join(streamed(vocabulary, tokens, [])) == expected


@given(text=PLAIN)
def test_text_survives(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.encode(text)
    parts = streamed(vocabulary, tokens, [])
    assert "".join(parts) == text
    assert text.count("\ufffd") == sum(part.count("\ufffd") for part in parts)  # no half characters


@given(before=PLAIN, after=PLAIN, place=st.sampled_from([served.EOS, served.START, served.END]))
def test_a_special_token_that_a_text_spells_out_is_taken_for_it(
    vocabulary: Vocabulary, before: str, after: str, place: int
) -> None:
    tokens = vocabulary.encode(before + served.SPECIAL[place] + after)
    assert tokens == [*vocabulary.encode(before), place, *vocabulary.encode(after)]
    assert vocabulary.text(tokens) == before + after


@given(text=st.text("ab日", max_size=30), stop=st.lists(st.text("ab日", min_size=1, max_size=4), max_size=3))
def test_a_stop_string_ends_the_text_wherever_tokens_end(
    vocabulary: Vocabulary, text: str, stop: list[str]
) -> None:
    parts = streamed(vocabulary, [*vocabulary.encode(text), *vocabulary.encode("b")], stop)
    whole = text + "b"
    ends = [whole.find(each) + len(each) for each in stop if each in whole]
    if not ends:
        assert "".join(parts) == whole
        return
    # The first that is complete counts, from where it begins; of several the one that begins first.
    told = "".join(parts)
    assert whole.startswith(told)
    assert not any(each in told for each in stop)
    assert any(whole[len(told) :].startswith(each) for each in stop)


def test_text_is_held_back_only_while_it_may_be_a_stop_string(vocabulary: Vocabulary) -> None:
    stream = TextStream(["\n\nQ:"])
    said = [stream.push(part.encode()).text for part in ("a", "\n", "\n", "Q", "x", "\n")]
    assert said == ["a", "", "", "", "\n\nQx", ""]
    assert stream.push(b"", last=True).text == "\n"


def test_a_chat_is_the_template_s(vocabulary: Vocabulary) -> None:
    text = vocabulary.chat_text([{"role": "user", "content": "the sea"}])
    assert text == "<|im_start|>user\nthe sea<|im_end|>\n<|im_start|>assistant\n"
    tokens = vocabulary.encode(text, special=False)
    assert tokens.count(served.START) == 2
    assert vocabulary.text([served.START]) == ""


def test_messages_that_the_template_refuses(vocabulary: Vocabulary) -> None:
    with pytest.raises(TemplateError, match="no tools"):
        vocabulary.chat_text([{"role": "tool", "content": "x"}])


def test_ends_of_text_come_from_all_files(folder: Path, tmp_path: Path) -> None:
    served.write_tokenizer(tmp_path, chat=False)
    assert Vocabulary(tmp_path).eos == {served.EOS}
    assert not Vocabulary(tmp_path).has_chat
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [5, served.EOS]})
    write_json(tmp_path / "config.json", {"eos_token_id": 7})
    assert Vocabulary(tmp_path).eos == {5, 7, served.EOS}
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json"):
        Vocabulary(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "cut off", "another kind"])
def test_a_vocabulary_that_cannot_serve(tmp_path: Path, kind: str) -> None:
    served.write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    if kind == "missing":
        path.unlink()
    elif kind == "cut off":
        path.write_text(path.read_text()[:100])
    else:
        write_json(path, read_json(path) | {"decoder": {"type": "WordPiece", "prefix": "#", "cleanup": True}})
    with pytest.raises(ModelError, match=r"tokenizer\.json") as error:
        Vocabulary(tmp_path)
    assert "\n" not in str(error.value)
