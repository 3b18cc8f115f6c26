"""What is multiplied: quantised networks, and the demo."""
