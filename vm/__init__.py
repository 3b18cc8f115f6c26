"""Programs over tensors. Agents and their instructions will live here."""
