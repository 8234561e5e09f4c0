"""What the fleet does. The only folder that imports ray."""
