"""What a rank of a run on `LivePairs` reads; for tests/test_live_pairs.py."""

import hashlib
import json
import os
import sys
from pathlib import Path

import datasets
import torch

from adaptor_hf import AdaptorModel
from adaptor_hf.data.features import RadiographImage
from adaptor_hf.data.live_pairs import LivePairs
from adaptor_hf.towers import load_text_tower, load_vision_tower
from adaptor_hf.training import AdaptorTrainer, AdaptorTrainingArguments
from adaptor_hf.training.interruption import leave_process_group
from adaptor_hf.training.pair_batches import PairCollator


def main(vision: str, text: str, output: str, files: list[str]) -> None:
    torch.set_num_threads(1)
    vision_tower, text_tower = load_vision_tower(vision), load_text_tower(text)
    values = {
        "image": [{"path": path, "bytes": None} for path in files],
        "text": [f"effusion {row}. heart normal. lungs clear." for row in range(len(files))],
    }
    pairs = datasets.Dataset.from_dict(values).cast_column("image", RadiographImage())
    live = LivePairs(pairs, vision_tower.processor, text_tower.processor, recipe="slip", sentence_recipe="lovt")
    pad, seen = PairCollator(text_tower.processor.pad), []

    def collate(examples):
        for example in examples:
            digest = hashlib.sha256(example["pixel_values"].numpy().tobytes() + example["input_ids"].numpy().tobytes())
            seen.append((live.epoch, example["row"], digest.hexdigest()))
        return pad(examples)

    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    args = AdaptorTrainingArguments(
        output,
        use_cpu=True,
        disable_tqdm=True,
        global_batch_size=4,
        num_train_epochs=2,
        save_strategy="no",
        eval_strategy="no",
        load_best_model_at_end=False,
    )
    model = AdaptorModel.from_towers(vision_tower, text_tower, **small)
    trainer = AdaptorTrainer(model, args, train_dataset=live, data_collator=collate)
    trainer.train()
    Path(output).mkdir(exist_ok=True)
    Path(output, f"{args.process_index}-of-{args.world_size}.json").write_text(json.dumps(seen))
    leave_process_group()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(*sys.argv[1:4], sys.argv[4:])
