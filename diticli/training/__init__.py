"""Stage 1 (the base diffusion model) and stage 2 (encoder and shift decoder)."""
