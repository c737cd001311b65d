"""Make the golden Whisper checkpoint of tests/models/goldens/whisper: a tiny random model with reference numbers.

The reference is the transformers library in float32 with eager attention; tests then need neither it nor torch. The
folder gets config.json, generation_config.json, model.safetensors and golden.npz: audio as 16-bit samples, its log-mel
(by the library's own feature extractor, at the toy's size and at the real one, every 50th frame), the encoder's states,
and the decoder's logits at every position of a prompt.

    pip install torch transformers scipy   # made with 2.13 and 5.23; nothing else here needs them
    python -m triptych.tools.make_speech_goldens tests/models/goldens/whisper
"""

import argparse
from pathlib import Path

import numpy as np

SEED = 20
PROMPT_TOKENS = 12
SECONDS = 1  # of a window; the real one is 30 s long
MELS = 16
REAL_MEL_STRIDE = 50

# Awkward on purpose: heads, FFN width and vocabulary that two devices do not divide.
SIZES = {
    "vocab_size": 81,
    "num_mel_bins": MELS,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 45,
    "decoder_ffn_dim": 45,
    "max_source_positions": 50 * SECONDS,
    "max_target_positions": 32,
    "bos_token_id": 70,
    "eos_token_id": 70,
    "pad_token_id": 70,
    "decoder_start_token_id": 71,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def audio(generator: np.random.Generator) -> np.ndarray:
    """0.83 s of tones that come and go over noise, as int16 at 16 kHz: not a whole number of frames."""
    time = np.arange(13_337) / 16_000
    tones = sum(np.sin(2 * np.pi * hz * time) * (np.sin(7 * time + hz) > 0) for hz in (220.0, 1310.0, 5200.0))
    noisy = 0.2 * tones + 0.01 * generator.standard_normal(time.size)
    return (np.clip(noisy, -1, 1) * 32767).astype(np.int16)


def make_golden(folder: Path) -> None:
    """Write the checkpoint and its reference numbers."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    config = transformers.WhisperConfig(**SIZES, attn_implementation="eager")
    model = transformers.WhisperForConditionalGeneration(config).eval()
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if path == "model.encoder.embed_positions.weight":
                continue  # the sinusoids
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise if path.endswith("bias") else 1.0 + 0.2 * noise)
            else:
                # Wider than usual, so that logits differ by more than rounding and attention is far from uniform.
                parameter.copy_(noise * 1.5 * parameter[0].numel() ** -0.5)
    generator = np.random.default_rng(SEED)
    samples = audio(generator)
    wave = samples.astype(np.float32) / 32768.0
    extract = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS)
    real = transformers.WhisperFeatureExtractor(feature_size=80)
    mel = extract(wave, sampling_rate=16_000, return_tensors="pt").input_features
    real_mel = real(wave, sampling_rate=16_000, return_tensors="np").input_features[0].T
    prompt = torch.randint(0, SIZES["vocab_size"], (PROMPT_TOKENS,), generator=random)
    with torch.no_grad():
        states = model.model.encoder(mel).last_hidden_state
        logits = model(input_features=mel, decoder_input_ids=prompt[None], use_cache=False).logits[0]
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    np.savez(
        folder / "golden.npz",
        samples=samples,
        mel=mel[0].numpy().T,
        real_mel=real_mel[::REAL_MEL_STRIDE],
        states=states[0].numpy(),
        prompt=prompt.numpy().astype(np.int32),
        logits=logits.numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden Whisper checkpoint with the transformers library.")
    parser.add_argument("folder", type=Path)
    make_golden(parser.parse_args().folder)


if __name__ == "__main__":
    main()
