"""Federated multimodal learning with missing modalities, under DP-SGD and masked sums."""

__version__ = "0.1.0"
