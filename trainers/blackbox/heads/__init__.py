"""Heads: trained here, by ordinary gradients or in closed form, on what came back."""

from .affine import AffineScores
from .residual import FeatureAdapter, PredictionRefinement, mlp

__all__ = ["AffineScores", "FeatureAdapter", "PredictionRefinement", "mlp"]
