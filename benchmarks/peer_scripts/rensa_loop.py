"""The hand-written loop: JSONL in, filter, exact and near-duplicates by rensa, JSONL out.

One pass with everything in memory but the texts, one pass to write; the same bands and the same
check of pairs as ours. `python rensa_loop.py IN_FOLDER OUT_FOLDER BANDS ROWS NGRAM MIN_ESTIMATE`.
"""

import collections
import hashlib
import json
import sys
from pathlib import Path

import document_filter
import numpy as np
from rensa import RMinHash


def main() -> None:
    """Run the loop over all files of a folder."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    num_bands, num_rows, ngram = (int(value) for value in sys.argv[3:6])
    min_estimate = float(sys.argv[6])
    files = sorted(source.glob("*.jsonl"))
    seen: set[bytes] = set()
    places, signatures = [], []
    for number, file in enumerate(files):
        with file.open() as lines:
            for row, line in enumerate(lines):
                text = json.loads(line)["text"]
                if not document_filter.is_good(text):
                    continue
                digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                words = text.lower().split()
                made = RMinHash(num_perm=num_bands * num_rows, seed=1)
                made.update(
                    [
                        " ".join(words[at : at + ngram])
                        for at in range(max(1, len(words) - ngram + 1))
                    ]
                )
                places.append((number, row))
                signatures.append(np.array(made.digest(), np.uint32))
    gone = find_near(np.array(signatures), num_bands, min_estimate)
    kept = {place for which, place in enumerate(places) if which not in gone}
    for number, file in enumerate(files):
        with file.open() as lines, (target / file.name).open("w") as out:
            out.writelines(line for row, line in enumerate(lines) if (number, row) in kept)


def find_near(signatures: np.ndarray, num_bands: int, min_estimate: float) -> set[int]:
    """Return the numbers of documents that are near an earlier one, by union-find over buckets."""
    parents = list(range(len(signatures)))

    def find(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for band in np.split(signatures, num_bands, axis=1):
        buckets = collections.defaultdict(list)
        for number, values in enumerate(band):
            buckets[values.tobytes()].append(number)
        for members in buckets.values():
            for place, member in enumerate(members[1:], 1):
                for other in members[max(0, place - 8) : place]:
                    one, two = find(member), find(other)
                    alike = one == two or np.mean(signatures[member] == signatures[other])
                    if one != two and alike >= min_estimate:
                        parents[max(one, two)] = min(one, two)
    return {number for number in range(len(signatures)) if find(number) != number}


if __name__ == "__main__":
    main()
