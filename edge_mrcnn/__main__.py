"""`python -m edge_mrcnn` is `edge-mrcnn`."""

from edge_mrcnn.cli import entry_point

entry_point()
