"""How good and how fast: COCO average precision and latency."""
