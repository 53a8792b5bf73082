"""How frames flow through a run: from lanes into batches, through the network, into the sinks.

`edge_mrcnn.runtime.pipeline` is the public face; docs/adr/0017 tells who owns which thread, and why.
"""

from __future__ import annotations
