"""What the study notebooks share: methods of forgetting, how they are scored and attacked, many runs, and their tables."""
