"""The choice of attention."""

from __future__ import annotations

import pytest
import torch

from diticli.errors import ConfigError, DeviceError

CPU = torch.device("cpu")


def test_cpu_uses_sdpa_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from diticli.models.attention import use_fast_attention
    from diticli.models.encoder import SemanticEncoder

    monkeypatch.delenv("DITI_ATTENTION", raising=False)
    encoder = SemanticEncoder(sample_size=32, widths=(32, 64), latent_dim=8)
    assert use_fast_attention(encoder, device=CPU) == {
        "4 heads of 8": "sdpa (xformers has no operator for this device)"
    }


@pytest.mark.parametrize(("value", "error"), [("xformers", DeviceError), ("flash", ConfigError)])
def test_forced_choice_is_honoured_or_refused(monkeypatch: pytest.MonkeyPatch, value: str, error: type) -> None:
    from diticli.models.attention import use_fast_attention
    from diticli.models.encoder import SemanticEncoder

    monkeypatch.setenv("DITI_ATTENTION", value)
    with pytest.raises(error, match=value):
        use_fast_attention(SemanticEncoder(sample_size=32, widths=(32, 64), latent_dim=8), device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_attention_equals_sdpa(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    from diticli.models.attention import use_fast_attention
    from diticli.models.encoder import SemanticEncoder

    encoder = SemanticEncoder(latent_dim=32).cuda().to(dtype)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    images = torch.rand(4, 3, 64, 64, device="cuda", dtype=dtype)
    results = []
    for choice in ("sdpa", "auto"):
        monkeypatch.setenv("DITI_ATTENTION", choice)
        use_fast_attention(encoder, device=images.device, dtype=dtype)
        results.append(encoder(images).float())
    torch.testing.assert_close(*results, rtol=1e-4 if dtype == torch.float32 else 2e-2, atol=1e-4)
