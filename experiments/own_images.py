"""Two real image sets out of published packages, and a simple baseline for each.

    npm pack emoji-datasource-twitter@16.0.0 && tar xzf emoji-datasource-twitter-16.0.0.tgz
    python experiments/own_images.py make FOLDER package     # FOLDER/digits.npz and FOLDER/emoji/
    python -m vgg_search.run --config experiments/own_images.yaml ...
        --dataset FOLDER/digits.npz --flip false       # or --dataset FOLDER/emoji --resolution 32
    python experiments/own_images.py baseline FOLDER/digits.npz    # or FOLDER/emoji 32

digits: 1,797 grey images of 8 px, handwritten, in scikit-learn's package (UCI, Alpaydin and Kaynak
1998). emoji: Twemoji (CC-BY 4.0, Twitter), 64 px with transparency, without the variants of skin;
the class is the group that Unicode's standard puts it in. The baseline is scikit-learn's logistic
regression on the pixels, on the images that the champion is trained and tested on. Cost: seconds.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from vgg_search.data.source import Reading
from vgg_search.data.splits import load_splits, load_test


def make(folder: Path, package: Path) -> None:
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    images = (digits.images * 255 / 16).round().astype(np.uint8)
    np.savez(folder / "digits.npz", x_train=images, y_train=digits.target)
    for emoji in json.loads((package / "emoji.json").read_text()):
        if emoji["has_img_twitter"] and emoji["category"] != "Component":
            target = folder / "emoji" / emoji["category"]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(package / "img" / "twitter" / "64" / emoji["image"], target)


def baseline(dataset: str, resolution: int | None) -> dict[str, object]:
    """Test accuracy of logistic regression, the best of five strengths on validation."""
    reading = Reading(resolution)
    splits = load_splits(dataset, reading=reading)
    test_images, test_labels = load_test(dataset, reading=reading)
    train, val, whole, test = (
        images.reshape(len(images), -1) / 255
        for images in (splits.train_images, splits.val_images, splits.whole()[0], test_images)
    )
    warnings.simplefilter("ignore", ConvergenceWarning)
    scores = {}
    for strength in (1e-4, 1e-3, 1e-2, 0.1, 1.0):
        model = LogisticRegression(C=strength, max_iter=100).fit(train, splits.train_labels)
        scores[strength] = model.score(val, splits.val_labels)
    best = max(scores, key=scores.__getitem__)
    model = LogisticRegression(C=best, max_iter=100).fit(whole, splits.whole()[1])
    return {
        "dataset": Path(dataset).name,
        "classes": len(splits.info.classes),
        "images": {"train": len(train), "val": len(val), "test": len(test)},
        "largest_class": float(np.bincount(test_labels).max() / len(test_labels)),
        "C": best,
        "val_accuracy": round(scores[best], 4),
        "test_accuracy": round(model.score(test, test_labels), 4),
    }


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        make(*map(Path, arguments))
    else:
        print(json.dumps(baseline(arguments[0], int(arguments[1]) if arguments[1:] else None)))
