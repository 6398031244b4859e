"""Images and labels as uint8 arrays: sources, split, digest, the bundled sample.

numpy; no torch, no Ray.
"""
