"""Region features of images beside what a system reads of the tweets.

Shapes: B tweets, R regions of an image, V numbers of a region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_prep.region_file import REGION_SIZE, REGIONS, RegionFile
from finetune.inputs import Inputs


@dataclass(frozen=True)
class RegionInputs:
    """Tweets with the regions of their images; see :class:`finetune.inputs.Inputs`."""

    text: Inputs
    image_ids: Sequence[str | None]
    """Of each tweet; those that the file has not count as no image."""
    regions: RegionFile

    @property
    def lengths(self) -> Sequence[int]:
        """Those of the text."""
        return self.text.lengths

    @property
    def words_truncated(self) -> Sequence[int]:
        """Those of the text."""
        return self.text.words_truncated

    @property
    def tweets_without(self) -> int:
        """How many tweets have no regions."""
        return sum(image_id not in self.regions for image_id in self.image_ids)

    def batch(self, tweets: Sequence[int], labels: Sequence[Sequence[int]] | None = None) -> dict[str, torch.Tensor]:
        """The text's tensors, ``regions_BRV``, zero where there are none, and ``has_image_B``, which says where."""
        image_ids = [self.image_ids[tweet] for tweet in tweets]
        has_image_B = torch.tensor([image_id in self.regions for image_id in image_ids])
        regions_BRV = torch.zeros(len(tweets), REGIONS, REGION_SIZE)
        for place in has_image_B.nonzero()[:, 0].tolist():
            regions_BRV[place] = self.regions.read(image_ids[place])
        return self.text.batch(tweets, labels) | {"regions_BRV": regions_BRV, "has_image_B": has_image_B}
