"""Packed rows as arrays: cut out of the sources' records and joined, without a loop over tokens.

The bytes of all pieces and of the padding behind them are joined once for the inputs and once,
one token later, for the targets; the rest follows from the pieces' lengths.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from data_pipelines import ledger
from data_pipelines import records
from data_pipelines import sources
from mistral_jax.protocols import Batch

LONG_DOCUMENT_CACHE_BYTES = 64 << 20  # a document of many rows is not read again for each of them


class Rows:
    """Any rows of the run, as a Batch."""

    def __init__(self, opened: Sequence[sources.ArrayRecordSource], order: ledger.Ledger):
        """Join the sources to their order.

        Args:
            opened: in the order of the ledger's sources, all of one tokenizer.
            order: the ledger over their lengths.
        """
        self._sources = list(opened)
        self._order = order
        self._token_bytes = max(source.token_bytes for source in opened)
        self._has_masks = any(source.has_masks for source in opened)
        self._zeros = bytes((order.row_tokens + 1) * self._token_bytes)
        self._ones = b"\1" * order.row_tokens
        self._long: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._long_bytes = 0

    @property
    def order(self) -> ledger.Ledger:
        """The order that the rows follow."""
        return self._order

    def __getstate__(self) -> dict:
        """Leave the cache behind when a worker process gets a copy."""
        return {**self.__dict__, "_long": OrderedDict(), "_long_bytes": 0}

    def again(self) -> "Rows":
        """Return the same rows with open files and a cache of their own, for another thread."""
        return Rows([source.again() for source in self._sources], self._order)

    def batch(self, start_row: int, stop_row: int) -> Batch:
        """Return rows start_row <= row < stop_row of the run."""
        return self.build(self._order.pieces(start_row, stop_row))

    def build(self, plan: ledger.BlockPlan) -> Batch:
        """Return the rows of a plan."""
        row_tokens = self._order.row_tokens
        num_rows = plan.num_rows
        pieces = self._read(plan)
        layout = _Layout(plan, row_tokens)
        tokens = self._join_tokens(pieces, layout, offset=0)
        targets = self._join_tokens(pieces, layout, offset=1)
        segment_ids = np.repeat(layout.segment, layout.length)
        positions = np.arange(num_rows * row_tokens, dtype=np.int32)
        positions -= np.repeat(layout.first, layout.length)
        shape = (num_rows, row_tokens)
        if self._has_masks:
            weights = self._join_masks(pieces, layout)
        else:
            weights = (segment_ids > 0).astype(np.float32)
        positions = positions.reshape(shape)
        for row, used in zip(*layout.short_rows()):
            positions[row, used:] = 0
        return Batch(
            tokens=tokens.reshape(shape),
            targets=targets.reshape(shape),
            loss_weights=weights.reshape(shape),
            positions=positions,
            segment_ids=segment_ids.reshape(shape),
            domain=np.repeat(layout.domain, layout.length).reshape(shape),
        )

    def _read(self, plan: ledger.BlockPlan) -> list[bytes]:
        """Return the record of every piece, each document read once."""
        found: list[bytes] = [b""] * len(plan.document)
        for index, source in enumerate(self._sources):
            mine = np.flatnonzero(plan.source == index)
            if not len(mine):
                continue
            wanted, which = np.unique(plan.document[mine], return_inverse=True)
            got = self._read_source(index, source, wanted)
            for place, number in zip(mine.tolist(), which.tolist()):
                found[place] = got[number]
        return found

    def _read_source(
        self, index: int, source: sources.ArrayRecordSource, wanted: np.ndarray
    ) -> list[bytes]:
        is_long = source.lengths[wanted] > self._order.row_tokens + 1
        if not is_long.any():
            return self._widen(source, source.read_records(wanted.tolist()))
        keys = [(index, document) for document in wanted.tolist()]
        kept = {key: self._long.get(key) for key, long in zip(keys, is_long.tolist()) if long}
        missing = [key for key in keys if kept.get(key) is None]
        new = self._widen(source, source.read_records([document for _, document in missing]))
        fresh = dict(zip(missing, new))
        for key, record in fresh.items():
            if key in kept:
                self._keep(key, record)
        return [fresh[key] if key in fresh else kept[key] or b"" for key in keys]

    def _keep(self, key: tuple[int, int], record: bytes) -> None:
        if key in self._long or len(record) > LONG_DOCUMENT_CACHE_BYTES:
            return
        self._long[key] = record
        self._long_bytes += len(record)
        while self._long_bytes > LONG_DOCUMENT_CACHE_BYTES:
            _, dropped = self._long.popitem(last=False)
            self._long_bytes -= len(dropped)

    def _widen(self, source: sources.ArrayRecordSource, found: list[bytes]) -> list[bytes]:
        if source.token_bytes == self._token_bytes:
            return found
        widened = []
        for record in found:
            example = records.decode_record(record)
            widened.append(
                records.encode_record(
                    example.tokens,
                    example.loss_mask,
                    example.document,
                    token_bytes=self._token_bytes,
                )
            )
        return widened

    def _join_tokens(self, pieces: list[bytes], layout: "_Layout", *, offset: int) -> np.ndarray:
        width = self._token_bytes
        starts = layout.start + offset
        begin = (records.HEADER_BYTES + starts * width).tolist()
        end = (records.HEADER_BYTES + (starts + layout.piece_length) * width).tolist()
        parts: list[bytes] = [b""] * len(layout.length)
        for place, record, first, last in zip(layout.piece_places, pieces, begin, end):
            parts[place] = record[first:last]
        for place, pad in zip(layout.pad_places, layout.pads):
            parts[place] = self._zeros[: pad * width]
        flat = np.frombuffer(b"".join(parts), records.TOKEN_DTYPES[width])
        return flat.astype(np.int32)

    def _join_masks(self, pieces: list[bytes], layout: "_Layout") -> np.ndarray:
        """Return the loss mask of each target; a record without a mask counts everywhere."""
        parts: list[bytes] = [b""] * len(layout.length)
        starts = layout.start.tolist()
        lengths = layout.piece_length.tolist()
        for place, record, start, length in zip(layout.piece_places, pieces, starts, lengths):
            if records.record_has_mask(record):
                first = records.mask_offset(record) + start + 1
                parts[place] = record[first : first + length]
            else:
                parts[place] = self._ones[:length]
        for place, pad in zip(layout.pad_places, layout.pads):
            parts[place] = self._zeros[:pad]
        return np.frombuffer(b"".join(parts), np.uint8).astype(np.float32)


class _Layout:
    """Where pieces and padding lie when the rows are written one after another.

    `length`, `segment`, `first`, `domain` have an entry per piece and one per row's padding, in
    the order of the rows; `piece_places` and `pad_places` say which entries are which.
    """

    def __init__(self, plan: ledger.BlockPlan, row_tokens: int):
        num_rows = plan.num_rows
        counts = np.diff(plan.row_starts)
        row_of = np.repeat(np.arange(num_rows), counts)
        places = np.arange(len(row_of)) + row_of
        pad_places = plan.row_starts[1:] + np.arange(num_rows)
        used = np.bincount(row_of, weights=plan.length, minlength=num_rows).astype(np.int64)
        entries = len(row_of) + num_rows
        self.start = plan.start
        self.piece_length = plan.length
        self.piece_places = places.tolist()
        self.pad_places = pad_places.tolist()
        self.pads = (row_tokens - used).tolist()
        self.length = np.empty(entries, np.int64)
        self.length[places] = plan.length
        self.length[pad_places] = row_tokens - used
        self.segment = np.zeros(entries, np.int32)
        self.segment[places] = np.arange(len(row_of)) - plan.row_starts[row_of] + 1
        self.first = (np.cumsum(self.length) - self.length).astype(np.int32)
        self.domain = np.zeros(entries, np.int32)
        self.domain[places] = plan.source
        self._used = used
        self._row_tokens = row_tokens

    def short_rows(self) -> tuple[list[int], list[int]]:
        """Return the rows that end in padding, and how much of each is used."""
        rows = np.flatnonzero(self._used < self._row_tokens)
        return rows.tolist(), self._used[rows].tolist()
