"""The peers' door: strangers are met here, before anything is spent on them."""
