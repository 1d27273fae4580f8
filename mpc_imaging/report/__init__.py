"""What a run found, for people and programs: metrics.json, report.html, predictions.csv and terminal tables."""
