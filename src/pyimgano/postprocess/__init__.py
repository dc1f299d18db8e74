"""What is done to anomaly maps before a person looks at them; scores are never touched."""

from .anomaly_map import AnomalyMapPostprocess

__all__ = ["AnomalyMapPostprocess"]
