"""A tokenizer from the metadata of a GGUF file: keys `tokenizer.ggml.*` of the GGUF specification (ggml repository).

`tokenizer.ggml.model` names the algorithm. "gpt2" is byte-level BPE with merges; `tokenizer.ggml.pre` names the rule
that cuts text into words before merging, and each name stands for one published pre-tokenizer, rebuilt here. "llama" is
SentencePiece BPE: its file has scores instead of merges, and the merges follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from triptych.models.text.tokenizer import Tokenizer, UnsupportedTokenizerError

__all__ = ["chat_template_from_gguf", "eos_ids_from_gguf", "tokenizer_from_gguf"]

# enum llama_token_type in the GGUF specification
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

# Tokens that end a chat turn in the served families; GGUF names only one eos, an instruction-tuned Llama 3 has two.
_END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<|eom_id|>")

# The word rule of Llama 3 (digits in groups of up to three) and of Qwen 2 (single digits), as in their tokenizer.json.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = _WORDS % r"\p{N}{1,3}"
_QWEN2_WORDS = _WORDS % r"\p{N}"


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file from its key-value metadata.

    Raises UnsupportedTokenizerError naming the kinds that are supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}
    if kind not in builders:
        raise UnsupportedTokenizerError(
            f"GGUF tokenizer model {kind!r} is not supported; supported: {', '.join(builders)}"
        )
    pieces = _required(metadata, "tokenizer.ggml.tokens")
    types = _required(metadata, "tokenizer.ggml.token_type")
    backend = builders[kind](metadata, pieces, types)
    backend.add_special_tokens(_added(pieces, types, _CONTROL, special=True))
    backend.add_tokens(_added(pieces, types, _USER_DEFINED, special=False))
    bos, eos = _token(metadata, "bos", pieces), _token(metadata, "eos", pieces)
    prefix = bos if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") else None
    suffix = eos if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    if prefix is not None or suffix is not None:
        _surround(backend, prefix, suffix)
    return Tokenizer(backend, eos_ids=eos_ids_from_gguf(metadata), bos_token=bos, eos_token=eos)


def eos_ids_from_gguf(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a generation, the file's own eos first; empty if it has no vocabulary."""
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    types = metadata.get("tokenizer.ggml.token_type") or ()
    pieces = metadata.get("tokenizer.ggml.tokens") or ()
    control = {pieces[token]: token for token, kind in enumerate(types) if kind == _CONTROL}
    ids = [token for token in named if token is not None] + [
        control[piece] for piece in _END_OF_TURN if piece in control
    ]
    return tuple(dict.fromkeys(ids))


def chat_template_from_gguf(metadata: Mapping[str, Any]) -> str | None:
    return metadata.get("tokenizer.chat_template")


def _byte_level_bpe(metadata: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]) -> RustTokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    known = {
        "smollm": _smollm_words,
        "llama-bpe": lambda: _split_words(_LLAMA3_WORDS),
        "qwen2": lambda: _split_words(_QWEN2_WORDS),
        "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    }
    if pre not in known:
        raise UnsupportedTokenizerError(
            f"GGUF pre-tokenizer {pre!r} is not supported (another rule would tokenise silently wrong); "
            f"supported: {', '.join(known)}"
        )
    merges = [_pair(merge) for merge in _required(metadata, "tokenizer.ggml.merges")]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    # Llama 3 takes a word that is in the vocabulary as one token even where the merges would not reach it.
    backend = RustTokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = known[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _smollm_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _split_words(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _sentencepiece_bpe(metadata: Mapping[str, Any], pieces: Sequence[str], types: Sequence[int]) -> RustTokenizer:
    scores = _required(metadata, "tokenizer.ggml.scores")
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    unknown = _token(metadata, "unknown", pieces)
    backend = RustTokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_from_scores(pieces, types, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    adds_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if adds_space else replace
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] if adds_space else steps)
    return backend


def _merges_from_scores(pieces: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, best-scored piece first.

    SentencePiece always merges the adjacent pair whose union scores highest; ranking the pairs by that score makes a
    BPE with explicit merges do the same. Equal scores (runs of spaces, in Mistral's vocabularies) go leftmost first
    there, so a run grows from its left end: the longer left part ranks first.
    """
    normal = {piece: score for piece, kind, score in zip(pieces, types, scores, strict=True) if kind == _NORMAL}
    merges = [
        (-score, -cut, piece[:cut], piece[cut:])
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    return [(left, right) for *_, left, right in sorted(merges)]


def _surround(backend: RustTokenizer, prefix: str | None, suffix: str | None) -> None:
    template = [token for token in (prefix, "$A", suffix) if token is not None]
    specials = [(token, backend.token_to_id(token)) for token in (prefix, suffix) if token is not None]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)


def _added(pieces: Sequence[str], types: Sequence[int], wanted: int, *, special: bool) -> list[AddedToken]:
    return [
        AddedToken(piece, special=special, normalized=False)
        for piece, kind in zip(pieces, types, strict=True)
        if kind == wanted
    ]


def _token(metadata: Mapping[str, Any], name: str, pieces: Sequence[str]) -> str | None:
    token: int | None = metadata.get(f"tokenizer.ggml.{name}_token_id")
    return pieces[token] if token is not None and 0 <= token < len(pieces) else None


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator or not left or not right:
        raise UnsupportedTokenizerError(f"GGUF merge {merge!r} is not two pieces separated by a space")
    return left, right


def _required(metadata: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = metadata.get(key)
    if value is None:
        raise UnsupportedTokenizerError(f"the GGUF file has no {key}: it holds weights without a usable vocabulary")
    return value
