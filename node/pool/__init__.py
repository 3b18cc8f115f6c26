"""What is pending: transactions, results, and the one door through which everything enters."""
