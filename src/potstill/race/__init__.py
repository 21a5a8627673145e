"""Many candidates, few epochs: successive halving over students and methods."""
