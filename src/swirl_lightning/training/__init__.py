"""Training of the two models: rollouts, rewards, learners, losses and checks."""
