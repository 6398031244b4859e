"""One search: what to train next and how far, and the record of it.

Optuna; no torch, Ray or MLflow.
"""
