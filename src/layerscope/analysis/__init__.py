"""What the rows of a run show: milestones, gates, confirmation, audits, statistics, guidance, the verdict."""
