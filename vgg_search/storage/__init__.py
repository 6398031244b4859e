"""Where files are: the names in a run folder, a folder or a bucket.

Standard library, pyarrow on demand.
"""
