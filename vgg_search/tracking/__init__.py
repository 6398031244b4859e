"""MLflow: outbox, sender, registry, recorder.

The only room that imports MLflow, and only where it is needed.
"""
