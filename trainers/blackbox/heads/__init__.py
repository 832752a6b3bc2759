"""Heads: trained here, by ordinary gradients or in closed form, on what came back."""

from .residual import FeatureAdapter, PredictionRefinement, mlp
from .scores import ScoreHead

__all__ = ["FeatureAdapter", "PredictionRefinement", "ScoreHead", "mlp"]
