"""datatrove's local executor: filter and its four MinHash stages over one folder of JSONL.

Its signatures use its English word tokenizer (spaCy), which takes most of the time.
`python datatrove_dedup.py IN_FOLDER OUT_FOLDER BANDS ROWS NGRAM`; one task, one worker.
"""

import sys
from pathlib import Path

import document_filter
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import minhash
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main() -> None:
    """Run the stages one after the other."""
    source, target = sys.argv[1], Path(sys.argv[2])
    bands, rows, ngram = (int(value) for value in sys.argv[3:6])
    work = target / "work"
    config = minhash.MinhashConfig(n_grams=ngram, num_buckets=bands, hashes_per_bucket=rows)

    def read() -> list:
        return [
            JsonlReader(source, glob_pattern="*.jsonl"),
            LambdaFilter(lambda document: document_filter.is_good(document.text)),
        ]

    stages = {
        "signatures": [
            *read(),
            minhash.MinhashDedupSignature(str(work / "signatures"), config=config),
        ],
        "buckets": [
            minhash.MinhashDedupBuckets(
                str(work / "signatures"), str(work / "buckets"), config=config
            )
        ],
        "cluster": [
            minhash.MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)
        ],
        "filter": [
            *read(),
            minhash.MinhashDedupFilter(str(work / "remove")),
            JsonlWriter(str(target / "kept"), compression=None),
        ],
    }
    for name, pipeline in stages.items():
        tasks = bands if name == "buckets" else 1
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=1, logging_dir=str(work / "logs" / name)
        ).run()


if __name__ == "__main__":
    main()
