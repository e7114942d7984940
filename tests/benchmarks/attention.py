"""CPU seconds of the attention of a block-causal learner's row [noisy ; clean]: one dense mask ÷ pieces of it.

    python tests/benchmarks/attention.py [--length 1024] [--block 32] [--json FILE]

Forward and backward, both forms in one process by turns, medians; the results are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from unigrpo.models.layers.attention import Visible, attend, mask_pieces, piece_bounds
from unigrpo.models.layers.block_cache import doubled_rows


def seconds(heads: tuple[torch.Tensor, ...], is_visible: Visible) -> float:
    start_s = time.process_time()
    attend(*heads, is_visible).square().sum().backward()
    return time.process_time() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024, help="of the row before it is doubled")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    positions = torch.arange(options.length).repeat(2)[None]
    rows = partial(doubled_rows, positions, options.block, None)
    length = options.length
    dense = torch.cat([rows(0, length), rows(length, 2 * length)], dim=1)[:, None]
    pieces = mask_pieces(rows, [*piece_bounds(0, length), *piece_bounds(length, 2 * length)])
    generator = torch.Generator().manual_seed(0)
    heads = tuple(torch.randn(1, count, 2 * length, 64, generator=generator, requires_grad=True) for count in (8, 4, 4))
    torch.testing.assert_close(attend(*heads, dense), attend(*heads, pieces), atol=1e-4, rtol=1e-4)
    taken = {"dense": [], "pieces": []}
    for _ in range(options.repeats):
        taken["dense"].append(seconds(heads, dense))
        taken["pieces"].append(seconds(heads, pieces))
    dense_s, pieces_s = (statistics.median(values) for values in taken.values())
    ratio = dense_s / pieces_s
    print(f"dense {dense_s:.3f} s, pieces {pieces_s:.3f} s, ratio {ratio:.2f} (one thread, 2 x {length})")
    if options.json:
        options.json.write_text(json.dumps([{"name": "doubled_row_attention", "ratio": ratio}]))


if __name__ == "__main__":
    main()
