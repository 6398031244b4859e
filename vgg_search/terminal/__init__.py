"""What is shown while a search runs, and the state of one on a screen.

rich; no torch, Ray or MLflow.
"""
