"""What trains the two models: rollouts, rewards, losses, phases, and what is checked on the way."""
