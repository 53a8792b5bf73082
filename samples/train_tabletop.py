"""Train the bundled model on generated pictures of a table. About an hour on two cores.

`python samples/train_tabletop.py`, or on all cores and faster `torchrun --nproc-per-node 2 samples/train_tabletop.py`;
both go on where they were interrupted.
"""

import logging
import os
import sys
import time
from pathlib import Path

from edge_mrcnn.training.tabletop.writer import write_pictures
from edge_mrcnn.training.train import TrainOptions, train

SETS = {Path("data/train"): (1, 4000), Path("data/val"): (2, 300)}  # folder: seed, pictures

OPTIONS = TrainOptions(
    out=Path("runs/tabletop"),
    val=Path("data/val"),
    epochs=13,
    small_epochs=4,
    batch_size=8 // int(os.environ.get("WORLD_SIZE", "1")),
    threads=0 if "WORLD_SIZE" not in os.environ else 1,
    val_images=60,
    resume=True,
)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for folder, (seed, count) in SETS.items():
        if int(os.environ.get("RANK", "0")) == 0 and not folder.exists():
            write_pictures(folder, seed, count, (480, 640), os.cpu_count() or 1)
        while not folder.exists():  # another process writes it, and it appears complete
            time.sleep(1)
    result = train("maskrcnn_edge", "data/train", OPTIONS)
    print(f"{result.best}: {result.figures}", file=sys.stderr)
