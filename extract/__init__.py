"""How the best plan is chosen: costs, measurements and extraction."""
