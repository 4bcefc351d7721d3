"""Fine-tune a detector on a data set of the library `datasets`, or on your files, in one file.

    pip install 'hf_detr[train]'
    python examples/fine_tune.py --data cppe-5
    accelerate launch examples/fine_tune.py --data FOLDER --model SenseTime/deformable-detr

A plain loop of torch and Accelerate, meant to be copied and changed. `--data` is as for
`hf-detr train`, which has exact resume, health reports and more.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

import hf_detr


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="name on the Hub, or a folder")
    parser.add_argument("--box-format", help="coco_xywh, xyxy or cxcywh_normalized")
    parser.add_argument("--model", default="facebook/detr-resnet-50", help="name or folder")
    parser.add_argument("--output", default="fine_tuned", help="folder for the model")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4, help="images per process")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--shortest-edge", type=int, default=480, help="of the images, in pixels")
    parser.add_argument("--workers", type=int, default=2, help="processes that load images")
    return parser.parse_args()


def main() -> None:
    """Read the data, fine-tune, evaluate after each epoch, save, and predict with the result."""
    options = parse_arguments()
    set_seed(0)
    accelerator = Accelerator()

    # Data: class labels from 0 without gaps, boxes (x0, y0, x1, y1) in pixels.
    train_data, test_data = hf_detr.read_splits(options.data, box_format=options.box_format)
    edges = [round(options.shortest_edge * scale) for scale in (0.75, 0.875, 1)]
    train_data.set_transform(hf_detr.make_training_transform(shortest_edges=edges))

    # Classes that the model knows by name keep their weights; everything else is as trained.
    processor = AutoImageProcessor.from_pretrained(
        options.model, size={"shortest_edge": edges[-1], "longest_edge": 2 * edges[-1]}
    )
    model = AutoModelForObjectDetection.from_pretrained(
        options.model, auxiliary_loss=True, dtype=torch.float32
    )
    model.resize_classes(train_data.id2label)
    loader = DataLoader(
        train_data,
        options.batch_size,
        shuffle=True,
        drop_last=len(train_data) >= options.batch_size,
        num_workers=options.workers,
        collate_fn=hf_detr.DetectionCollator(processor),
    )
    # The backbone learns at a tenth of the learning rate, the class heads at ten times.
    groups = model.parameter_groups(options.lr, class_factor=10)
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    num_steps = options.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], num_steps, pct_start=0.1
    )

    for epoch in range(options.epochs):
        model.train()
        train_data.set_epoch(epoch)  # other crops and flips
        bar = tqdm(loader, f"epoch {epoch + 1}", disable=not accelerator.is_main_process)
        for batch in bar:
            loss = model(**batch).loss
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss.item():.2f}")
        metrics = hf_detr.evaluate(model, processor, test_data, options.batch_size)
        accelerator.print(f"epoch {epoch + 1}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}")

    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        trained.config.auxiliary_loss = False  # only training needs it
        trained.save_pretrained(options.output)
        processor.save_pretrained(options.output)
        detect = pipeline("object-detection", model=options.output)
        print(f"Saved to {options.output}. The first test image has:")
        for found in detect(test_data.images.open(0).convert("RGB"), threshold=0.5):
            print(f"  {found['label']} {found['score']:.2f} {found['box']}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
