"""Images and labels as uint8 arrays: the sources, the split, the digest, the bundled sample.

numpy; no torch, no Ray. A data set is one file here, with a `SOURCE` (`source.Source`), and a line
of `records.DATASETS`.
"""
