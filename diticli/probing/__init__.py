"""What can be predicted from features: linear probes, learned masks, and the directions to edit along."""
