"""What everybody speaks of: the metric, an epoch's row, a trial's states. Nothing is imported."""
