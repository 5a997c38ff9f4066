"""Feature files and folders of shards: written row by row, read where they are asked for."""
