"""Diffusion from a label map to t1n, t1c, t2w and t2f, adapted to a new site by LoRA.

    synth train ddpm_lora --data site_a -o runs/base
    synth train ddpm_lora --data site_b -o runs/site_b --lora-from runs/base --lora-preset light

Dorjsembe et al., "Conditional Diffusion Models for Semantic 3D Brain MRI Synthesis" (Med-DDPM,
2024), in its own space or in Haar bands; Hu et al., "LoRA: Low-Rank Adaptation" (2022), by peft's
files. Rooms: `config`, `spaces`, `network`, `conditioning`, `data`, `recipe`; `finetune` trains an
adapter, `adapters` reads and writes it, `merging` adds it to its base; `compat` reads Med-DDPM.
"""
