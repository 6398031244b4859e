"""report.html: tables, figures, warnings.

plotly and Optuna's figures; no torch, Ray or MLflow.
"""
