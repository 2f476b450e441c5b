"""The network: plain PyTorch. Nothing here knows how it is trained."""

from __future__ import annotations

from torch import Tensor, nn


class DigitsNet(nn.Module):
    """A small convolutional network.

    Args:
        channels: Width of the first two convolutions; the third is twice as wide.
        dropout: Share of the features dropped before the last layer while training, 0..1.
    """

    def __init__(self, channels: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(1, channels),
            _convolution(channels, channels),
            nn.MaxPool2d(2),
            _convolution(channels, 2 * channels),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * channels * 4 * 4, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(batch, 10)` float of images `(batch, 1, 8, 8)` float."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
