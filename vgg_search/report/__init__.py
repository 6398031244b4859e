"""report.html: tables, figures, warnings.

plotly and pandas; no torch, Ray or MLflow.
"""
