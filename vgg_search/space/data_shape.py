"""What the data asks of a network and its training, whatever the images show."""

from dataclasses import dataclass

MOST_SIDE = 64  # px; larger images are made smaller unless a resolution is asked for


@dataclass(frozen=True)
class DataShape:
    """Of the data set that an experiment trains on; until it has been read, Fashion-MNIST's."""

    side: int = 28
    """px of the images as they lie in memory."""
    channels: int = 1
    classes: int = 10
    flip: bool = True
    """Whether an image and its mirror image show the same."""
    train_images: int = 50_000
    """Not held out for validation."""
    val_images: int = 10_000

    @property
    def resolution(self) -> int:
        """px that a network sees where no other is asked for."""
        return min(self.side, MOST_SIDE)

    def network(self) -> dict[str, int]:
        """Arguments of `training.model.VGG`."""
        return {"in_channels": self.channels, "num_classes": self.classes}


ASSUMED = DataShape()  # until the data has been read
