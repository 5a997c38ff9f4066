"""Official DiTi and PDAE runs: their configs, files and weights, and what they become here."""
