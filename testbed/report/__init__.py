"""What is made from a run's events, as often as one likes: tables and `summary.json`, `report.html` with its parts, figures for a paper."""
