"""A key-value cache with room for what is to come, for the transformers engine."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from backtranslation import models


class RoomyLayer(DynamicLayer):
    """One layer of keys and values, [rows, heads, length, dimension], kept in buffers that are `room` tokens long.

    transformers' own layer grows by copying itself whole at every token, a third of the time of a step with 32 rows.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, length: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.buffers = keys, values
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.keys.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : start + new.shape[-2]] = new
        self._show(start + key_states.shape[-2])
        return self.keys, self.values

    def reset(self) -> None:
        super().reset()
        del self.buffers

    def crop(self, max_length: int) -> None:
        self._show(max_length)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.keys.shape[-2]
        keys, values = self.buffers
        self.buffers = keys[indices], values[indices]
        self._show(length)


def repeat(prefix: DynamicCache, rows: int, room: int) -> DynamicCache:
    """A cache of its own for `rows` rows that continue the one row of `prefix` by up to `room` tokens."""
    cache, shared = DynamicCache(), prefix.get_seq_length()
    for layer in prefix.layers:
        buffers = []
        for known in (layer.keys, layer.values):
            _, heads, _, dimension = known.shape
            buffer = known.new_empty(rows, heads, shared + room, dimension)
            buffer[:, :, :shared] = known
            buffers.append(buffer)
        cache.layers.append(RoomyLayer(buffers[0], buffers[1], shared))
    return cache


def join(parts: list[DynamicCache], shared: int, room: int) -> DynamicCache:
    """One cache of the rows of all `parts`, with `room` more tokens; empties `parts`.

    Padding to the longest part stands behind the first `shared` tokens, which all rows begin with.
    """
    longest = max(part.get_seq_length() for part in parts)
    whole = DynamicCache()
    for number in range(len(parts[0].layers)):
        buffers = []
        for name in ("keys", "values"):
            pieces = [getattr(part.layers[number], name) for part in parts]
            _, heads, _, dimension = pieces[0].shape
            rows = sum(piece.shape[0] for piece in pieces)
            buffer = pieces[0].new_zeros(rows, heads, longest + room, dimension)
            row = 0
            for piece in pieces:
                at = slice(row, row + piece.shape[0])
                buffer[at, :, :shared] = piece[:, :, :shared]
                buffer[at, :, longest - piece.shape[2] + shared : longest] = piece[:, :, shared:]
                row += piece.shape[0]
            buffers.append(buffer)
        for part in parts:
            part.layers[number].reset()
        # Else the heap would hold all parts beside the whole: what they leave is too small for its layers.
        models.release_memory()
        whole.layers.append(RoomyLayer(buffers[0], buffers[1], longest))
    return whole
