"""What an architecture is and costs, and what can be searched.

Standard library alone: no torch, no Optuna.
"""
