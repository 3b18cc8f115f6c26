"""One block's rules by subject, over `Execution`: workers, jobs, dealing, issuance."""
