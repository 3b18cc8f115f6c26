"""Keys, accounts, payments and jobs on the user's side. Nothing here is trusted by a node."""
