"""Disentanglement metrics on known factors, for dims and for chunks, and statistics that need no labels."""

from diticli.disentanglement.measure import measure_disentanglement
from diticli.disentanglement.report import DisentanglementReport, FactorScores, SkippedFactor, UnitScores
from diticli.disentanglement.statistics import ChunkStatistics, FeatureStatistics, measure_statistics

__all__ = [
    "ChunkStatistics",
    "DisentanglementReport",
    "FactorScores",
    "FeatureStatistics",
    "SkippedFactor",
    "UnitScores",
    "measure_disentanglement",
    "measure_statistics",
]
