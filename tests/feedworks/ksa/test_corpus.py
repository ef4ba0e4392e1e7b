"""Documents to tokens and back: byte for byte, whole or absent, and never more than the training split."""

import functools
import itertools
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from feedworks.contracts.files import write_table
from feedworks.contracts.synthetic_text import write_synthetic_text
from feedworks.contracts.text import DOCUMENTS
from feedworks.datasets.folder import open_data
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.ksa import corpus
from feedworks.ksa.corpus import (
    SPECIAL,
    TokenFile,
    copy_tokenizer,
    encode,
    fit_tokenizer,
    load_tokenizer,
    read_documents,
    tokenise,
)

AWKWARD = (
    "Brontë  said:\t“no”.\n\n\n1234 5 — <|endoftext|> \U0001f600 end\u0301 \x07"
    " it's THEY'LL <|im_end|>\n  indented\n\ttabs \n"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_synthetic_text(tmp_path_factory.mktemp("data"), num_documents=20, num_words=200)


@pytest.fixture(scope="module")
def tokenizer_dir(data, tmp_path_factory):
    return fit_tokenizer(data, tmp_path_factory.mktemp("fit") / "tokenizer", vocab_size=400)


SIGNS = "aB1.,' \t\n\r\u00e9\u3000"
_loaded = functools.lru_cache(load_tokenizer)


def folder_of(texts, folder, splits=None):
    rows = {
        "document_id": list(range(len(texts))),
        "title": ["t"] * len(texts),
        "split": splits or ["train"] * len(texts),
        "text": pa.array(texts, pa.large_string()),
    }
    write_table(DOCUMENTS, pa.table(rows), folder)
    return folder


def test_any_text_comes_back_byte_for_byte(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    (ids,) = encode(tokenizer, [AWKWARD])
    assert tokenizer.decode(ids) == AWKWARD
    assert min(ids) >= len(SPECIAL), "text that spells a special token is not one"
    assert max(ids) < len(tokenizer) == 400
    assert tokenizer(" <|endoftext|>")["input_ids"][-1] == tokenizer.eos_token_id, "but whoever asks gets it"


@given(text=st.text(max_size=80))
def test_whatever_the_text_it_comes_back(tokenizer_dir, text):
    tokenizer = _loaded(tokenizer_dir)
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def greedy_dir(tmp_path_factory):
    """Of random signs, so that it has tokens of line ends, spaces and signs in every order."""
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list(SIGNS), 50_000))
    data = folder_of([text], tmp_path_factory.mktemp("signs"))
    return fit_tokenizer(data, tmp_path_factory.mktemp("fit") / "greedy", vocab_size=1500)


@given(text=st.text(alphabet=SIGNS, max_size=120), size=st.integers(4, 40))
def test_no_token_spans_a_cut_after_a_line(greedy_dir, text, size):
    """Cut anywhere the rule allows, the ids are those of the whole text."""
    tokenizer = _loaded(greedy_dir)
    cuts = [i for i in range(2, len(text)) if text[i - 1] == "\n" and text[i - 2].strip() and text[i].strip()]
    borders = [0, *cuts[:: max(1, size // 8)], len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(borders)]
    (whole,) = encode(tokenizer, [text])
    assert [i for ids in encode(tokenizer, parts) for i in ids.tolist()] == whole.tolist()


@given(text=st.text(alphabet="a \n", max_size=200), size=st.integers(2, 30))
def test_parts_are_the_text_and_not_too_long(text, size):
    with mock.patch.object(corpus, "PART_CHARACTERS", size):
        parts = corpus._parts(text)
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts) or text == ""


def test_digits_stand_alone(tokenizer_dir):
    tokenizer = load_tokenizer(tokenizer_dir)
    assert len(encode(tokenizer, ["4821"])[0]) == 4


def test_the_folder_is_what_transformers_reads(tokenizer_dir):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    assert (tokenizer.eos_token, tokenizer.pad_token) == SPECIAL[:2]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_same_documents_give_the_same_tokenizer(data, tokenizer_dir, tmp_path):
    again = fit_tokenizer(data, tmp_path / "again", vocab_size=400)
    for path in tokenizer_dir.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_the_tokenizer_sees_the_training_split_alone(data, tmp_path):
    texts = [document.text for document in read_documents(data, "train")]
    other = folder_of([*texts, "zq zq zq " * 500], tmp_path / "data", ["train"] * len(texts) + ["test"])
    fit = fit_tokenizer(other, tmp_path / "fit", vocab_size=400)
    (ids,) = encode(load_tokenizer(fit), ["zq"])
    assert len(ids) == 2


def test_token_files_hold_every_document_with_its_end(data, tokenizer_dir, tmp_path):
    size = tokenise(data, tokenizer_dir, tmp_path / "tokens")
    tokenizer = load_tokenizer(tokenizer_dir)
    for split in ("train", "valid", "test"):
        documents = list(read_documents(data, split))
        file = TokenFile(tmp_path / "tokens" / f"{split}.bin")
        assert isinstance(file.tokens, np.memmap)
        assert file.tokens.dtype == np.uint16
        assert (file.num_documents, len(file.tokens)) == (size.num_documents[split], size.num_tokens[split])
        assert file.num_documents == len(documents)
        assert file.num_bytes == sum(len(document.text.encode()) for document in documents)
        assert file.starts[0] == 0
        assert file.starts[-1] == len(file.tokens)
        for place, document in enumerate(documents):
            ids = file.document(place)
            assert ids[-1] == file.end_id == tokenizer.eos_token_id
            assert tokenizer.decode(ids[:-1]) == document.text
        assert file.tokens.max() < file.vocab_size == 400
    assert size.num_characters == sum(len(document.text) for document in read_documents(data))


@pytest.mark.real_data
def test_real_essays_come_back_and_are_shorter_in_tokens(real_data, tmp_path):
    raw = real_data / "paul_graham_essays"
    if not raw.is_dir():
        pytest.skip(f"no folder {raw}")
    data = open_data(raw, tmp_path / "data", kind="text")
    fit = fit_tokenizer(data, tmp_path / "fit", vocab_size=4096)
    tokenise(data, fit, tmp_path / "tokens")
    tokenizer = load_tokenizer(fit)
    for split in ("train", "valid", "test"):
        file = TokenFile(tmp_path / "tokens" / split)
        for place, document in enumerate(read_documents(data, split)):
            assert tokenizer.decode(file.document(place)[:-1]) == document.text
        assert file.num_bytes / len(file.tokens) > 3.3, "bytes of a token, held-out essays too"


def test_parts_and_batches_change_nothing(data, tokenizer_dir, tmp_path, monkeypatch):
    texts = [document.text for document in read_documents(data)]
    texts += [AWKWARD * 20, "x" * 3000, "\n\n a\n\nb" * 300]
    folder = folder_of(texts, tmp_path / "data")
    tokenise(folder, tokenizer_dir, tmp_path / "whole")
    monkeypatch.setattr(corpus, "PART_CHARACTERS", 500)
    monkeypatch.setattr(corpus, "BATCH_CHARACTERS", 2_000)
    monkeypatch.setattr(corpus, "READ_ROWS", 1)
    tokenise(folder, tokenizer_dir, tmp_path / "parts")
    whole, parts = (TokenFile(tmp_path / name / "train") for name in ("whole", "parts"))
    decode = load_tokenizer(tokenizer_dir).decode
    assert [decode(parts.document(i)[:-1]) for i in range(len(texts))] == texts
    # Text without lines is cut anywhere, all other exactly where no token spans the cut.
    cut_anywhere = len(texts) - 2
    for place in set(range(len(texts))) - {cut_anywhere, len(texts) - 1}:
        assert parts.document(place).tolist() == whole.document(place).tolist()


@pytest.mark.parametrize(("limit", "dtype"), [(399, np.uint32), (400, np.uint16)])
def test_large_vocabularies_take_four_bytes(data, tokenizer_dir, tmp_path, monkeypatch, limit, dtype):
    monkeypatch.setattr(corpus, "TWO_BYTES", limit)
    tokenise(data, tokenizer_dir, tmp_path / "tokens")
    assert TokenFile(tmp_path / "tokens" / "valid").tokens.dtype == dtype


def test_ids_with_holes_between_them_fit_their_file(data, tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<e>": 1, "the": 70_000}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>").save_pretrained(tmp_path / "holes")
    tokenise(data, tmp_path / "holes", tmp_path / "tokens")
    file = TokenFile(tmp_path / "tokens" / "train")
    assert file.vocab_size == 70_001
    assert set(file.tokens.tolist()) == {0, 1, 70_000}


def test_a_copied_tokenizer_gives_the_same_ids(tokenizer_dir, tmp_path):
    copied = load_tokenizer(copy_tokenizer(tokenizer_dir, tmp_path / "copy"))
    assert (
        encode(copied, [AWKWARD])[0].tolist() == encode(load_tokenizer(tokenizer_dir), [AWKWARD])[0].tolist()
    )


def test_an_empty_split_is_a_file_without_tokens(tokenizer_dir, tmp_path):
    tokenise(folder_of(["One.\n"], tmp_path / "data"), tokenizer_dir, tmp_path / "tokens")
    file = TokenFile(tmp_path / "tokens" / "test")
    assert (file.num_documents, len(file.tokens)) == (0, 0)


def test_an_error_leaves_the_earlier_tokens(data, tokenizer_dir, tmp_path, monkeypatch):
    out = tmp_path / "tokens"
    tokenise(data, tokenizer_dir, out)
    before = (out / "train.bin").read_bytes()
    monkeypatch.setattr(corpus, "encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenise(data, tokenizer_dir, out)
    assert (out / "train.bin").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("train.bin", lambda path: path.write_bytes(path.read_bytes()[:-2]), r"train\.bin has .* bytes, not"),
        (
            "train.starts",
            lambda path: path.unlink(),
            r"train\.starts is missing; remove its folder and tok",
        ),
        ("index.json", lambda path: path.write_text("{}"), r"index\.json does not tell of train"),
        ("index.json", lambda path: path.unlink(), r"index\.json is missing"),
    ],
)
def test_damaged_token_files_are_told(data, tokenizer_dir, tmp_path, name, damage, said):
    tokenise(data, tokenizer_dir, tmp_path / "tokens")
    damage(tmp_path / "tokens" / name)
    with pytest.raises(DataError, match=said):
        TokenFile(tmp_path / "tokens" / "train.bin")


def test_what_is_no_tokenizer_is_told(data, tokenizer_dir, tmp_path):
    with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(tmp_path)
    load_tokenizer(tokenizer_dir).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="has no end of text"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="expected at least 260"):
        fit_tokenizer(data, tmp_path / "fit", vocab_size=259)


def test_a_corpus_without_training_documents_is_told(tokenizer_dir, tmp_path):
    data = folder_of(["One.\n"], tmp_path / "data", ["test"])
    with pytest.raises(DataError, match="no documents of the split train"):
        fit_tokenizer(data, tmp_path / "fit", vocab_size=300)
    with pytest.raises(DataError, match="cannot read"):
        tokenise(tmp_path / "absent", tokenizer_dir, tmp_path / "tokens")
