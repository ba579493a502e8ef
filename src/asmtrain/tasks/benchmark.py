"""What lets others ask the same: the members of every pool, and a lane as corpus, queries and qrels.

`pools.jsonl` holds a line a function of a lane, in the lane's order. The pools follow from it: pool k of n
functions holds the positions k n to (k + 1) n - 1 of those that are asked for, the last pool the last n of
them; a pool of more than are asked for holds the first n positions. A lane's folder is in the layout of BEIR
(Thakur et al. 2021), which MTEB reads: each query has one right document, found among the largest pool.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus_builder.shards import atomic_output

if TYPE_CHECKING:
    from asmtrain.tasks.retrieval import Task


def write_pools(path: Path, tasks: Sequence["Task"]) -> str:
    """Write the members of all lanes; returns the file's sha256, equal for equal pools."""
    lines = (
        {
            "view": task.view,
            "lane": task.lane.name,
            "position": position,
            "key": pair.key,
            "query": pair.query,
            "answer": pair.answer,
            "is_asked": position < task.num_queries,
        }
        for task in tasks
        for position, pair in enumerate(task.pairs)
    )
    return _write_lines(path, lines)


def export(folder: Path, task: "Task", texts: Mapping[str, str]) -> None:
    """Write one lane's `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`.

    Args:
        folder: of all lanes; the lane's own is named after it.
        task: the lane with its pairs.
        texts: body sha256 to text.
    """
    own = folder / f"{task.view}-{task.lane.name}".replace(" ", "-").lower()
    asked = task.pairs[: task.num_queries]
    documents = ((f"{p.key}.{p.answer}", texts[p.answer_body]) for p in task.pairs)
    queries = ((f"{p.key}.{p.query}", texts[p.query_body]) for p in asked)
    _write_lines(own / "corpus.jsonl", ({"_id": name, "title": "", "text": text} for name, text in documents))
    _write_lines(own / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries))
    with atomic_output(own / "qrels" / "test.tsv") as stream:
        stream.write(b"query-id\tcorpus-id\tscore\n")
        for pair in asked:
            stream.write(f"{pair.key}.{pair.query}\t{pair.key}.{pair.answer}\t1\n".encode())


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    with atomic_output(path) as stream:
        for line in lines:
            data = (json.dumps(line) + "\n").encode()
            digest.update(data)
            stream.write(data)
    return digest.hexdigest()
