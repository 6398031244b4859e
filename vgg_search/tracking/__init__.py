"""What a study tells a tracker (`tracker`, `recorder`, `retention`), and MLflow, which is one.

The only room that imports MLflow, and only where it is needed.
"""
