"""``swirl export`` and ``swirl push``: a run's models for others."""
