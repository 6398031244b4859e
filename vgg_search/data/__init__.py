"""Images and labels as uint8 arrays: the sources, the split, the digest, the bundled sample.

numpy and Pillow; torchvision, and torch with it, inside the functions that read its layout; no Ray.
A data set is a `Source` in a file's `SOURCES`, and a line of `records.DATASETS`. Image files are
decoded in `decoding.py` alone.
"""
