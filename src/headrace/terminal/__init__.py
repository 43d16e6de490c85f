"""What a run looks like on a terminal, and in plain lines elsewhere. It sees events only."""
