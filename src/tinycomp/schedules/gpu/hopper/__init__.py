"""Products and convolutions as tile programs for sm_90a."""
