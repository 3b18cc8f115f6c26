"""What talks to a node over JSON-RPC and believes nothing: jobs, payments, units."""
