"""Tokenizers from every source: the toy, Hugging Face folders, GGUF metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.models.text.vocabularies import NORMAL, byte_level_metadata, sentencepiece_metadata
from triptych.models.text.gguf_tokenizer import tokenizer_from_gguf
from triptych.models.text.hf_tokenizer import chat_template_from_folder, save_text_files, tokenizer_from_folder
from triptych.models.text.tokenizer import InvalidTextError, PieceCodec, Tokenizer, UnsupportedTokenizerError
from triptych.models.text.toy import TOY_CHAT_TEMPLATE, toy_tokenizer


@given(st.text())
def test_a_toy_id_is_the_byte_itself(text: str):
    tokenizer = toy_tokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_recognised_in_text_and_skipped_in_decoding():
    tokenizer = toy_tokenizer()
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids == [257, 104, 105, 258]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hi<|im_end|>"
    assert tokenizer.special_ids == {256, 257, 258, 259} and tokenizer.vocab_size == 260


@pytest.mark.parametrize("tokenizer", [toy_tokenizer(), tokenizer_from_gguf(byte_level_metadata())])
def test_joined_token_bytes_are_the_text(tokenizer: Tokenizer):
    text = "hello 12    naïve 🙂<|im_end|>"
    assert b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode(text)).decode() == text


def test_an_id_without_a_piece_adds_nothing():
    tokenizer = toy_tokenizer()
    assert tokenizer.piece(9999) is None and tokenizer.token_bytes(9999) == b"" and tokenizer.decode([104, 9999]) == "h"


def test_a_lone_surrogate_is_named():
    with pytest.raises(InvalidTextError, match="character 2"):
        toy_tokenizer().encode("ab\ud800")


def test_a_folder_round_trips(tmp_path: Path):
    save_text_files(tmp_path, toy_tokenizer(), TOY_CHAT_TEMPLATE)
    reopened = tokenizer_from_folder(tmp_path)
    assert reopened.encode("hé<|im_end|>") == toy_tokenizer().encode("hé<|im_end|>")
    assert (reopened.eos_ids, reopened.bos_token, reopened.eos_token) == ((258, 256), "<|im_start|>", "<|im_end|>")
    assert chat_template_from_folder(tmp_path) == TOY_CHAT_TEMPLATE


def test_eos_ids_join_the_tokenizer_and_the_generation_config(tmp_path: Path):
    save_text_files(tmp_path, toy_tokenizer(), None)
    serialised = {"content": "<|endoftext|>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": serialised, "bos_token": None}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 256]}))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.eos_ids == (256, 258) and tokenizer.eos_token == "<|endoftext|>" and tokenizer.bos_token is None


def test_the_default_one_of_several_chat_templates_is_used(tmp_path: Path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert chat_template_from_folder(tmp_path) == "D"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert chat_template_from_folder(tmp_path) == "J"


def test_saved_truncation_and_padding_do_not_touch_prompts(tmp_path: Path):
    backend = tokenizers.Tokenizer.from_str(toy_tokenizer().to_json())
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_from_folder(tmp_path).encode("abcd") == [97, 98, 99, 100]


def test_unusable_folders_say_why(tmp_path: Path):
    with pytest.raises(UnsupportedTokenizerError, match=r"no tokenizer\.json"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedTokenizerError, match="not a readable"):
        tokenizer_from_folder(tmp_path)


def test_other_decoders_are_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UnsupportedTokenizerError, match="missing"):
        Tokenizer(backend, eos_ids=[])
    backend.decoder = tokenizers.decoders.WordPiece()
    with pytest.raises(UnsupportedTokenizerError, match="WordPiece"):
        Tokenizer(backend, eos_ids=[])


def test_gguf_byte_level_merges_and_cuts_words_as_its_pre_tokenizer_says():
    smollm = tokenizer_from_gguf(byte_level_metadata("smollm"))
    assert [smollm.piece(token) for token in smollm.encode("hello 12")] == ["hell", "o", "Ġ", "1", "2"]
    llama = tokenizer_from_gguf(byte_level_metadata("llama-bpe"))
    assert [llama.piece(token) for token in llama.encode("hello 12")] == ["hell", "o", "Ġ", "12"]
    qwen = tokenizer_from_gguf(byte_level_metadata("qwen2"))
    assert [qwen.piece(token) for token in qwen.encode("hello 12")] == ["hell", "o", "Ġ", "1", "2"]
    assert qwen.encode("e\u0301") == qwen.encode("é") != smollm.encode("e\u0301")
    assert smollm.eos_ids == (261,) and smollm.codec is PieceCodec.BYTE_LEVEL
    assert smollm.decode(smollm.encode("a    b<|im_end|>")) == "a    b"


def test_gguf_bos_is_added_where_the_file_says_so():
    tokenizer = tokenizer_from_gguf(byte_level_metadata() | {"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("a") == [260, 97]
    assert tokenizer.encode("a", add_special_tokens=False) == [97]


def test_gguf_sentencepiece_merges_the_best_scored_pair_first():
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata())
    assert [tokenizer.piece(token) for token in tokenizer.encode("abc")] == ["<s>", "▁a", "bc"]
    assert [tokenizer.piece(token) for token in tokenizer.encode("é", add_special_tokens=False)] == [
        "▁",
        "<0xC3>",
        "<0xA9>",
    ]
    for text in ("abc", " abc  é🙂", "", "x y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.codec is PieceCodec.BYTE_FALLBACK and tokenizer.strips_first_space


def test_gguf_sentencepiece_fills_runs_of_equal_score_from_the_left():
    metadata = sentencepiece_metadata()
    for piece in ("▁▁", "▁▁▁", "▁▁▁▁"):
        metadata["tokenizer.ggml.tokens"].append(piece)
        metadata["tokenizer.ggml.token_type"].append(NORMAL)
        metadata["tokenizer.ggml.scores"].append(-1e9)
    tokenizer = tokenizer_from_gguf(metadata)
    spaces = tokenizer.encode(" " * 6, add_special_tokens=False)
    assert [tokenizer.piece(token) for token in spaces] == ["▁▁▁▁", "▁▁▁"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm'.*smollm"),
        ({"tokenizer.ggml.model": "bert"}, "model 'bert'.*gpt2"),
        ({"tokenizer.ggml.merges": None}, r"no tokenizer\.ggml\.merges"),
        ({"tokenizer.ggml.merges": ["he"]}, "merge 'he'"),
    ],
)
def test_unsupported_gguf_vocabularies_say_what_is_supported(change: dict, message: str):
    with pytest.raises(UnsupportedTokenizerError, match=message):
        tokenizer_from_gguf(byte_level_metadata() | change)
