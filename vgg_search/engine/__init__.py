"""Ray: the search, its workers, nodes, checkpoints, DDP, the champion's training.

The only room that imports Ray.
"""
