"""What features tell: linear probes, learned masks, and the directions to edit along."""
