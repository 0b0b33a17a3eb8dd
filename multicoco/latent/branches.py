"""Several texts after each prompt of a batch in one pass over the language model: what they begin with is run once.

The texts of a prompt are a tree. Its root is the prompt's last column; every other node is a column that holds a token
and comes after its parent. A column sees the prompt, where it lies in the static cache, and the columns that it comes
after.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from multicoco.latent.cache import StaticKVCache

_ROOT = 0


class Tree:
    """The texts of one prompt.

    Attributes:
        tokens: by column; that of the root is never read.
        depth: by column, how far behind the root.
        comes_after: by column, itself and all that it comes after.
    """

    def __init__(self) -> None:
        self.tokens, self.depth, self.comes_after = [0], [0], [[_ROOT]]
        self._children: dict[tuple[int, int], int] = {}  # by column and token

    def add(self, text: Sequence[int]) -> list[int]:
        """The columns that a text's tokens are read off, each one's: the root, and those of all tokens but the last."""
        columns = [_ROOT][: len(text)]
        for token in text[:-1]:
            parent = columns[-1]
            child = self._children.setdefault((parent, token), len(self.tokens))
            if child == len(self.tokens):
                self.tokens.append(token)
                self.depth.append(self.depth[parent] + 1)
                self.comes_after.append([*self.comes_after[parent], child])
            columns.append(child)
        return columns


class Branches:
    """A batch of trees as a segment (`latent.cache.Segment`) behind its prompts, (B, M) columns; nothing is written.

    Args:
        trees: of the rows.
        cache: of the prompts.
        visible: (B, L) the columns of the prompts that may be seen; the last of them is the root.

    Attributes:
        tokens, depth: (B, M), as of `Tree`; 0 at padding.
    """

    def __init__(self, trees: Sequence[Tree], cache: StaticKVCache, visible: Tensor):
        self.cache = cache
        self.length = visible.shape[1] - 1
        width = max(len(tree.tokens) for tree in trees)
        tokens, depth = torch.zeros(2, len(trees), width, dtype=torch.long)
        sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself: nothing divides by 0
        for row, tree in enumerate(trees):
            tokens[row, : len(tree.tokens)] = torch.tensor(tree.tokens)
            depth[row, : len(tree.depth)] = torch.tensor(tree.depth)
            for column, seen in enumerate(tree.comes_after):
                sees[row, column, seen] = True
        self.tokens, self.depth, sees = (x.to(visible.device) for x in (tokens, depth, sees))
        of_prompt = visible[:, None, : self.length].bool().expand(-1, width, -1)
        root = sees[..., :1] & visible[:, None, -1:].bool() | torch.eye(width, 1, dtype=torch.bool, device=sees.device)
        self.sees = torch.cat([of_prompt, root, sees[..., 1:]], dim=-1)  # [B, M, L - 1 + M]
        self._masks: dict[int | None, Tensor] = {}  # by the window

    def attend(
        self, layer_index: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """q (B, H, M, D), k and v (B, H_kv, M, D) -> (B, H, M, D)."""
        prompt = self.cache.layers[layer_index]
        keys = torch.cat([prompt.keys[:, :, : self.length], k], dim=2)
        values = torch.cat([prompt.values[:, :, : self.length], v], dim=2)
        groups = q.shape[1] // k.shape[1]
        # the queries that share a head of keys stand one below the other, so that no key is copied for them
        stacked = q.unflatten(1, (-1, groups)).flatten(2, 3)  # [B, H_kv, groups * M, D]
        mask = self._mask(window)[:, None].repeat(1, 1, groups, 1)
        if cap is None:
            out = scaled_dot_product_attention(stacked, keys, values, attn_mask=mask, scale=scale)
        else:
            scores = cap * torch.tanh(scale * stacked @ keys.mT / cap)
            wide = torch.promote_types(q.dtype, torch.float32)
            weights = scores.masked_fill_(~mask, -torch.inf).softmax(-1, dtype=wide)
            out = weights.to(q.dtype) @ values
        by_head: Tensor = out.unflatten(2, (groups, -1))
        return by_head.flatten(1, 2)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            mask = self.sees
            if window is not None:  # a column sees so many columns of its row, itself among them
                of_prompt = torch.arange(self.length, device=mask.device).expand(len(mask), -1)
                place = torch.cat([of_prompt, self.length + self.depth], dim=1)  # [B, L - 1 + M], of the keys
                mask = mask & (place[:, None] > place[:, self.length :, None] - window)
            self._masks[window] = mask
        return self._masks[window]
