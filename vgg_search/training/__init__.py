"""One network: model, recipe, augmentation, the training loop, the device.

torch; no Ray, Optuna or MLflow.
"""
