"""From maps to pseudo-labels: random fields, random walks and the networks that guide them."""
