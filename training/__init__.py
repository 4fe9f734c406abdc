"""Everything that produces a checkpoint: the force stage, the bias stage, evaluation, reports."""
