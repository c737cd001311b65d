"""Ragged paged attention against a brute-force oracle that loops over queries and positions in float64."""

import jax
import numpy as np
import pytest

from triptych.models.attention import ragged_paged_attention, ragged_paged_cross_attention

PAGE_SIZE = 4


def oracle(
    q: np.ndarray,
    k_pages: np.ndarray,
    v_pages: np.ndarray,
    kv_lens: np.ndarray,
    table: np.ndarray,
    cu_q_lens: np.ndarray,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> np.ndarray:
    out = np.zeros(q.shape)
    group = q.shape[1] // k_pages.shape[2]
    for row in range(len(kv_lens)):
        start, stop = cu_q_lens[row], cu_q_lens[row + 1]
        if kv_lens[row] == 0:
            continue
        for token in range(start, stop):
            position = kv_lens[row] - (stop - start) + token - start
            seen = [p for p in range(position + 1) if window is None or p > position - window]
            at = [(table[row][p // PAGE_SIZE], p % PAGE_SIZE) for p in seen]
            for head in range(q.shape[1]):
                k = np.array([k_pages[page, offset, head // group] for page, offset in at], np.float64)
                v = np.array([v_pages[page, offset, head // group] for page, offset in at], np.float64)
                scores = k @ q[token, head].astype(np.float64) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max())
                out[token, head] = weights @ v / weights.sum()
    return out


def random_batch(
    rng: np.random.Generator, decode_rows: int, ragged_rows: int, max_q_len: int, ragged_tokens: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """kv_lens, table and cu_q_lens of live and padding rows, on shuffled pages; and the number of pages."""
    rows = decode_rows + ragged_rows
    q_lens = np.ones(rows, np.int32)
    kv_lens = rng.integers(1, width * PAGE_SIZE + 1, rows)
    kv_lens[:decode_rows][rng.random(decode_rows) < 0.25] = 0
    left = ragged_tokens
    for row in range(decode_rows, rows):
        q_lens[row] = min(int(rng.integers(0, max_q_len + 1)), left, width * PAGE_SIZE)
        left -= q_lens[row]
        kv_lens[row] = max(kv_lens[row], q_lens[row]) if q_lens[row] else 0
    pages = 1 + rows * width
    table = rng.permutation(np.arange(1, pages)).reshape(rows, width)
    used = -(-kv_lens // PAGE_SIZE)
    table[np.arange(width)[None] >= used[:, None]] = 0
    return (
        kv_lens.astype(np.int32),
        table.astype(np.int32),
        np.concatenate(([0], q_lens.cumsum())).astype(np.int32),
        pages,
    )


@pytest.mark.parametrize(
    ("decode_rows", "ragged_rows", "max_q_len", "ragged_tokens", "width", "kv_heads", "group"),
    [
        (4, 0, 1, 0, 10, 1, 4),
        (1, 0, 1, 0, 80, 3, 3),
        (1, 0, 1, 0, 80, 4, 4),
        (0, 3, 9, 20, 10, 3, 1),
        (3, 2, 7, 12, 40, 2, 3),
        (1, 2, 140, 200, 40, 1, 2),
    ],
    ids=[
        "decode",
        "a lone row of few heads",
        "a lone row of many heads",
        "ragged",
        "mixed over several blocks",
        "more queries than a block",
    ],
)
@pytest.mark.parametrize(("window", "soft_cap"), [(None, None), (5, None), (37, 2.0)])
def test_attention_equals_the_oracle_and_padding_gets_zeros(
    decode_rows: int,
    ragged_rows: int,
    max_q_len: int,
    ragged_tokens: int,
    width: int,
    kv_heads: int,
    group: int,
    window: int | None,
    soft_cap: float | None,
) -> None:
    rng = np.random.default_rng((decode_rows, ragged_rows, kv_heads, window or 0))
    head_dim, scale = 6, 0.7
    attend = jax.jit(
        ragged_paged_attention, static_argnames=("decode_rows", "max_q_len", "scale", "window", "soft_cap")
    )
    for _ in range(2 if max_q_len > 100 else 5):
        kv_lens, table, cu_q_lens, pages = random_batch(rng, decode_rows, ragged_rows, max_q_len, ragged_tokens, width)
        q = rng.standard_normal((decode_rows + ragged_tokens, kv_heads * group, head_dim)).astype(np.float32)
        k_pages, v_pages = (
            rng.standard_normal((pages, PAGE_SIZE, kv_heads, head_dim)).astype(np.float32) for _ in range(2)
        )
        expected = oracle(q, k_pages, v_pages, kv_lens, table, cu_q_lens, scale, window, soft_cap)
        for row, length in enumerate(kv_lens):
            # What lies behind a row's last token is someone's leavings.
            page, offset = divmod(int(length), PAGE_SIZE)
            if offset:
                k_pages[table[row, page], offset:] = np.nan
                v_pages[table[row, page], offset:] = np.nan
        k_pages[0] = v_pages[0] = np.nan
        out = attend(
            q,
            k_pages,
            v_pages,
            kv_lens,
            table,
            cu_q_lens,
            decode_rows=decode_rows,
            max_q_len=max_q_len,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
        )
        np.testing.assert_allclose(np.asarray(out), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("decode_rows", "q_lens", "kv_lens"),
    [
        (3, [], [7, 0, 40]),
        (1, [], [39]),
        (0, [5, 0, 3], [2, 0, 40]),
        (2, [9, 140], [13, 40, 1, 33]),
    ],
    ids=["decode", "a lone row", "more queries than entries", "mixed, more queries than a block"],
)
@pytest.mark.parametrize("group", [1, 2])
def test_cross_attention_sees_all_of_its_row(
    decode_rows: int, q_lens: list[int], kv_lens: list[int], group: int
) -> None:
    rng, kv_heads, width = np.random.default_rng(len(q_lens)), 2, 10
    ends = np.concatenate(([0], np.cumsum([1] * decode_rows + q_lens))).astype(np.int32)
    tokens = int(ends[-1]) + (4 if q_lens else 0)  # padding lies behind the last row
    q = rng.standard_normal((tokens, kv_heads * group, 6)).astype(np.float32)
    rows = len(kv_lens)
    table = rng.permutation(np.arange(1, 1 + rows * width)).reshape(rows, width).astype(np.int32)
    k_pages, v_pages = (
        rng.standard_normal((1 + rows * width, PAGE_SIZE, kv_heads, 6)).astype(np.float32) for _ in range(2)
    )
    expected = np.zeros(q.shape)
    for row, length in enumerate(kv_lens):
        k, v = (pages[table[row]].reshape(-1, kv_heads, 6)[:length] for pages in (k_pages, v_pages))
        for token in range(ends[row], ends[row + 1]) if length else ():
            for head in range(q.shape[1]):
                weights = np.exp(k[:, head // group].astype(np.float64) @ q[token, head] * 0.7)
                expected[token, head] = weights @ v[:, head // group] / weights.sum()
        for pages in (k_pages, v_pages):
            pages[table[row]] = np.where(
                (np.arange(width * PAGE_SIZE) < length).reshape(width, PAGE_SIZE, 1, 1), pages[table[row]], np.nan
            )
    attend = jax.jit(ragged_paged_cross_attention, static_argnames=("decode_rows", "max_q_len", "scale"))
    out = attend(
        q,
        k_pages,
        v_pages,
        np.array(kv_lens, np.int32),
        table,
        ends,
        decode_rows=decode_rows,
        max_q_len=max([1, *q_lens]),
        scale=0.7,
    )
    np.testing.assert_allclose(np.asarray(out), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("attention", [ragged_paged_attention, ragged_paged_cross_attention])
@pytest.mark.parametrize(("tokens", "rows", "decode_rows"), [(4, 2, 3), (2, 4, 3), (4, 2, 2)])
def test_contradicting_static_sizes_are_refused(attention, tokens: int, rows: int, decode_rows: int) -> None:
    q, pages = np.zeros((tokens, 2, 4), np.float32), np.zeros((3, PAGE_SIZE, 1, 4), np.float32)
    with pytest.raises(ValueError, match="decode"):
        attention(
            q,  # pyright: ignore[reportArgumentType]
            pages,  # pyright: ignore[reportArgumentType]
            pages,  # pyright: ignore[reportArgumentType]
            np.zeros(rows, np.int32),  # pyright: ignore[reportArgumentType]
            np.zeros((rows, 2), np.int32),  # pyright: ignore[reportArgumentType]
            np.zeros(rows + 1, np.int32),  # pyright: ignore[reportArgumentType]
            decode_rows=decode_rows,
            max_q_len=4,
            scale=1.0,
        )
