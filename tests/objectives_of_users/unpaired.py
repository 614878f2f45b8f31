"""Images with one to three sentences each, and sentences without an image: each sentence looks for its image."""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Sampler

from adaptor_hf.objectives import Objective


class Sentences(Dataset):
    """Row i is an image; a batch has the sentences of its images, and one without an image."""

    def __init__(self, rows: int = 48):
        generator = torch.Generator().manual_seed(0)
        codes = torch.randn(rows, 8, generator=generator)
        self.images = codes @ torch.randn(8, 20, generator=generator)
        self.owners = torch.arange(rows).repeat_interleave(torch.arange(rows) % 3 + 1)
        noise = torch.randn(len(self.owners), 28, generator=generator)
        self.sentences = codes[self.owners] @ torch.randn(8, 28, generator=generator) + 0.1 * noise

    def __len__(self):
        return len(self.images)

    def __getitems__(self, rows):
        rows = torch.tensor(rows)
        chosen = torch.isin(self.owners, rows).nonzero()[:, 0]
        texts = torch.cat([self.sentences[chosen], self.sentences[:1].neg()])
        index = torch.cat([self.owners[chosen], torch.tensor([-1])])
        return {"image_embeds": self.images[rows], "text_embeds": texts, "image_index": rows, "text_index": index}


class EveryThird(Sampler):
    """Rows 0, 3, 6 and so on, then 1, 4, 7; the next epoch begins at another of the three."""

    epoch = 0

    def __init__(self, rows: int):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __iter__(self):
        return (row for first in range(3) for row in range((first + self.epoch) % 3, self.rows, 3))

    def set_epoch(self, epoch):
        self.epoch = epoch


class Unpaired(Objective):
    def forward(self, encoded, rows, gather):
        texts, images = encoded.text, gather.rows(encoded.image.pooled)
        numbers = gather.rows(encoded.image.index)
        there = torch.isin(texts.index, numbers)
        own = (texts.index[there, None] == numbers).int().argmax(1)
        logits = encoded.logit_scale.exp() * texts.pooled[there] @ images.T
        loss = cross_entropy(logits, own, reduction="sum") * gather.share(gather.counts(own))
        return {"loss": loss, "sentences": there.sum()}

    def sampler(self, dataset):
        return EveryThird(len(dataset))
