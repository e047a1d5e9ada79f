from lightning.pytorch import Trainer
from own_recipe import MaxNorm

from lt_cb.data import LongTailedDataModule
from lt_cb.losses import SoftmaxLoss
from lt_cb.models import last_linear


def test_no_norm_is_above_the_limit(tmp_path):
    data = LongTailedDataModule("Digits", batch_size=32)
    loss = SoftmaxLoss(data.class_counts)
    model = MaxNorm(limit=0.1, loss=loss, backbone="resnet20", in_channels=1)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, data)
    classifier = last_linear(model.backbone, model.num_classes)
    norms = classifier.weight.norm(dim=1)
    assert trainer.global_step == 2
    assert norms.max() <= 0.1 + 1e-6
