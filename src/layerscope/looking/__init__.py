"""Looking at prompts: what a model says, and which tokens its layers would say, without a suite."""
