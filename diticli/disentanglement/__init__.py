"""Disentanglement metrics on known factors, for dims and for chunks, and statistics that need no labels."""

from diticli.disentanglement.feature_statistics import ChunkStatistics, FeatureStatistics, measure_statistics
from diticli.disentanglement.measure import measure_disentanglement
from diticli.disentanglement.report import DisentanglementReport, FactorScores, UnitScores

__all__ = [
    "ChunkStatistics",
    "DisentanglementReport",
    "FactorScores",
    "FeatureStatistics",
    "UnitScores",
    "measure_disentanglement",
    "measure_statistics",
]
