"""A champion's files: save, load, predict, evaluate, export.

torch and safetensors; no Ray, Optuna or MLflow.
"""
