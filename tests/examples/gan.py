"""A generative adversarial network: two optimizers, one after the other, on every batch.

Goodfellow et al., "Generative adversarial nets" (NeurIPS 2014), with the non-saturating loss.
"""

from __future__ import annotations

import torch
from engine import LightningModule, Trainer
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


class GAN(LightningModule):
    def __init__(self, latent=4):
        super().__init__()
        self.automatic_optimization = False
        self.latent = latent
        self.generator, self.discriminator = mlp(latent, 2), mlp(2, 1)

    def forward(self, z):
        return self.generator(z)

    def training_step(self, batch, batch_idx):
        (real,) = batch
        z = torch.randn(len(real), self.latent, device=self.device)
        for_generator, for_discriminator = self.optimizers()

        with self.toggled_optimizer(for_generator):
            loss_g = softplus(-self.discriminator(self(z))).mean()
            for_generator.zero_grad()
            self.manual_backward(loss_g)
            for_generator.step()

        with self.toggled_optimizer(for_discriminator):
            fake = self(z).detach()
            loss_d = (softplus(-self.discriminator(real)) + softplus(self.discriminator(fake))).mean()
            for_discriminator.zero_grad()
            self.manual_backward(loss_d)
            for_discriminator.step()

        self.log_dict({"generator": loss_g, "discriminator": loss_d}, prog_bar=True)

    def configure_optimizers(self):
        settings = {"lr": 2e-3, "betas": (0.5, 0.9)}
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), **settings) for part in parts]


def main(**options):
    data = torch.randn(1024, 2, generator=torch.Generator().manual_seed(0)) * 0.3 + torch.tensor([2.0, -1.0])
    trainer = Trainer(**{"max_epochs": 15, "accelerator": "cpu", **options})
    trainer.fit(GAN(), DataLoader(TensorDataset(data), batch_size=64, shuffle=True))
    return trainer


if __name__ == "__main__":
    main()
