"""From verdicts to rewards, with every part kept apart."""
