import pytest
import torch

from tunesmith.engines import row_cache
from tunesmith.engines.row_cache import STEP, RowCache

CPU = torch.device("cpu")


def _filled(lengths, heads_of_layer, room=10):
    """A cache after its prompts were read in two packs, and what it should hold: layer -> keys of each row, (G, n, 4)."""
    cache = RowCache(lengths, room, CPU)
    generator = torch.Generator().manual_seed(0)
    held = {layer: [] for layer in heads_of_layer}
    half = len(lengths) // 2
    for rows in (range(half), range(half, len(lengths))):
        borders, end = [], 0
        for row in rows:
            borders.append((row, end, end + lengths[row]))
            end += lengths[row]
        cache.take_pack(borders)
        for layer, heads in heads_of_layer.items():
            key_1GTK = torch.randn(1, heads, end, 4, generator=generator)
            assert cache.update(key_1GTK, -key_1GTK, layer)[0] is key_1GTK  # attention over a pack reads the pack
            held[layer] += [key_1GTK[0, :, start:end] for _, start, end in borders]
    return cache, held, generator


@pytest.mark.parametrize("bin_cost", [0, 256])
@pytest.mark.parametrize("full", [False, True])
def test_rows_that_grow_and_leave_keep_their_own_tokens(monkeypatch, bin_cost, full):
    """Against a list of rows: layers of different widths, bins of different lengths, the last rows moving into holes, bins
    that are full while others are not."""
    monkeypatch.setattr(row_cache, "BIN_COST", bin_cost)
    if full:
        monkeypatch.setattr(row_cache, "_capacity", lambda length, room: length + min(room, 2))
    lengths = [1, 3, 31, 32, 33, 60, 64, 200]
    cache, held, generator = _filled(lengths, {0: 2, 3: 1})
    grown, grow = [], RowCache._grow
    monkeypatch.setattr(RowCache, "_grow", lambda self: (grown.append(self), grow(self)))
    for keep in (range(8), range(8), [0, 2, 3, 5, 6, 7], [1, 4, 5], [1, 2], [0]):
        order = cache.keep_rows(keep)
        assert sorted(order) == sorted(keep)
        held = {layer: [rows[row] for row in order] for layer, rows in held.items()}
        step = cache.take_step()
        cache.take(1)
        assert step.place_B.tolist() == [keys.shape[1] for keys in held[0]]
        for layer, rows in held.items():
            heads = rows[0].shape[0]
            new_BG1K = torch.randn(len(rows), heads, 1, 4, generator=generator)
            keys_11XK, values_11XK = cache.update(new_BG1K, -new_BG1K, layer)
            held[layer] = [torch.cat([keys, new], 1) for keys, new in zip(rows, new_BG1K, strict=True)]
            seen = 0
            for part in step.parts:
                assert full or part.width % STEP == 0
                key_bGWK, value_bGWK = part.of(keys_11XK, heads), part.of(values_11XK, heads)
                assert key_bGWK.is_contiguous() and value_bGWK.is_contiguous()  # else a bf16 product copies them
                unseen_bW = step.unseen(part, 0, None)
                for row in range(part.first, part.last):
                    at = row - part.first
                    torch.testing.assert_close(key_bGWK[at][:, ~unseen_bW[at]], held[layer][row], rtol=0, atol=0)
                    torch.testing.assert_close(value_bGWK[at], -key_bGWK[at], rtol=0, atol=0)
                    seen += 1
            assert seen == len(rows)
    assert len(grown) == 2 * full  # two slots of room, six steps


def test_a_window_counts_the_shared_tokens():
    cache, _, _ = _filled([2, 5], {0: 1})
    step = cache.take_step()
    (part,) = step.parts
    seen = ~step.unseen(part, 3, 4)  # positions -3, -2, -1 are shared
    assert [row.nonzero()[:, 0].sub(3).tolist() for row in seen] == [[-1, 0, 1, 2], [2, 3, 4, 5]]


def test_short_rows_do_not_pay_for_long_ones():
    lengths = [40] * 20 + [700] * 3
    cache = RowCache(lengths, 16, CPU)
    assert [(part.last - part.first, part.width) for part in cache.take_step().parts] == [(20, 64), (3, 736)]
    few = RowCache([30, 40, 100], 16, CPU)  # a bin of its own would cost more than the padding
    assert [part.last - part.first for part in few.take_step().parts] == [3]
