"""Clusters for tests: the session's own Ray as `vgg_search` sees it, and real nodes."""

import runpy
from pathlib import Path

from vgg_search.cluster import Cluster
from vgg_search.storage import Place
from vgg_search.study import Study

EXPERIMENTS = Path(__file__).parents[1] / "experiments" / "cluster"
LocalNodes = runpy.run_path(str(EXPERIMENTS / "local_nodes.py"))["LocalNodes"]


def cluster_of(study: Study) -> Cluster:
    """The session's Ray, for a study that lies in a temporary folder."""
    return Cluster(study.config, Place.of(str(study.folder.parent), study.folder.name))
