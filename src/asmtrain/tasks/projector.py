"""Functions as points in TensorBoard's projector, coloured by what is known of them.

In go vectors and columns of text, out come `tensors.tsv`, `metadata.tsv` and `projector_config.pbtxt` beside
an event file, which a TensorBoard without TensorFlow serves. Cost: text, about 20 bytes a number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from asmtrain.tasks.pools import Floats


def write_projector(
    folder: Path, vectors: Mapping[str, Floats], columns: Mapping[str, Sequence[str]]
) -> None:
    """Write each model's vectors (N, D) into a folder of events; `columns` hold N entries each."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    with SummaryWriter(str(folder)) as writer:
        for model, vectors_ND in vectors.items():
            writer.add_embedding(vectors_ND, metadata=rows, metadata_header=list(columns), tag=model)
    print(f"tensorboard --logdir {folder}    # projector: {', '.join(vectors)}")
