"""The interface of every segmentation network.

In training it answers with the logits of every scale it is supervised on, finest first; in
evaluation with one tensor. Its parameters belong to named parts, so that fine-tuning can freeze or
renew them without knowing the network.
"""

from __future__ import annotations

from torch import Tensor, nn

from synth.base.errors import SynthError

COARSE = {"enc": "encoder", "dec": "decoder"}


class Segmenter(nn.Module):
    """(B, 4, X, Y, Z) → logits of WT, TC, ET: a list of scales in training, else one tensor."""

    min_divisor: int = 1
    """Every edge of the input must be a multiple of this."""

    def scales(self, x: Tensor, *, deep: bool) -> list[Tensor]:
        """Return logits, finest first; only the finest unless `deep` (and trained for more)."""
        raise NotImplementedError

    def part_of(self, name: str) -> str:
        """Return the part a parameter belongs to: encoder, bottleneck, decoder or heads.

        Levels may have names of their own: enc0 takes the input, the last dec gives the output.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:  # (B, 4, X, Y, Z)
        """Return [(B, 3, X, Y, Z), (B, 3, X/2, …), …] in training, else (B, 3, X, Y, Z)."""
        self.check_size(x)
        found = self.scales(x, deep=self.training)
        return found if self.training else found[0]

    def check_size(self, x: Tensor) -> None:
        """Refuse an input whose answer would have another size."""
        shape = tuple(x.shape[2:])
        if any(n % self.min_divisor for n in shape):
            raise SynthError(
                f"an input of {' x '.join(map(str, shape))} voxels",
                hint=f"every edge must be a multiple of {self.min_divisor} for this network",
            )

    def parts(self) -> dict[str, list[str]]:
        """Return the names of the parameters of every part, and of every level that has a name.

        encoder, bottleneck, decoder and heads hold every parameter once.
        """
        found: dict[str, list[str]] = {p: [] for p in ("encoder", "bottleneck", "decoder", "heads")}
        for name, _ in self.named_parameters():
            part = self.part_of(name)
            for word in {part, COARSE.get(part[:3], part)}:
                found.setdefault(word, []).append(name)
        return found
