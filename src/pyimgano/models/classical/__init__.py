"""Classical outlier detectors on embeddings of a frozen backbone: one adapter, ten heads."""
